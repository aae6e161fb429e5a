"""Random calls against the model: threads, keys used again, discards, cancels, sub-groups, placements, interrupts.

A run prints its seed. `LAZYCAST_MODEL_SEED=17` makes the plan of seed 17 again, `LAZYCAST_MODEL_SEED=17/3` one world of
it alone, as a failure names it. When a signal comes, and which thread is first, is a matter of time: repeat it some
times.
"""

from __future__ import annotations

import os
import random

import pytest

from lazycast import CastTimeoutError, LaunchError, launch

from . import oracle, plan, rank

pytestmark = pytest.mark.usefixtures("warm_python")
RANKS = 4


def check(
    seed: str, casts: int, *, interrupts: bool = True, planted: bool = False, timeout_s: float
) -> tuple[int, int]:
    """Run the plan of a seed; raise with what is wrong. Return how many casts there were, and how many interrupts."""
    arguments = seed, RANKS, casts, interrupts, planted
    try:
        done = launch(rank.run, ranks=RANKS, backend="local", args=arguments, timeout_s=timeout_s)
    except (LaunchError, CastTimeoutError) as exc:
        raise AssertionError(f"LAZYCAST_MODEL_SEED={seed}: {exc}") from exc
    made = 0
    found: list[str] = []
    for number, world in enumerate(plan.worlds(seed, RANKS, casts, interrupts=interrupts)):
        made += world.casts
        found += oracle.problems(world, [endings[number] for endings, _ in done])
    assert not found, f"LAZYCAST_MODEL_SEED={seed}: {len(found)} endings are wrong:\n" + "\n".join(found[:10])
    return made, sum(times for _, times in done)


def seed_of(default: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the seed of this run, and print it."""
    seed = os.environ.get("LAZYCAST_MODEL_SEED", default)
    with capsys.disabled():
        print(f"\nmodel check: LAZYCAST_MODEL_SEED={seed}")
    return seed


def test_calls_end_as_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    casts, interrupted = check(seed_of("6", capsys), 750, timeout_s=110)
    assert casts > 20
    assert interrupted > 10


def test_they_do_without_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    casts, interrupted = check(seed_of("7", capsys), 250, interrupts=False, timeout_s=110)
    assert casts > 20
    assert interrupted == 0


@pytest.mark.exhaustive
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_calls_end_as_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    casts, interrupted = check(seed_of(str(random.getrandbits(32)), capsys), 50_000, timeout_s=1700)
    assert casts > 20
    assert interrupted > 10


def test_it_finds_two_mails_of_a_key_that_are_swapped() -> None:
    with pytest.raises(AssertionError, match="wrong value") as caught:
        check("8", 300, interrupts=False, planted=True, timeout_s=110)
    assert "LAZYCAST_MODEL_SEED=8" in str(caught.value)

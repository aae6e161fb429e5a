"""The conformance suite, on ranks that are threads of this process. `tests/launch` runs it under real launchers."""

from __future__ import annotations

import pytest

from lazycast import launch
from lazycast.start.discovery import resolve
from lazycast.testing import Outcome, run
from lazycast.testing.kit import behaviours, name_of

SELDOM = 2  # what two ranks mean shows with one and with four nearly always
CASES = [("auto", size, name_of(fn)) for size in (1, SELDOM, 4) for fn in behaviours(size)]
# The network path, which ranks of one host do not take by themselves; five ranks, so that one passes messages on.
CASES += [(False, 5, name_of(fn)) for fn in behaviours(5) if not name_of(fn).startswith("contract.")]


def _run_one(name: str, shared_memory: bool | str) -> list[Outcome]:
    return run(resolve("auto"), only=name, shared_memory=shared_memory)


@pytest.mark.parametrize(
    ("shared_memory", "size", "name"),
    [pytest.param(*case, marks=[pytest.mark.exhaustive] if case[1] == SELDOM else []) for case in CASES],
    ids=[f"{name}-{size}-{'shared' if shared else 'network'}" for shared, size, name in CASES],
)
def test_behaviour(shared_memory: bool | str, size: int, name: str) -> None:
    seen = launch(_run_one, ranks=size, backend="threads", args=(name, shared_memory), timeout_s=110)
    for rank, outcomes in enumerate(seen):
        assert [outcome.name for outcome in outcomes] == [name]
        assert outcomes[0].passed, f"seen by rank {rank}:\n" + "\n".join(e for e in outcomes[0].errors if e)

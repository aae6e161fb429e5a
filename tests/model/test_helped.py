"""Random casts whose values helpers make, while helpers are killed: each ends as the plan says, and nothing is left.

A run prints its seed. `LAZYCAST_MODEL_SEED=17` makes the plan of seed 17 again, `LAZYCAST_MODEL_SEED=17/3` one world of
it alone. Which helper dies in the middle of what is a matter of time: repeat it some times.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from lazycast import launch

from . import helped_rank, helping
from .helped_rank import Ended
from .helping import Cast, World
from .test_model import seed_of

pytestmark = pytest.mark.usefixtures("warm_python")
RANKS = 3


class Seen(NamedTuple):
    """What a run has been through, so that a test can say it was worth something."""

    casts: int
    values: int
    hits: int
    kills: int
    died: int


def check(seed: str, casts: int, folder: Path, *, planted: bool = False, timeout_s: float) -> Seen:
    """Run the plan of a seed; raise with what is wrong."""
    arguments = seed, RANKS, casts, str(folder), planted
    done = launch(helped_rank.run, ranks=RANKS, backend="local", args=arguments, timeout_s=timeout_s)
    kills = folder / "kills"
    killed = {int(pid) for pid in kills.read_text().split()} if kills.exists() else set()
    found: list[str] = []
    worlds = list(helping.worlds(seed, RANKS, casts))
    for number, world in enumerate(worlds):
        found += problems(world, [ended[number] for ended in done], killed)
    assert not found, f"LAZYCAST_MODEL_SEED={seed}: {len(found)} are wrong:\n" + "\n".join(found[:10])
    endings = [ending for ended in done[0] for ending in ended.endings.values()]
    counts = endings.count("value"), sum(one.hits for one in done[0]), sum(one.kills for ended in done for one in ended)
    return Seen(sum(world.casts for world in worlds), *counts, endings.count("died"))


def problems(world: World, ends: Sequence[Ended], killed: set[int]) -> Iterator[str]:
    """Say what is wrong with how a world ended, given what each rank says and which processes were killed."""
    for cast in (cast for burst in world.bursts for cast in burst):
        endings = [ended.endings.get(cast.number, "nothing") for ended in ends]
        for text in _of_cast(world, cast, endings):
            yield f"world {world.seed}, {cast}: {text}; all of it: {endings}"
    for rank, ended in enumerate(ends):
        where = f"world {world.seed}, rank {rank}: "
        if ended.blamed - killed:
            yield f"{where}processes {ended.blamed - killed} were not killed, and errors say so"
        if any(ended.left):
            yield f"{where}left behind: descriptors, children, mappings of shared memory: {ended.left}"
        if len({one.hits for one in ends}) > 1 and not _discards(world):
            yield f"{where}ranks have had again another number: {[one.hits for one in ends]}"
        if not world.memo_nbytes and ended.hits:
            yield f"{where}nothing was to be remembered"


def _discards(world: World) -> bool:
    return any(cast.discarded_by is not None for burst in world.bursts for cast in burst)


def _of_cast(world: World, cast: Cast, endings: Sequence[str]) -> Iterator[str]:
    mine = {ending for ending in endings if ending != "discarded"}
    if len(mine) != 1:
        yield "the ranks do not agree"
    allowed = {"fail": {"failed"}, "unencodable": {"unencodable"}, "always": {"died"}}.get(cast.kind, {"value"})
    # A random death may be the second of a cast, or the last before it has begun of all helpers there are.
    allowed = allowed | {"died"} | ({"cancelled"} if cast.cancelled else set())
    if not mine <= allowed:
        yield f"{sorted(allowed)} is right"
    for rank, ending in enumerate(endings):
        if (ending == "discarded") != (cast.discarded_by == rank != world.root):
            yield f"rank {rank} has {ending!r}"


def test_casts_end_as_planned_while_helpers_are_killed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen = check(seed_of("6", capsys), 300, tmp_path, timeout_s=110)
    assert seen.casts > 20
    assert seen.values > seen.casts * 0.6
    assert seen.kills > 0


@pytest.mark.exhaustive
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_casts_end_as_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen = check(seed_of(str(random.getrandbits(32)), capsys), _many(), tmp_path, timeout_s=3500)
    with capsys.disabled():
        print(seen)
    assert seen.values > seen.casts * 0.6
    assert seen.hits > 0
    assert seen.kills > 20


def _many() -> int:
    return int(os.environ.get("LAZYCAST_MODEL_CASTS", "50000"))


@pytest.mark.exhaustive
def test_it_finds_what_is_remembered_and_overwritten(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="in place of"):
        check("8/0", 1, tmp_path, planted=True, timeout_s=110)  # its first world alone

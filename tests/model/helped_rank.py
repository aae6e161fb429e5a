"""One rank of the check with helpers: asks for the casts of the plan, overwrites what it gets, and counts what is left.

Where it leads its host it also kills helpers, at random moments: those that are free, at work, or have not begun.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lazycast import Helpers, LazyBroadcast, LazycastError, Memo
from lazycast.backends.local import LocalBackend
from lazycast.tools.soak.rank import Meeting
from tests.children import of_this_process

from . import helping
from .helping import Cast, World

#: No call of this check takes so long; what does hangs (seconds).
LIMIT_S = 60.0
_GAPS = (20, 140)  # so many casts end between two helpers that are killed
_AT_MOST_LATER_S = 0.02  # and then a moment passes, so that it may be in the middle of anything
_HELPER = re.compile(r"helper \d+: process (\d+)")
_DIED = re.compile(r"helper \d+ \(process (\d+)\)")


class Ended(NamedTuple):
    """What a rank brings back of a world: how each cast ended there, and what it has counted.

    Attributes:
        endings: by the number of a cast: "value", "failed", "unencodable", "died", "cancelled", "discarded".
        by: who has made each value that came.
        blamed: processes whose deaths were named in errors.
        hits, kills: casts had again; helpers that this rank has killed.
        left: what was left of a world that had not been there: descriptors, children, mappings of shared memory.
    """

    endings: dict[int, str]
    by: set[int]
    blamed: set[int]
    hits: int
    kills: int
    left: tuple[int, int, int]


class _Killer:
    """Kills helpers of an object of this process, as long as it is open."""

    def __init__(self, lazy: LazyBroadcast[Any, Any], endings: dict[int, str], kills: Path, seed: str) -> None:
        self._lazy, self._endings, self._kills, self._rng = lazy, endings, kills, random.Random(seed)
        self._over = threading.Event()
        self.times = 0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._kill_some, name="killer")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _kill_some(self) -> None:
        due = 0
        while not self._over.wait(self._rng.uniform(0, _AT_MOST_LATER_S)):
            if len(self._endings) < due:
                continue
            due = len(self._endings) + self._rng.randint(*_GAPS)
            helpers = [line for line in self._lazy.dump().splitlines() if _HELPER.search(line)]
            if self._rng.random() < 0.9:
                helpers = [line for line in helpers if "starts" not in line]
            if not helpers:
                continue
            (pid,) = _HELPER.findall(self._rng.choice(helpers))
            helping.killing(self._kills, int(pid))
            self.times += 1
            # It is this process's child, and one that has ended keeps its number until it is waited for: a moment later
            # the number may be free, but no process begins with it so soon.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def run(seed: str, ranks: int, casts: int, folder: str, planted: bool) -> list[Ended]:
    """On one rank: run the worlds of a seed."""
    me = int(os.environ["LAZYCAST_RANK"])
    if planted:
        _plant(me)
    meeting = Meeting(LocalBackend(me, ranks, os.environ["LAZYCAST_RENDEZVOUS"]), 2 * LIMIT_S)
    _world(World("warm", 0, 1, 1 << 20, "private", ()), me, ranks, Path(folder), meeting)  # what is made once is there
    ended = [_world(world, me, ranks, Path(folder), meeting) for world in helping.worlds(seed, ranks, casts)]
    meeting.close()
    return ended


def _world(world: World, me: int, ranks: int, folder: Path, meeting: Meeting) -> Ended:
    before = _in_use()
    found = Ended({}, set(), set(), 0, 0, (0, 0, 0))
    backend = LocalBackend(me, ranks, os.environ["LAZYCAST_RENDEZVOUS"])
    with LazyBroadcast(
        helping.make_plain if world.values == "readonly" else helping.make,
        backend=backend,
        root=world.root,
        name=world.seed.replace("/", "-"),
        placement=Helpers(world.helpers, niceness=0),
        memo=None if world.memo_nbytes is None else Memo(world.memo_nbytes),
        values=world.values,
        timeout_s=LIMIT_S,
    ) as lazy:
        killer = _Killer(lazy, found.endings, folder / "kills", f"{world.seed}/{me}")
        with killer.at_work() if lazy.is_root else contextlib.nullcontext():
            for burst in world.bursts:
                _burst(lazy, world, burst, folder, found)
        found = found._replace(hits=lazy.stats().memo_hits, kills=killer.times)
        meeting.meet()
    meeting.meet()
    gc.collect()
    left = [now - then for now, then in zip(_in_use(), before, strict=True)]
    return found._replace(left=(left[0], left[1], left[2]))


def _burst(lazy: LazyBroadcast[Any, Any], world: World, burst: tuple[Cast, ...], folder: Path, found: Ended) -> None:
    mine = list(burst)
    if not lazy.is_root:
        random.Random(f"{world.seed}/{lazy.rank}/{burst[0].number}").shuffle(mine)
    asked = []
    for cast in mine:
        if cast.discarded_by == lazy.rank and not lazy.is_root:
            lazy.discard(cast.number)
            found.endings[cast.number] = "discarded"
            continue
        payload, arguments = None, {}
        if lazy.is_root:
            payload, arguments = helping.payload(world, cast, folder), {"priority": cast.priority}
            make = helping.make_plain if world.values == "readonly" or cast.captured else helping.make
            arguments["materialize"] = helping.materializer(cast, make)
        future = lazy.broadcast_async(payload, key=cast.number, **arguments)
        if lazy.is_root and cast.cancelled:
            future.cancel()
        asked.append((cast, future))
    for cast, future in asked:
        try:
            value = future.result(LIMIT_S)
        except concurrent.futures.CancelledError:
            found.endings[cast.number] = "cancelled"
        except LazycastError as exc:
            found.endings[cast.number] = _named(cast, exc, found, lazy)
        else:
            found.endings[cast.number] = helping.wrong(cast, value) or "value"
            if found.endings[cast.number] == "value":
                for result in helping.parts(cast, value):
                    found.by.add(result["by"])
                    if result["data"].flags.writeable:
                        result["data"][...] = -1  # it is this rank's alone


def _named(cast: Cast, exc: LazycastError, found: Ended, lazy: LazyBroadcast[Any, Any]) -> str:
    text = str(exc)
    if "as planned" in text:
        return "failed"
    if "cannot leave its process" in text:
        return "unencodable"
    died = _DIED.findall(text)
    if not died:
        raise AssertionError(f"world {lazy.name}, {cast}\n{lazy.dump()}") from exc
    found.blamed.update(map(int, died))
    return "died"


def _in_use() -> tuple[int, int, int]:
    """Return how many descriptors, children and mappings of shared memory this process has, once they stand still.

    Threads that have been told to end, and have not yet, may hold something for a moment.
    """
    until_s = time.monotonic() + 5.0
    while True:
        now = _count()
        time.sleep(0.02)
        if now == _count() or time.monotonic() > until_s:
            return now


def _count() -> tuple[int, int, int]:
    mapped = Path("/proc/self/maps").read_text().count("/memfd:")
    return len(os.listdir("/proc/self/fd")), len(of_this_process()), mapped


def _plant(me: int) -> None:
    """Plant a defect: what is remembered is given out as it lies there, for all who get it to write to."""
    from lazycast.core.memo.store import Kept

    def body(self: Kept) -> memoryview:
        store = self._store
        return store._region.whole[self._offset : self._offset + self.nbytes]

    Kept.body = body  # type: ignore[method-assign]

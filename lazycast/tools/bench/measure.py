"""What each rank of a run does. `run_rank` is the function that is launched.

How a time is taken: all ranks meet in a barrier; the root waits until the others sleep, or poll, in their call; it
notes the moment, and makes its own. Every rank notes when it is done, and the last one counts. All are on one machine,
and share CLOCK_MONOTONIC. What was received is compared with what should have been after that, and a difference ends
the run on all ranks. Memory is looked at after the rounds of a cell, in repetitions of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.start import discovery
from lazycast.tools.bench import machine, memory, ways
from lazycast.tools.bench.payloads import SOURCES, ArraySource, Source
from lazycast.tools.bench.plan import COLUMNS, MEMORY_COLUMNS, MEMORY_NBYTES, MIB, Plan, size_text
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.sync import TIMEOUT_S, Sync
from lazycast.tools.bench.touch import difference, mark, overwrite
from lazycast.tools.bench.ways import Way

#: Longer than a rank needs from the barrier into its call, with more ranks than cores, and for caches and cores to rest
#: as they do between the steps of an engine (seconds).
_SETTLE_S = 2e-3
_ASYNC_NBYTES = 8 * MIB


@dataclass(frozen=True)
class Spread:
    """How often something was timed, its median, and what a tenth of the times stayed under and over (seconds)."""

    count: int
    p10_s: float
    median_s: float
    p90_s: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
        return cls(len(seconds), p10, median, p90)


@dataclass
class Cell:
    """One kind of payload at one size, on this rank."""

    source: Source
    payload: Source | None  # the root's own, which it may overwrite
    ways: list[Way]
    numbers: Iterator[int]
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def run_rank(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """Take part in a whole run; return its results on rank 0, and None elsewhere."""
    backend = discovery.resolve("auto")
    sync = Sync(backend.rank, backend.size, folder)
    reporter = Reporter(folder, backend.rank == 0)
    figures: dict[str, Any] = {}
    with LazyBroadcast[Any, Any](name="figures", timeout_s=TIMEOUT_S) as lazy:
        if plan.idle_s:
            reporter.say("idle ranks")
            figures |= _idle(lazy, sync, plan.idle_s)
        if plan.async_calls:
            reporter.say("broadcast_async")
            figures["async_blocked"] = {"nbytes": _ASYNC_NBYTES, **_async_blocked(lazy, sync, plan.async_calls)}
    present = [way(backend.rank) for way in ways.available(plan.backend, plan.ways)]
    results, needs = [], []
    pids = [int(blob) for blob in sync.gather(str(os.getpid()).encode())]
    watch = memory.Watch(pids) if plan.memory and backend.rank == 0 else None
    cells = [(kind, n) for kind in plan.kinds for n in plan.sizes if n <= SOURCES[kind].largest_nbytes]
    for index, (kind, nbytes) in enumerate(cells):
        source = SOURCES[kind]
        own, payload = source(nbytes), source(nbytes) if backend.rank == 0 else None
        cell = Cell(own, payload, [way for way in present if way.takes(own)], itertools.count(1))
        reporter.begin(index, len(cells), f"{kind}, {size_text(nbytes)}")
        _measure(cell, plan, sync, reporter)
        if plan.memory and nbytes >= MEMORY_NBYTES:
            reporter.say(f"{kind}, {size_text(nbytes)}, memory", 1.0)
            needs += [{"kind": kind, "nbytes": nbytes, **need} for need in _memory(cell, sync, watch)]
        results += [
            {"kind": kind, "nbytes": nbytes, "way": way.name, "column": column, **asdict(Spread.of(seconds))}
            for way in cell.ways
            for column in way.columns
            for seconds in [cell.seconds[way.name, column]]
        ]
    reporter.end(len(cells))
    for way in present:
        way.close()
    if watch is not None:
        watch.close()
    sync.gather()
    sync.close()
    if backend.rank != 0:
        return None
    about = {"versions": machine.versions(plan.backend), "absent": ways.absent(plan.backend, plan.ways)}
    return {"results": results, "memory": needs, "figures": figures, **about}


def _measure(cell: Cell, plan: Plan, sync: Sync, reporter: Reporter) -> None:
    """Run the rounds of a cell, as many as the root says."""
    for way in cell.ways:
        way.prepare(cell.source)
    _round(cell, sync, 0)  # a first one that warms memory and does not count
    cell.seconds.clear()
    wanted, since_s = plan.rounds(cell.source.nbytes), time.monotonic()
    for done in itertools.count(1):
        _round(cell, sync, done)
        taken_s = time.monotonic() - since_s
        over = done >= wanted or (done >= plan.min_rounds and taken_s > plan.cell_s)
        reporter.round(max(done / wanted, min(done / plan.min_rounds, taken_s / plan.cell_s)), 1)
        if sync.gather(b"over" if over else b"")[0]:
            return


def _round(cell: Cell, sync: Sync, turn: int) -> None:
    """Take every way once per column; each round begins with another way."""
    turn %= len(cell.ways)
    for column in COLUMNS:
        for way in cell.ways[turn:] + cell.ways[:turn]:
            if column in way.columns:
                seconds = take(way, column, cell, sync)
                cell.seconds.setdefault((way.name, column), []).append(seconds)


def take(way: Way, column: str, cell: Cell, sync: Sync) -> float:
    """Time one broadcast, check it, and return the seconds until the last rank was done. Collective."""
    with _checked(way, column, cell, sync) as turn:
        sync.gather()
        if way.rank == 0:
            time.sleep(_SETTLE_S)
        start_ns = time.monotonic_ns()
        end_ns = turn.run()
        stamps = sync.stamps(start_ns, end_ns)
    (started_ns, _), last_ns = stamps[0], max(end for _, end in stamps[: 1 if way.root_only else None])
    return (last_ns - started_ns) / 1e9


def needed(way: Way, column: str, cell: Cell, sync: Sync, watch: memory.Watch | None) -> list[int]:
    """Return how much private memory each rank needed for one broadcast, on rank 0; [] elsewhere. Collective.

    Args:
        watch: of all ranks, in order; on rank 0.
    """
    needs = []
    with _checked(way, column, cell, sync) as turn:
        memory.settle()
        sync.gather()
        if watch is not None:
            watch.begin()
        sync.gather()
        turn.run()
        sync.gather()
        if watch is not None:
            needs = watch.end()
    return needs


def _memory(cell: Cell, sync: Sync, watch: memory.Watch | None) -> Iterator[dict[str, Any]]:
    """Yield what each way of a cell needs, on rank 0 as it is. Collective."""
    for way in cell.ways:
        for column in MEMORY_COLUMNS if not way.root_only else ():
            if column in way.columns:
                root_nbytes, *others = needed(way, column, cell, sync, watch) or [0, 0]
                shared_nbytes = sum(int(blob) for blob in sync.gather(str(way.shared_nbytes()).encode()))
                sizes = {"root_nbytes": root_nbytes, "others_nbytes": max(others), "shared_nbytes": shared_nbytes}
                yield {"way": way.name, "column": column, **sizes}


@dataclass
class _Turn:
    """One broadcast and what is done with its value, on this rank."""

    way: Way
    column: str
    number: int
    payload: Any
    value: Any = None

    def run(self) -> int:
        """Do it; return when that was done (CLOCK_MONOTONIC)."""
        done = self.way.turn(self.payload, self.column, self.number)
        self.value = done.value
        return done.end_ns


@contextlib.contextmanager
def _checked(way: Way, column: str, cell: Cell, sync: Sync) -> Iterator[_Turn]:
    """Give the next turn of a cell, and check what it got when everybody is done."""
    number = next(cell.numbers)
    expected = cell.source.at(number)
    payload = cell.payload.at(number) if cell.payload is not None else None
    turn = _Turn(way, column, number, payload)
    yield turn
    # After everybody is done: what one rank has written must not show on another.
    sync.agree(_complaint(turn, expected))


def _complaint(turn: _Turn, expected: object) -> str | None:
    way, column = turn.way, turn.column
    if way.root_only and way.rank != 0:
        return None
    if column == "overwritten":
        expected = overwrite(expected, mark(turn.number, way.rank))
    wrong = difference(expected, turn.value) or way.elsewhere(column, turn.number)
    return wrong and f"{way.name} ({column}): the value{wrong}"


def _idle(lazy: LazyBroadcast[Any, Any], sync: Sync, idle_s: float) -> dict[str, list[float]]:
    """Return for each rank the fraction of a core it takes while its object is open and nobody calls it.

    That of its whole process, and that of lazycast's threads: what carries a group, as gloo, has threads of its own.
    """
    lazy.broadcast(b"awake")
    sync.gather()
    time.sleep(0.5)  # let what the cast has begun come to rest
    before_s, threads_before_s, since_s = time.process_time(), _threads_s(), time.monotonic()
    time.sleep(idle_s)
    took_s = time.monotonic() - since_s
    used = [(time.process_time() - before_s) / took_s, (_threads_s() - threads_before_s) / took_s]
    ranks = [json.loads(blob) for blob in sync.gather(json.dumps(used).encode())]
    return {"idle_cpu_fraction": [rank[0] for rank in ranks], "idle_threads_fraction": [rank[1] for rank in ranks]}


def _threads_s() -> float:
    """Return the processor time of the threads that lazycast has started, as long as they live."""
    own = [thread.ident for thread in threading.enumerate() if thread.name.startswith("lazycast")]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in own if ident is not None)


def _async_blocked(lazy: LazyBroadcast[Any, Any], sync: Sync, calls: int) -> dict[str, float]:
    """Time how long `broadcast_async` holds the root's caller up."""
    source, seconds = ArraySource(_ASYNC_NBYTES), []
    for number in range(calls + 1):
        expected = source.at(number)
        sync.gather()
        start_s = time.perf_counter()
        future = lazy.broadcast_async(expected if lazy.is_root else None)
        seconds.append(time.perf_counter() - start_s)
        wrong = difference(expected, future.result())
        sync.agree(wrong and f"broadcast_async: the value{wrong}")
    return asdict(Spread.of(seconds[1:]))

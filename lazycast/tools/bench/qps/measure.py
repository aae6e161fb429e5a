"""What each rank of a run does. `run_rank` is the function that is launched.

How a turn is taken: all ranks meet; the root says how many requests there are and when they begin, a moment ahead; each
rank runs its loop and notes, by CLOCK_MONOTONIC, when the value of each request was here; all meet again, and the
processor time is read. Then the first values of every rank are compared with those that the root has made by
itself, and a difference ends the run on all ranks.
"""

from __future__ import annotations

import os
import statistics
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazycast.start import discovery
from lazycast.tools.bench import machine
from lazycast.tools.bench.plan import MIB
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.qps import ways
from lazycast.tools.bench.qps.loop import Loop
from lazycast.tools.bench.qps.materializers import TIMES
from lazycast.tools.bench.qps.plan import OPEN_WINDOW, Plan, arrivals
from lazycast.tools.bench.qps.records import Cell, Turn, Workbench
from lazycast.tools.bench.qps.slowdown import watch
from lazycast.tools.bench.qps.tally import Tally
from lazycast.tools.bench.qps.ways import WAYS, Place, Way
from lazycast.tools.bench.qps.workloads import WORKLOADS, Workload, fingerprint
from lazycast.tools.bench.sync import Sync
from lazycast.watch.stats import Stats
from lazycast.watch.timing import Timing

#: From the meeting to the first request: longer than a rank needs from one to the other (seconds).
_AHEAD_S = 5e-3
#: Requests one at a time, in each round; values of a turn that are verified, per rank.
_ALONE, _VERIFIED = 3, 3
#: How long, and how often at least and at most, ranks do nothing but materialize in each round.
_ALONE_S, _ALONE_CALLS = 0.25, (4, 30)
#: Beside a scheduler: such a part of all cores would do for the materializing, if each value were made once; the bounds
#: of the rate (requests a second); and the bytes a second that it does not exceed.
_SHARE, _RATES, _RATE_NBYTES = 0.05, (2.0, 50.0), 256 * MIB

_BEGIN = struct.Struct("<qq")


@dataclass
class Course:
    """One way while it runs: `number` is that of its next request, `qps` what it has reached lately (on this rank)."""

    way: Way
    cell: Cell
    number: int = 0
    qps: float = 1.0


class Bench:
    """One workload on this rank."""

    def __init__(self, plan: Plan, workload: Workload, place: Place, sync: Sync, tally: Tally) -> None:
        self.plan, self.workload, self.place, self.sync, self.tally = plan, workload, place, sync, tally
        self.pool = workload.pool()
        self.window = workload.window(OPEN_WINDOW if plan.rate is not None else plan.concurrency)
        self.result = Workbench(workload.name, self.window)
        self._expected = (
            [fingerprint(workload.materialize(payload)) for payload in self.pool] if place.rank == 0 else []
        )
        self._expected = _split(sync.gather(b"".join(self._expected))[0])

    def open(self, name: str) -> Course | None:
        """Make a way, or note why there is none. Collective."""
        cell = Cell(self.workload.name, name)
        self.result.cells.append(cell)
        way = None
        try:
            way = WAYS[name](self.place, self.workload)
        except (ValueError, ImportError) as exc:
            cell.unavailable = str(exc)
        reasons = [blob.decode() for blob in self.sync.gather((cell.unavailable or "").encode()[:1000])]
        self.sync.agree(f"{name}: only some ranks have it: {reasons}" if any(reasons) and not all(reasons) else None)
        return None if way is None else Course(way, cell)

    def materialize_only(self) -> None:
        """Time the materializer on as many ranks at once as there are cores, while the others sleep."""
        if self.place.rank < len(os.sched_getaffinity(0)):
            end_s, calls = time.monotonic() + _ALONE_S, 0
            while calls < _ALONE_CALLS[0] or (calls < _ALONE_CALLS[1] and time.monotonic() < end_s):
                TIMES.take()
                self.workload.materialize(self.pool[calls % len(self.pool)])
                self.result.yardstick.append(TIMES.take())
                calls += 1
        self.sync.gather()

    def warm(self, course: Course) -> None:
        """Run a way for the first time, without counting it."""
        self.turn(course, 2 * self.window, self.window)

    def round(self, courses: Sequence[Course], turn: int) -> None:
        """Take every way once; each round begins with another one."""
        self.materialize_only()
        turn %= max(1, len(courses))
        for course in [*courses[turn:], *courses[:turn]]:
            course.cell.alone += [self.turn(course, 1, 1) for _ in range(_ALONE)]
            count = self.plan.count(course.qps, self.window)
            schedule = arrivals(self.plan.rate, count, turn) if self.plan.rate is not None else None
            course.cell.turns.append(self.turn(course, count, self.window, schedule))

    def turn(self, course: Course, count: int, window: int, schedule: Sequence[float] | None = None) -> Turn:
        """Run so many requests over one way, and verify the first values. Collective."""
        way = course.way
        count, begin_ns = self._agree(count)
        loop = self._loop(course, count, window, begin_ns, schedule)
        TIMES.take()
        collective_s, before, cpu_s = way.collective_s, way.stats(), time.process_time()
        loop.run()
        self.sync.gather()
        cpu_s = time.process_time() - cpu_s
        work = TIMES.take()
        if count > 1:
            course.qps = count / max(1e-6, (int(loop.done_ns.max()) - begin_ns) / 1e9)
        self._verify(way, loop)
        return Turn(
            begin_ns,
            schedule,
            window,
            loop.done_ns,
            loop.blocked_s,
            way.collective_s - collective_s,
            cpu_s,
            work,
            _counted(before, way.stats()),
        )

    def beside(self, courses: Sequence[Course], turn: int) -> None:
        """Watch the scheduler without each way, and beside it, in turn."""
        rate, seconds = self.result.rate, self.plan.slowdown_s
        window, wanted = self.workload.window(OPEN_WINDOW), max(1, round(rate * seconds))
        turn %= max(1, len(courses))
        for course in [*courses[turn:], *courses[:turn]]:
            _, begin_ns = self._agree(0)
            course.cell.quiet.append(watch(seconds, None, begin_ns))
            count, begin_ns = self._agree(wanted)
            loop = self._loop(course, count, window, begin_ns, arrivals(rate, count, turn))
            course.cell.beside.append(watch(seconds, loop, begin_ns))
            self.sync.gather()
            self._verify(course.way, loop)

    def choose_rate(self) -> None:
        """Choose how many requests arrive beside the scheduler: the root's choice. Collective."""
        rate = 0.0
        if self.place.rank == 0:
            cores = len(os.sched_getaffinity(0))
            rate = _SHARE * cores / statistics.median(work.cpu_s for work in self.result.yardstick)
            rate = max(_RATES[0], min(_RATES[1], rate, _RATE_NBYTES / self.workload.nbytes))
        self.result.rate = float(self.sync.gather(repr(rate).encode())[0])

    def _agree(self, count: int) -> tuple[int, int]:
        """Let the root say how many requests there are, and when they begin. Collective."""
        self.tally.put(0)
        said = self.sync.gather(_BEGIN.pack(count, time.monotonic_ns() + round(_AHEAD_S * 1e9)))
        return _BEGIN.unpack(said[0])

    def _loop(self, course: Course, count: int, window: int, begin_ns: int, schedule: Sequence[float] | None) -> Loop:
        first = course.number
        course.number += count
        return Loop(
            course.way,
            self.pool,
            first=first,
            count=count,
            window=window,
            begin_ns=begin_ns,
            schedule=schedule,
            keep=min(_VERIFIED, count),
            tally=self.tally,
            led=course.way.led and self.place.rank != 0,
        )

    def _verify(self, way: Way, loop: Loop) -> None:
        """Compare the values that were kept with what they should be. Collective."""
        self.sync.agree(wrong(way.name, loop.values, self._expected))
        loop.values.clear()


def wrong(name: str, values: dict[int, Any], expected: Sequence[bytes]) -> str | None:
    """Say which request has another value than its payload makes; None if none has.

    Args:
        expected: the fingerprints of the values of a pool that requests take in turn.
    """
    for number, value in values.items():
        if fingerprint(value) != expected[number % len(expected)]:
            return f"{name}: request {number} has got another value than its payload makes"
    return None


def _split(blob: bytes) -> list[bytes]:
    """Cut what is several fingerprints in a row."""
    nbytes = len(fingerprint(0))
    return [blob[at : at + nbytes] for at in range(0, len(blob), nbytes)]


def _counted(before: Stats | None, after: Stats | None) -> dict[str, tuple[int, float]]:
    """Return what was timed between two snapshots: how often, and for how long in all."""
    found: dict[str, tuple[int, float]] = {}
    if before is not None and after is not None:
        for name, value in vars(after).items():
            if isinstance(value, Timing):
                earlier: Timing = getattr(before, name)
                found[name] = (value.count - earlier.count, value.total_s - earlier.total_s)
    return found


def run_rank(plan: Plan, folder: Path) -> tuple[list[Workbench], dict[str, str]]:
    """Take part in a whole run; return what this rank has measured, and what is installed on it."""
    backend = discovery.resolve("auto")
    place = Place(backend.rank, backend.size, plan.backend)
    sync = Sync(place.rank, place.size, folder)
    tally = Tally(folder, place.rank, place.size)
    reporter = Reporter(folder, place.rank == 0)
    results = []
    for index, name in enumerate(plan.workloads):
        reporter.begin(index, len(plan.workloads), name)
        results.append(_workload(Bench(plan, WORKLOADS[name], place, sync, tally), reporter))
    reporter.end(len(plan.workloads))
    sync.gather()
    sync.close()
    return results, machine.versions(plan.backend)


def _workload(bench: Bench, reporter: Reporter) -> Workbench:
    plan = bench.plan
    opened = [bench.open(name) for name in plan.ways or ways.WAYS]
    courses = [course for course in opened if course is not None]
    slowdowns = plan.slowdown_rounds if plan.slowdown_s else 0
    total = 1 + plan.rounds + slowdowns
    for course in courses:
        bench.warm(course)
    for done in range(1, plan.rounds + 1):
        reporter.round(done, total)
        bench.round(courses, done - 1)
    if slowdowns:
        bench.choose_rate()
    for done in range(slowdowns):
        reporter.round(1 + plan.rounds + done, total)
        bench.beside(courses, done)
    for course in courses:
        stats = course.way.stats()
        course.cell.chosen += stats.standings if stats is not None else ()
        course.way.close()
    bench.sync.gather()
    return bench.result

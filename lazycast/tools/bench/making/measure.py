"""What each rank of a run does. `run_rank` is the function that is launched; every method of `Bench` is collective.

One request at a time: all ranks meet, ask, and note by CLOCK_MONOTONIC when they have the value; its time is from the
root's call to the last rank's value. Several: a closed loop, or the scheduler with requests at a rate beside it. The
first values of each turn are compared with what the root has made by itself.
"""

from __future__ import annotations

import json
import struct
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lazycast.start import discovery
from lazycast.tools.bench import machine
from lazycast.tools.bench.making import rows, scheduler, strangers
from lazycast.tools.bench.making.plan import Plan
from lazycast.tools.bench.making.ways import STRANGERS, WAYS
from lazycast.tools.bench.making.workloads import WORKLOADS, same
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.qps.loop import Loop
from lazycast.tools.bench.qps.plan import arrivals
from lazycast.tools.bench.qps.tally import Tally
from lazycast.tools.bench.qps.ways import Place, Way
from lazycast.tools.bench.sync import TIMEOUT_S, Sync

_AHEAD_S = 5e-3  # from the meeting to the first request
_WINDOW, _OPEN_WINDOW = 8, 64
_VERIFIED = 2  # values of a turn, per rank
_BEGIN = struct.Struct("<q")


class Bench:
    """This rank of a run."""

    def __init__(self, plan: Plan, place: Place, sync: Sync, tally: Tally, folder: Path) -> None:
        self.plan, self.place, self.sync, self.tally, self.folder = plan, place, sync, tally, folder
        self.adds = min(int(blob) for blob in sync.gather(str(scheduler.calibrate()).encode()))
        self._pools: dict[str, list[Any]] = {}
        self._expected: dict[tuple[str, int], Any] = {}
        self._numbers: dict[int, int] = {}
        #: Why a way is not there.
        self.absent: dict[str, str] = {}

    @property
    def is_root(self) -> bool:
        return self.place.rank == 0

    def pool(self, workload: str) -> list[Any]:
        """Return the payloads of a workload."""
        if workload not in self._pools:
            self._pools[workload] = WORKLOADS[workload].pool()
        return self._pools[workload]

    def open(self, workload: str, names: tuple[str, ...]) -> dict[str, Way]:
        """Make these ways, or note why there are none."""
        found: dict[str, Way] = {}
        for name in names:
            try:
                found[name] = WAYS[name](self.place, WORKLOADS[workload], self.plan.helpers)
            except ValueError as exc:
                self.absent[name] = str(exc)
        self.sync.gather()
        return found

    def _number(self, way: Way) -> int:
        self._numbers[id(way)] = self._numbers.get(id(way), -1) + 1
        return self._numbers[id(way)]

    def close(self, ways: dict[str, Way]) -> None:
        """Give them up."""
        for way in ways.values():
            way.close()
            self._numbers.pop(id(way), None)
        self.sync.gather()

    def single(self, way: Way, payload: Any) -> tuple[float, Any]:
        """Ask for one request; return how long it took until the last rank had it (seconds), and the value."""
        self.sync.gather()
        begin_ns = time.monotonic_ns()
        value = way.start(self._number(way), payload).result(TIMEOUT_S)
        stamps = self.sync.stamps(begin_ns, time.monotonic_ns())
        return (max(end for _, end in stamps) - stamps[0][0]) / 1e9, value

    def verify(self, way: Way, index: int, value: Any) -> None:
        """Compare a value with what the payload of this index makes."""
        workload = way.workload
        if (workload.name, index) not in self._expected:
            self._expected[workload.name, index] = workload.materialize(self.pool(workload.name)[index])
        good = same(workload, value, self._expected[workload.name, index])
        self.sync.agree(None if good else f"{way.name}: another value than payload {index} of {workload.name} makes")

    def closed(self, way: Way, count: int) -> float:
        """Take `count` requests with some outstanding; return how many there were in a second."""
        loop, begin_ns = self._loop(way, count, _WINDOW, None)
        loop.run()
        last_ns = max(int(blob) for blob in self.sync.gather(str(int(loop.done_ns.max())).encode()))
        self._verify_all(way, loop)
        return count / ((last_ns - begin_ns) / 1e9)

    def watched(self, name: str, way: Way | None, others: Any, seed: int) -> list[dict[str, float]]:
        """Watch the scheduler beside a way, strangers, or nothing; return what each rank's did."""
        plan, loop = self.plan, None
        if way is not None:
            count = max(1, round(plan.rate * plan.seconds))
            loop, begin_ns = self._loop(way, count, _OPEN_WINDOW, arrivals(plan.rate, count, seed))
        else:
            begin_ns = self._begin()
            if name == STRANGERS and self.is_root:
                strangers.begin(others, begin_ns, seed)
        steps = scheduler.watch(self.adds, plan.seconds, loop, begin_ns)
        found = [json.loads(blob) for blob in self.sync.gather(json.dumps(asdict(steps)).encode())]
        if way is not None and loop is not None:
            self._verify_all(way, loop)
        return found

    def _begin(self) -> int:
        self.tally.put(0)
        said = self.sync.gather(_BEGIN.pack(time.monotonic_ns() + round(_AHEAD_S * 1e9)))
        return int(_BEGIN.unpack(said[0])[0])

    def _loop(self, way: Way, count: int, window: int, schedule: list[float] | None) -> tuple[Loop, int]:
        begin_ns = self._begin()
        first = self._number(way)
        self._numbers[id(way)] += count - 1
        loop = Loop(
            way,
            self.pool(way.workload.name),
            first=first,
            count=count,
            window=window,
            begin_ns=begin_ns,
            schedule=schedule,
            keep=min(_VERIFIED, count),
            tally=self.tally,
            led=not self.is_root,
        )
        return loop, begin_ns

    def _verify_all(self, way: Way, loop: Loop) -> None:
        size = len(self.pool(way.workload.name))
        for number, value in sorted(loop.values.items()):
            self.verify(way, number % size, value)
        loop.values.clear()


def run_rank(plan: Plan, folder: Path) -> dict[str, Any]:
    """Take part in a whole run; return what was measured (the same on every rank but for what is the root's)."""
    backend = discovery.resolve("auto")
    place = Place(backend.rank, backend.size, plan.backend)
    sync = Sync(place.rank, place.size, folder)
    reporter = Reporter(folder, place.rank == 0)
    bench = Bench(plan, place, sync, Tally(folder, place.rank, place.size), folder)
    found: dict[str, Any] = {}
    for index, name in enumerate(plan.rows):
        reporter.begin(index, len(plan.rows), name)
        found[name] = rows.ROWS[name](bench, lambda done: reporter.round(done, plan.rounds))
    reporter.end(len(plan.rows))
    sync.gather()
    sync.close()
    return {"rows": found, "absent": bench.absent, "versions": machine.versions(plan.backend)}

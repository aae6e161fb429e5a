"""What a cast costs beside its bytes: a small dict, in every way, in alternating rounds.

Three things are measured of each way, in every round one after the other:

* **alone**: nothing happens for 2 ms, then the root makes one call. The time ends when the last rank has the object.
  The processor time is that of all ranks, pause included, less what the same pause and the meeting of the ranks take
  without a call. So ranks that spin while they wait pay for it.
* **one by one**: calls in a row, each rank in a loop; who sends may be as far ahead as the way itself allows.
* **outstanding**: as many casts under way as said, each rank a future for each. Only for ways that have futures.

Every object that arrives is compared with what was sent.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from lazycast.start import discovery
from lazycast.start.launcher import launch
from lazycast.tools.bench import machine, progress, ways
from lazycast.tools.bench.measure import Spread
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.sync import Sync
from lazycast.tools.bench.ways import Way
from lazycast.tools.bench.ways.ours import Lazycast

#: Of the layout of what `run` returns.
FORMAT = 1
#: Two ways move one buffer and no object; to two others a dict is what it is to their neighbours.
_NOT_HERE = (ways.TorchRaw, ways.MpiRaw, ways.LazycastCopy, ways.VllmArena)
_WARM_UP = 20


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        ways: only these; all that are available if empty.
        rounds: how often every way has its turn.
        calls: in a turn, with the pause before each.
        casts: in a turn, without.
        idle_s: the pause.
        windows: how many casts are under way at once.
    """

    backend: str
    ranks: int = 4
    ways: tuple[str, ...] = ()
    rounds: int = 15
    calls: int = 20
    casts: int = 400
    idle_s: float = 2e-3
    windows: tuple[int, ...] = (8, 32)


def payload_of(number: int) -> dict[str, Any]:
    """Return what a control message of an engine looks like, the one with this number."""
    return {"step": number, "rids": [f"request-{number + i}" for i in range(4)], "tokens": [number, 7, 11, 13]}


def available(backend: str, only: tuple[str, ...] = ()) -> list[type[Way]]:
    """Return the ways that can take part on ranks of this backend."""
    return [way for way in ways.available(backend, only) if not way.root_only and way not in _NOT_HERE]


def run(plan: Plan, *, command: str | None = None, label: str = "") -> dict[str, Any]:
    """Measure; return everything that is known of the run, as JSON has it.

    Raises: what `launch` raises; LaunchError also if some rank did not get what the root sent.
    Blocking: until all is measured.
    """
    about = {
        "format": FORMAT,
        "benchmark": "small",
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions(plan.backend),
        "plan": asdict(plan),
    }
    with tempfile.TemporaryDirectory(prefix="lazycast-bench-") as name, progress.shown(Path(name), label):
        measured, *_ = launch(run_rank, ranks=plan.ranks, backend=plan.backend, args=(plan, Path(name)))
    return {**about, **measured}


def run_rank(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """Take part in a whole run; return its results on rank 0, and None elsewhere. The function that is launched."""
    backend = discovery.resolve("auto")
    sync = Sync(backend.rank, backend.size, folder)
    reporter = Reporter(folder, backend.rank == 0)
    reporter.begin(0, 1, "small casts")
    turns = [_Turns(way(backend.rank), plan, sync) for way in available(plan.backend, plan.ways)]
    for each in turns:
        each.blocking(_WARM_UP)
    nobody_s: list[float] = []
    for done in range(plan.rounds):
        nobody_s.append(_pauses(plan, sync, lambda number: None).cpu_s)
        turn = done % len(turns)
        for each in turns[turn:] + turns[:turn]:
            each.take()
        reporter.round(done + 1, plan.rounds)
    reporter.end(1)
    for each in turns:
        each.way.close()
    sync.gather()
    sync.close()
    if backend.rank != 0:
        return None
    base_s = statistics.median(nobody_s)
    results = [each.result(base_s) for each in turns]
    return {"results": results, "idle_cpu_s": base_s, "absent": ways.absent(plan.backend, plan.ways)}


@dataclass(frozen=True)
class _Spent:
    """What a turn took: the time of each call, and the processor time of all ranks for one."""

    seconds: list[float]
    cpu_s: float


def _pauses(plan: Plan, sync: Sync, call: Callable[[int], None]) -> _Spent:
    """Meet, pause, and make a call on every rank, so many times. Collective."""
    seconds = []
    sync.gather()
    begin_s = time.process_time()
    for number in range(plan.calls):
        sync.gather()
        if sync.rank == 0:
            time.sleep(plan.idle_s)
        start_ns = time.monotonic_ns()
        call(number)
        stamps = sync.stamps(start_ns, time.monotonic_ns())
        seconds.append((max(end for _, end in stamps) - stamps[0][0]) / 1e9)
    return _Spent(seconds, _of_all(sync, time.process_time() - begin_s) / plan.calls)


def _of_all(sync: Sync, seconds: float) -> float:
    """Return the sum over all ranks. Collective."""
    return sum(float(blob) for blob in sync.gather(repr(seconds).encode()))


class _Turns:
    """One way on this rank, and what its turns have taken."""

    def __init__(self, way: Way, plan: Plan, sync: Sync) -> None:
        self.way = way
        self._plan, self._sync = plan, sync
        self._alone: list[_Spent] = []
        self._rates: dict[str, list[tuple[float, float]]] = {}

    def take(self) -> None:
        """Take this way's turn of a round. Collective."""
        self._alone.append(_pauses(self._plan, self._sync, self._once))
        self._sync.agree(None)
        self._rate("one by one", partial(self.blocking, self._plan.casts))
        if not isinstance(self.way, Lazycast):
            return
        for window in self._plan.windows:
            self._rate(f"{window} outstanding", partial(self._window, window, None))
        widest = max(self._plan.windows)
        self._rate(f"{widest} outstanding, keyed", partial(self._window, widest, "request-{}".format))

    def blocking(self, casts: int) -> None:
        """Make calls in a row."""
        for number in range(casts):
            self._once(number)

    def _once(self, number: int) -> None:
        self._compare(number, self.way.run(self._payload(number)))

    def _payload(self, number: int) -> Any:
        return payload_of(number) if self.way.rank == 0 else None

    def _compare(self, number: int, value: Any) -> None:
        if value != payload_of(number):
            raise AssertionError(f"{self.way.name}: rank {self.way.rank} got {value!r} for cast {number}")

    def _window(self, window: int, key: Callable[[int], str] | None) -> None:
        """Keep so many casts under way, each by its future."""
        assert isinstance(self.way, Lazycast)
        under_way: deque[tuple[int, Any]] = deque()
        for number in range(self._plan.casts):
            if len(under_way) == window:
                self._take_oldest(under_way)
            future = self.way.begin(self._payload(number), key=key(number) if key is not None else None)
            under_way.append((number, future))
        while under_way:
            self._take_oldest(under_way)

    def _take_oldest(self, under_way: deque[tuple[int, Any]]) -> None:
        number, future = under_way.popleft()
        self._compare(number, future.result())

    def _rate(self, what: str, calls: Callable[[], None]) -> None:
        """Note the casts a second until the slowest rank is done, and the processor time of all for one. Collective."""
        self._sync.gather()
        begin_ns, cpu_s = time.monotonic_ns(), time.process_time()
        calls()
        stamps = self._sync.stamps(begin_ns, time.monotonic_ns())
        cpu_s = _of_all(self._sync, time.process_time() - cpu_s)
        took_s = (max(end for _, end in stamps) - min(begin for begin, _ in stamps)) / 1e9
        self._rates.setdefault(what, []).append((self._plan.casts / took_s, cpu_s / self._plan.casts))

    def result(self, base_s: float) -> dict[str, Any]:
        """Return what was measured, as JSON has it; `base_s` is what meeting takes without a call."""
        return {
            "way": self.way.name,
            "alone": asdict(Spread.of([s for spent in self._alone for s in spent.seconds])),
            "alone_cpu_s": statistics.median(spent.cpu_s for spent in self._alone) - base_s,
            "rates": {
                what: {
                    "casts_per_s": statistics.median(rate for rate, _ in turns),
                    "least": min(rate for rate, _ in turns),
                    "most": max(rate for rate, _ in turns),
                    "cpu_s": statistics.median(cpu_s for _, cpu_s in turns),
                }
                for what, turns in self._rates.items()
            },
        }


def lines(measured: dict[str, Any]) -> Iterator[str]:
    """Yield a run as Markdown: how long one takes alone, and how many there are in a second."""
    from lazycast.tools.bench.report import seconds_text

    plan, results = measured["plan"], measured["results"]
    floor = next((r["alone"]["median_s"] for r in results if r["way"] == ways.PlainPython.name), None)
    yield (
        f"A dict of some 150 bytes pickled, {plan['ranks']} ranks, backend {plan['backend']}, {plan['rounds']} rounds: "
        f"{plan['calls']} calls with {plan['idle_s'] * 1e3:g} ms of rest before each, and {plan['casts']} without. "
        "Median (10th to 90th percentile); rates: median (least to most of the rounds)."
    )
    yield from (
        "",
        "| way | alone, until the last rank has it | of plain Python | CPU of all ranks |",
        "|---|---:|---:|---:|",
    )
    for result in results:
        alone = result["alone"]
        spread = f"{seconds_text(alone['p10_s'])} to {seconds_text(alone['p90_s'])}"
        ratio = f"{alone['median_s'] / floor:.2f}" if floor else "-"
        cells = (
            result["way"],
            f"{seconds_text(alone['median_s'])} ({spread})",
            ratio,
            seconds_text(result["alone_cpu_s"]),
        )
        yield "| " + " | ".join(cells) + " |"
    yield from ("", "| way | calls | casts/s | CPU of all ranks per cast |", "|---|---|---:|---:|")
    for result in results:
        for what, rate in result["rates"].items():
            casts = f"{rate['casts_per_s']:,.0f} ({rate['least']:,.0f} to {rate['most']:,.0f})"
            yield "| " + " | ".join((result["way"], what, casts, seconds_text(rate["cpu_s"]))) + " |"
    for way, reason in measured["absent"].items():
        yield from ("", f"not measured: {way} ({reason})")

"""What it costs to watch: small casts with nothing counted, counted as always, and traced, in alternating rounds.

Small casts without a materializer are the worst case: there are most of them in a second, and least else to do.

How a turn is taken: all ranks meet, each makes so many calls with `window` of them under way, and all meet again. Its
rate is that of the slowest rank, its processor time the sum over all ranks. Ways are compared within each round, since
machines are busier at one time than at another.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lazycast.api import LazyBroadcast
from lazycast.start import discovery
from lazycast.start.launcher import launch
from lazycast.tools.bench import machine, progress
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.sync import Sync
from lazycast.watch.stats import Counters

#: Of the layout of what `run` returns.
FORMAT = 1
WAYS = {
    "silent": "nothing is counted",
    "counted": "stats(), as always",
    "traced": "counted, and each rank writes a trace",
}
_PAYLOAD = {"rid": "request-000001", "ids": list(range(200)), "text": "x" * 300}


@dataclass(frozen=True)
class Plan:
    """What to measure: `rounds` of `casts` calls with `window` of them under way."""

    backend: str
    ranks: int = 4
    rounds: int = 40
    casts: int = 1000
    window: int = 16
    agree: bool = True


class Silent(Counters):
    """Counts nothing."""

    def took(self, what: str, seconds: float) -> None:
        pass

    def resolve(self, now_s: float, seconds: float) -> None:
        pass

    def cast(self, placement: str | None) -> None:
        pass


def _open(name: str, agree: bool, folder: Path) -> LazyBroadcast[Any, Any]:
    lazy: LazyBroadcast[Any, Any] = LazyBroadcast(name=f"bench-{name}", agree=agree)
    if name == "silent":
        lazy._engine.counters.__class__ = Silent  # all that count hold this object
    elif name == "traced":
        lazy.trace(folder / "traces")
    return lazy


def _turn(lazy: LazyBroadcast[Any, Any], sync: Sync, casts: int, window: int) -> tuple[float, float]:
    """Make the calls; return casts per second and processor seconds per cast, of all ranks. Collective."""
    payload = _PAYLOAD if lazy.is_root else None
    sync.gather()
    begin_ns, cpu_s = time.monotonic_ns(), time.process_time()
    under_way: deque[Any] = deque()
    for _ in range(casts):
        if len(under_way) == window:
            under_way.popleft().result()
        under_way.append(lazy.broadcast_async(payload))
    for future in under_way:
        future.result()
    end_ns, cpu_s = time.monotonic_ns(), time.process_time() - cpu_s
    stamps = sync.stamps(begin_ns, end_ns)
    spent = [float(blob.decode()) for blob in sync.gather(repr(cpu_s).encode())]
    took_s = (max(end for _, end in stamps) - min(begin for begin, _ in stamps)) / 1e9
    return casts / took_s, sum(spent) / casts


def run_rank(plan: Plan, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Take part in a whole run; return for each way what each round gave. The function that is launched."""
    backend = discovery.resolve("auto")
    sync = Sync(backend.rank, backend.size, folder)
    reporter = Reporter(folder, backend.rank == 0)
    reporter.begin(0, 1, "overhead")
    objects = {name: _open(name, plan.agree, folder) for name in WAYS}
    for lazy in objects.values():
        _turn(lazy, sync, plan.casts // 4 + 1, plan.window)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for done in range(plan.rounds):
        reporter.round(done + 1, plan.rounds)
        for name in [*names[done % 3 :], *names[: done % 3]]:
            found[name].append(_turn(objects[name], sync, plan.casts, plan.window))
    reporter.end(1)
    for lazy in objects.values():
        lazy.close()
    sync.gather()
    sync.close()
    return found


def run(plan: Plan) -> dict[str, Any]:
    """Measure; return everything that is known of the run, as JSON has it. Blocking: until all is measured."""
    about = {
        "format": FORMAT,
        "benchmark": "overhead",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions("local"),
        "plan": asdict(plan),
    }
    with tempfile.TemporaryDirectory(prefix="lazycast-bench-") as name, progress.shown(Path(name)):
        found, *_ = launch(run_rank, ranks=plan.ranks, backend=plan.backend, args=(plan, Path(name)))
    return {**about, "ways": summarize(found)}


def summarize(found: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Compare each way with the silent one, round by round."""
    silent = found["silent"]
    ways = []
    for name, turns in found.items():
        slower = [100 * (1 - turn[0] / base[0]) for turn, base in zip(turns, silent, strict=True)]
        dearer = [100 * (turn[1] / base[1] - 1) for turn, base in zip(turns, silent, strict=True)]
        ways.append(
            {
                "way": name,
                "about": WAYS[name],
                "qps": statistics.median(qps for qps, _ in turns),
                "cpu_s": statistics.median(cpu_s for _, cpu_s in turns),
                "qps_lost_percent": _middle(slower),
                "cpu_more_percent": _middle(dearer),
            }
        )
    return ways


def _middle(values: Sequence[float]) -> dict[str, float]:
    """The median, and between what bounds it lies with 95 % certainty (by order statistics)."""
    ordered, count = sorted(values), len(values)
    reach = 0.98 * count**0.5
    low, high = max(0, round(count / 2 - reach)), min(count - 1, round(count / 2 + reach))
    return {"median": statistics.median(values), "low": ordered[low], "high": ordered[high]}


def table(measured: dict[str, Any]) -> str:
    """Lay out a run as Markdown."""
    plan = measured["plan"]
    what = (
        f"{plan['ranks']} ranks, backend {plan['backend']}, {plan['rounds']} rounds of {plan['casts']} casts of 1 KiB, "
        f"{plan['window']} under way, agree={plan['agree']}; medians (95 % of certainty)"
    )
    lines = [
        what,
        "",
        "| way | casts/s | lost | CPU of all ranks per cast | more |",
        "|---|---|---|---|---|",
    ]
    for way in measured["ways"]:
        lost, more = (
            "" if way["way"] == "silent" else f"{m['median']:.1f} % ({m['low']:.1f} to {m['high']:.1f})"
            for m in (way["qps_lost_percent"], way["cpu_more_percent"])
        )
        lines.append(
            f"| {way['way']}: {way['about']} | {way['qps']:.0f} | {lost} | {way['cpu_s'] * 1e6:.0f} µs | {more} |"
        )
    return "\n".join(lines)

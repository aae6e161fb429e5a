"""Figures from what all ranks have brought back. Plain functions on plain data.

The measure of everything is one materialization, by its processor time, while all cores materialize and nothing else
runs: what else runs on the machine makes the wall's time longer, and would flatter every way; and a core that shares
caches and memory with busy ones takes longer than one that does not, in every way.

A request is done when the last rank has its value; its latency counts from its arrival. Moments of different ranks
compare because CLOCK_MONOTONIC is one clock for all processes of a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from lazycast.tools.bench.qps.records import Beside, Cell, Moments, Turn, Workbench
from lazycast.tools.bench.qps.ways import WAYS
from lazycast.tools.bench.qps.workloads import WORKLOADS


def summarize(ranks: Sequence[Sequence[Workbench]], cores: int) -> list[dict[str, Any]]:
    """Return a dict for each workload, as JSON has it, from the workbenches of all ranks in rank order."""
    return [_workload(benches, cores) for benches in zip(*ranks, strict=True)]


def _workload(benches: Sequence[Workbench], cores: int) -> dict[str, Any]:
    root = benches[0]
    yardstick = [work for bench in benches for work in bench.yardstick]
    unit_s = median(work.cpu_s for work in yardstick)
    cells = [_cell(ranks, unit_s, cores) for ranks in zip(*(bench.cells for bench in benches), strict=True)]
    known = {cell["way"]: cell["qps"] for cell in cells if cell["known"] and cell["unavailable"] is None}
    for cell in cells:
        if cell["unavailable"] is None:
            cell["qps_against"] = {way: cell["qps"] / qps for way, qps in known.items() if way != cell["way"]}
    return {
        "workload": root.name,
        "about": WORKLOADS[root.name].about,
        "window": root.window,
        "yardstick_cpu_s": unit_s,
        "yardstick_s": median(work.wall_s for work in yardstick),
        "ideal_qps": cores / unit_s,
        "slowdown_rate": root.rate,
        "ways": cells,
    }


def _cell(ranks: Sequence[Cell], unit_s: float, cores: int) -> dict[str, Any]:
    """Return one way's figures: medians over its rounds, and the rounds."""
    way = ranks[0].way
    found: dict[str, Any] = {"way": way, "known": WAYS[way].known, "unavailable": ranks[0].unavailable}
    if ranks[0].unavailable is not None:
        return found
    turns = zip(*(rank.turns for rank in ranks), strict=True)
    rounds = [turn_figures(turn) for turn in turns]
    found.update(_medians(rounds))
    found.update(_medians([alone_figures(turn) for turn in zip(*(rank.alone for rank in ranks), strict=True)]))
    found["of_ideal"] = found["qps"] * unit_s / cores
    found["cpu_in_materializations"] = sum(found["cpu_s"]) / unit_s
    found["chosen"] = [
        {
            "placement": standing.placement,
            "reason": standing.reason,
            "casts": {placement: cost.casts for placement, cost in standing.costs.items()},
        }
        for standing in ranks[0].chosen
    ]
    found["lazycast_stats_s"] = _counted([turn for rank in ranks for turn in rank.turns])
    quiet = [steps(watched) for watched in zip(*(rank.quiet for rank in ranks), strict=True)]
    beside = [steps(watched) for watched in zip(*(rank.beside for rank in ranks), strict=True)]
    if beside:
        found["slowdown"] = _medians([slowdown(*pair) for pair in zip(quiet, beside, strict=True)])
    found["rounds"] = rounds
    return found


def moments(ranks: Sequence[Turn]) -> tuple[Moments, Moments]:
    """Return when each request of a turn arrived, and when the last rank had its value (ns).

    In a closed loop a request arrives when there is room for it: the first ones at once, each other one when as many
    are done as there were before it, less those that may be outstanding.
    """
    root = ranks[0]
    done_ns: Moments = np.max([turn.done_ns for turn in ranks], axis=0)
    if root.schedule_s is not None:
        return root.begin_ns + np.round(np.multiply(root.schedule_s, 1e9)).astype(np.int64), done_ns
    arrived_ns = np.full_like(done_ns, root.begin_ns)
    arrived_ns[root.window :] = np.sort(done_ns)[: -root.window]
    return arrived_ns, done_ns


def turn_figures(ranks: Sequence[Turn]) -> dict[str, Any]:
    """Return the figures of one turn; lists are by rank, times in seconds and, but for latencies, per request."""
    arrived_ns, done_ns = moments(ranks)
    count, latency_s = len(done_ns), (done_ns - arrived_ns) / 1e9
    p50, p99 = percentiles(latency_s.tolist(), (50, 99))
    calls = [turn.work.calls for turn in ranks]
    return {
        "count": count,
        "qps": count * 1e9 / float(done_ns.max() - arrived_ns.min()),
        "p50_s": p50,
        "p99_s": p99,
        "cpu_s": [turn.cpu_s / count for turn in ranks],
        "blocked_s": [turn.blocked_s / count for turn in ranks],
        "collective_s": [turn.collective_s / count for turn in ranks],
        "materialize_s": [turn.work.wall_s / max(1, turn.work.calls) for turn in ranks],
        "materialize_cpu_s": [turn.work.cpu_s / max(1, turn.work.calls) for turn in ranks],
        "materialized": [number / count for number in calls],
    }


def alone_figures(ranks: Sequence[Turn]) -> dict[str, float]:
    """Return the latency of a single request, and what of it is not the materializing of the slowest rank."""
    arrived_ns, done_ns = moments(ranks)
    latency_s = float(np.median(done_ns - arrived_ns)) / 1e9
    work_s = max(turn.work.wall_s / max(1, turn.work.calls) for turn in ranks)
    return {"alone_s": latency_s, "broadcast_s": max(0.0, latency_s - work_s)}


def percentiles(seconds: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Return percentiles as moments that some request really took, or longer: never between two, never less."""
    found: list[float] = np.percentile(seconds, wanted, method="higher").tolist()
    return found


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of every figure over the rounds; of lists, item by item."""
    found: dict[str, Any] = {}
    for name, first in rounds[0].items():
        values = [figures[name] for figures in rounds]
        found[name] = [median(v) for v in zip(*values, strict=True)] if isinstance(first, list) else median(values)
    return found


def _counted(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the means of what lazycast has timed, over all ranks and rounds (seconds)."""
    names = dict.fromkeys(name for turn in turns for name in turn.counted)
    found = {}
    for name in names:
        count = sum(turn.counted[name][0] for turn in turns)
        if count:
            found[name] = sum(turn.counted[name][1] for turn in turns) / count
    return found


def steps(ranks: Sequence[Beside]) -> dict[str, float]:
    """Put together what the schedulers of all ranks did at one time; processor times per second."""
    return {
        "steps_per_s": fmean(rank.steps / rank.seconds for rank in ranks),
        "main_cpu": sum(rank.main_cpu_s / rank.seconds for rank in ranks),
        "other_cpu": sum(rank.other_cpu_s / rank.seconds for rank in ranks),
    }


def slowdown(quiet: dict[str, float], beside: dict[str, float]) -> dict[str, float]:
    """Return how much slower schedulers are beside a way than alone, and how much of that its processor time explains.

    What the way takes from the processors, as a share of what the schedulers have when alone, they cannot have; what
    is lost `beyond` that is waiting. It is below 0 where cores are idle that the way can use.
    """
    lost = 1 - beside["steps_per_s"] / quiet["steps_per_s"]
    share = beside["other_cpu"] / quiet["main_cpu"]
    return {
        "steps_per_s_without": quiet["steps_per_s"],
        "steps_per_s": beside["steps_per_s"],
        "lost": lost,
        "cpu_cores": beside["other_cpu"],
        "cpu_share": share,
        "beyond": lost - share,
    }

"""The results of a run for people: a table of targets, and one of each row's ways, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lazycast.tools.bench import machine
from lazycast.tools.bench.making import verdicts
from lazycast.tools.bench.making.verdicts import spread, steps_per_s, worst_p99
from lazycast.tools.bench.making.ways import ABOUT, QUIET
from lazycast.tools.bench.report import seconds_text, surroundings, title

_REACHED = {True: "yes", False: "no", None: "-"}
_SECONDS = {
    "value": "10 MB: overhead per request",
    "album": "8 photos in one request",
    "hit": "10 MB again, and a small cast",
    "killed": "a helper is killed in its work: time beyond it; and until a new one is ready",
}


def busy(run: dict[str, Any]) -> bool:
    """Whether the machine was too busy for conclusions."""
    return machine.busy(run["machine"]["load_before"], run["machine"]["cores"])


def lines(run: dict[str, Any]) -> Iterator[str]:
    """Yield a run, a line of Markdown at a time."""
    plan = run["plan"]
    yield from (f"# {title(run)}: who makes values", "", surroundings(run), "")
    yield f"{plan['ranks']} ranks, {plan['helpers']} helpers, {plan['rounds']} rounds; median (10th to 90th percentile)"
    yield from ("", "| row | target | measured | reached |", "|---|---|---|---|")
    for verdict in run["verdicts"]:
        counted = verdict["row"] == "chat"  # and not timed
        reached = "machine was busy" if busy(run) and not counted else _REACHED[verdict["reached"]]
        yield f"| {verdict['row']} | {verdict['target']} | {verdict['measured']} | {reached} |"
    rows = run["rows"]
    if "scheduler" in rows:
        yield from _scheduler(rows["scheduler"], plan)
    if "photos" in rows:
        yield from ("", "## Photos a second", "", "| way | photos/s |", "|---|---|")
        for way, found in rows["photos"].items():
            one = spread(found)
            yield f"| {way} | {one.median:.1f} ({one.p10:.1f} to {one.p90:.1f}) |"
    for name, said in _SECONDS.items():
        if name in rows:
            yield from ("", f"## {said}", "", "| way | time |", "|---|---|")
            for way, found in rows[name].items():
                one = spread(found)
                low, high = seconds_text(one.p10), seconds_text(one.p90)
                yield f"| {way} | {seconds_text(one.median)} ({low} to {high}, {len(found)}) |"
    if "chat" in rows:
        yield from _chat(rows["chat"])
    yield from ("", "## Ways", "")
    for way, about in ABOUT.items():
        absent = f" (not available: {run['absent'][way]})" if way in run["absent"] else ""
        yield f"- {way}: {about}{absent}"


def _scheduler(found: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"## A scheduler on each rank, beside {plan['rate']:g} requests a second of pure Python", "")
    yield from ("| way | step p50 | step p99, the worst rank | steps/s | lost |", "|---|---|---|---|---|")
    for way, rounds in found.items():
        p50_s = spread([max(rank["p50_s"] for rank in ranks) for ranks in rounds]).median
        p99 = spread(worst_p99(rounds))
        less = "" if way == QUIET else f"{100 * spread(verdicts.lost(found, way)).median:.1f} %"
        tail = f"{seconds_text(p99.median)} ({seconds_text(p99.p10)} to {seconds_text(p99.p90)})"
        yield f"| {way} | {seconds_text(p50_s)} | {tail} | {spread(steps_per_s(rounds)).median:.0f} | {less} |"


def _chat(found: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## A chat that asks for photos again", "", "| | requests/s | hits | kept | evictions |")
    yield "|---|---|---|---|---|"
    for way, said in found.items():
        if way == "lazycast-shard":
            yield f"| {way} | {said['qps']:.1f} | | | |"
            continue
        rate = f"{said['qps']:.1f}" if "qps" in said else ""
        kept = f"{said['values']} values, {said['nbytes'] / 2**20:.1f} MiB"
        yield f"| {way} | {rate} | {said['hits']} | {kept} | {said['evictions']} |"

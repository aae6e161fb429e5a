"""The results of a run for people: tables on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from lazycast.tools.bench.qps.ways import WAYS
from lazycast.tools.bench.report import seconds_text, surroundings, title

_WIDE = 170  # columns that the widest table takes

NOTE = (
    "A request is done when the last rank has its value. Figures are medians over the rounds; times are per request. "
    "of ideal: QPS as a share of cores / (processor time of one materialization, with all "
    "cores at it and at nothing else). p50, p99: latency, from "
    "arrival. alone: latency of one request at a time. broadcast: of that, what is not materializing. "
    "blocked: time the main thread spends in the call that starts a request, on the root, and on the rank where it is "
    "longest. CPU: processor time for a request, of one rank. CPU of all: that of all ranks, divided by the time of "
    "one materialization. materialize: time of one, beside everything else. "
    "made: how many the ranks make of each value."
)
SLOWDOWN_NOTE = (
    "Scheduler beside a way: steps of a main thread that never rests, per second and rank, without and with requests "
    "at a modest rate. lost: the slowdown. CPU: cores that all ranks use beside the steps, and as a share of what the "
    "steps use without. beyond: what is lost and not explained by that share."
)


class Table(NamedTuple):
    """One table: its title, its headings, and its rows, whose first cell names a way."""

    title: str
    headings: tuple[str, ...]
    rows: list[list[str]]


HEADINGS = (
    "way",
    "QPS",
    "of ideal",
    "p50",
    "p99",
    "alone",
    "broadcast",
    "blocked root",
    "others",
    "CPU",
    "CPU of all",
    "materialize",
    "made",
)
SLOWDOWN_HEADINGS = ("way", "steps/s without", "with", "lost", "CPU", "share", "beyond")


def load(run: dict[str, Any]) -> str:
    """Say in a line how requests arrived."""
    plan = run["plan"]
    how = f"{plan['rate']:g} requests/s (open loop)" if plan["rate"] else f"{plan['concurrency']} outstanding"
    return f"{how}, {plan['rounds']} rounds of {plan['seconds']:g} s for each way"


def tables(workload: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of a workload, as text. A way that is not available has its reason in place of figures."""
    ways = workload["ways"]
    found = (
        f"{workload['workload']}: {workload['about']}; one materialization {seconds_text(workload['yardstick_s'])}, "
        f"of it {seconds_text(workload['yardstick_cpu_s'])} on the processor; "
        f"ideal {_number(workload['ideal_qps'])} QPS, {workload['window']} outstanding at most"
    )
    yield Table(found, HEADINGS, [_row(way) for way in ways])
    there = [way for way in ways if way["unavailable"] is None]
    chosen = [
        [way["way"], kind["placement"], ", ".join(f"{n} {name}" for name, n in kind["casts"].items()), kind["reason"]]
        for way in there
        for kind in way["chosen"]
    ]
    if chosen:
        yield Table(f"{workload['workload']}: what was chosen", ("way", "placement", "casts", "why"), chosen)
    known = [way["way"] for way in there if way["known"]]
    if known and len(there) > 1:
        rows = [[way["way"], *(_ratio(way["qps_against"].get(other)) for other in known)] for way in there]
        yield Table(f"{workload['workload']}: QPS as a multiple of", ("way", *known), rows)
    rows = [_slowdown(way) for way in there if "slowdown" in way]
    if rows:
        name = f"{workload['workload']}: the scheduler beside {_number(workload['slowdown_rate'])} requests/s"
        yield Table(name, SLOWDOWN_HEADINGS, rows)


def _row(way: dict[str, Any]) -> list[str]:
    if way["unavailable"] is not None:
        return [way["way"], f"not available: {way['unavailable']}"]
    blocked, made = way["blocked_s"], way["materialized"]
    worked = [seconds for seconds, calls in zip(way["materialize_s"], made, strict=True) if calls]
    return [
        way["way"],
        _number(way["qps"]),
        f"{way['of_ideal']:.1%}",
        *(seconds_text(way[name]) for name in ("p50_s", "p99_s", "alone_s", "broadcast_s")),
        seconds_text(blocked[0]),
        seconds_text(max(blocked[1:])) if blocked[1:] else "-",
        seconds_text(fmean(way["cpu_s"])),
        f"{way['cpu_in_materializations']:.2f}",
        seconds_text(fmean(worked)) if worked else "-",
        f"{sum(made):.2f}",
    ]


def _slowdown(way: dict[str, Any]) -> list[str]:
    found = way["slowdown"]
    return [
        way["way"],
        _number(found["steps_per_s_without"]),
        _number(found["steps_per_s"]),
        _percent(found["lost"]),
        f"{found['cpu_cores']:.2f}",
        _percent(found["cpu_share"]),
        _percent(found["beyond"]),
    ]


def _percent(share: float) -> str:
    return f"{round(share, 3) + 0.0:.1%}"  # adding 0 makes -0 plain


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _number(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def legend(run: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each way of the run: its name and what it is."""
    for name in dict.fromkeys(way["way"] for workload in run["workloads"] for way in workload["ways"]):
        if name in WAYS:  # a file may be of a version with others
            yield f"{name}: {WAYS[name].about}"


def notes(slowdown: bool) -> Iterator[str]:
    """Yield what the headings mean; those of the scheduler only if it was watched."""
    yield NOTE
    if slowdown:
        yield SLOWDOWN_NOTE


def print_run(run: dict[str, Any]) -> None:
    """Print a run on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Shown

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # a file has no edge at which to break lines
    console.print(f"[bold]{title(run)}: requests[/]\n{surroundings(run)}\n{load(run)}")
    for line in (*notes(bool(run["plan"]["slowdown_s"])), *legend(run)):
        console.print(line, style="dim")
    for workload in run["workloads"]:
        for table in tables(workload):
            shown = Shown(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for heading in table.headings:
                shown.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
            missing = [row for row in table.rows if len(row) < len(table.headings)]
            for row in table.rows:
                if row not in missing:
                    shown.add_row(*row, style=None if WAYS[row[0]].known else "bold")
            console.print(shown)
            for way, reason in missing:
                console.print(f"{way}: {reason}", markup=False)


def markdown(run: dict[str, Any], *, plot: str | None = None) -> str:
    """Return a run as Markdown.

    Args:
        plot: the path of its picture, to be shown in it.
    """
    lines = [f"# {title(run)}: requests", "", surroundings(run), "", load(run), ""]
    for note in notes(bool(run["plan"]["slowdown_s"])):
        lines += [note, ""]
    lines += [*(f"- {line}" for line in legend(run)), ""]
    if plot:
        lines += [f"![QPS, latency and CPU by way]({plot})", ""]
    for workload in run["workloads"]:
        lines += [f"## {workload['workload']}", ""]
        for table in tables(workload):
            width = len(table.headings)
            lines += [f"{table.title}:", "", _line(table.headings), _line(["---", *["---:"] * (width - 1)])]
            lines += [_line([*row, *[""] * (width - len(row))]) for row in table.rows]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

"""The results of a run for people: tables on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from lazycast.tools.bench.report import seconds_text, surroundings
from lazycast.tools.bench.sglang.ways import INPUTS, REQUESTS

NOTE = (
    "Medians over the rounds. entry: a call's time on the entry rank. others: on the other ranks, mean. last: on the "
    "rank where it is longest. ratio: of the time before it to that with lazycast. QPS: calls in a row. CPU: "
    "processor time of all ranks for one call."
)
HEADINGS = ("request", "way", "entry", "ratio", "others", "last", "ratio", "QPS", "CPU")
_OURS = ("lazycast", "lazycast-requests")
_WIDE = 120


def title(run: dict[str, Any]) -> str:
    """Say in a line what a run measured."""
    versions = run["versions"]
    return f"lazycast {versions['lazycast']} with SGLang {versions['sglang']}"


def tables(run: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the title and the rows of each table."""
    for ranks in run["plan"]["ranks"]:
        for what, kinds in (("inputs", ("inputs", "splitting")), ("whole requests", ("requests",))):
            cells = [cell for cell in run["cells"] if cell["ranks"] == ranks and cell["kind"] in kinds]
            if cells:
                yield f"{ranks} ranks, {what}", [row for cell in cells for row in _rows(cell)]


def _rows(cell: dict[str, Any]) -> Iterator[list[str]]:
    ours = next(cell["ways"][name] for name in _OURS if name in cell["ways"])
    text = cell["text"]
    for name, found in cell["ways"].items():
        entry, *others = found["call_s"]
        yield [
            text,
            name,
            seconds_text(entry),
            "" if name in _OURS else ratio_text(entry / ours["call_s"][0]),
            seconds_text(fmean(others)),
            seconds_text(found["last_s"]),
            "" if name in _OURS else ratio_text(found["last_s"] / ours["last_s"]),
            f"{found['qps']:.0f}" if found["qps"] >= 100 else f"{found['qps']:.3g}",
            seconds_text(found["cpu_s"]),
        ]
        text = ""


def ratio_text(ratio: float) -> str:
    """Return a ratio as tables have it: 3.965 is not 4.0."""
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.1f}"


def _legend() -> Iterator[str]:
    for name, about in {**INPUTS, **REQUESTS}.items():
        yield f"{name}: {about}"


def print_run(run: dict[str, Any]) -> None:
    """Print a run on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(f"[bold]{title(run)}[/]\n{surroundings(run)}")
    for line in (NOTE, *_legend()):
        console.print(line, style="dim")
    for name, rows in tables(run):
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row, style="bold" if row[1] in _OURS else None)
        console.print(table)


def markdown(run: dict[str, Any]) -> str:
    """Return a run as Markdown."""
    lines = [f"# {title(run)}", "", surroundings(run), "", NOTE, "", *(f"- {line}" for line in _legend()), ""]
    for name, rows in tables(run):
        lines += [f"## {name}", "", _line(HEADINGS), _line(["---", "---", *["---:"] * (len(HEADINGS) - 2)])]
        lines += [*(_line(row) for row in rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

"""The results of the loop for people: tables on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lazycast.tools.bench.report import seconds_text, surroundings
from lazycast.tools.bench.sglang_loop.plan import SIZES, WAYS

NOTE = (
    "Medians over the rounds. QPS: requests with images that ended. Latency and first: of these requests, from when "
    "the tokenizer has them, and its hashing if it hashes. Gap: between two tokens of a text that decodes beside them. "
    "Held: how long one call of the entry rank's loop takes in which there is such a request, and all these calls for "
    "each request. Idle: of the stand-in for the GPU. CPU: processor time of both ranks for each request."
)
HEADINGS = (
    *("load", "way", "QPS", "of rounds", "latency p50", "p99", "first p50", "gap p99", "held p50", "each"),
    *("idle", "CPU"),
)
_WIDE = 150


def title(run: dict[str, Any]) -> str:
    """Say in a line what a run measured."""
    versions = run["versions"]
    loop = "overlap" if run["plan"]["overlap"] else "normal"
    return f"lazycast {versions['lazycast']} in the {loop} loop of SGLang {versions['sglang']}"


def tables(run: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the title and the rows of each table."""
    for name in run["plan"]["sizes"]:
        size = SIZES[name]
        nbytes = size.images * size.side**2 * 1176 * 4
        rows = [row for cell in run["cells"] if cell["size"] == name for row in _rows(cell)]
        yield f"{name}: {size.images} image{'s' if size.images > 1 else ''}, {nbytes / 1e6:.1f} MB", rows


def _rows(cell: dict[str, Any]) -> Iterator[list[str]]:
    text = cell["load"]
    for name, found in cell["ways"].items():
        yield [
            text,
            name,
            f"{found['qps']:.1f}",
            f"{min(found['qps_of_rounds']):.1f}-{max(found['qps_of_rounds']):.1f}",
            *(seconds_text(found[f"{what}_s"]) for what in ("latency_p50", "latency_p99", "first_p50", "gap_p99")),
            *(seconds_text(found[f"held_{what}_s"]) for what in ("p50", "each")),
            f"{100 * found['idle']:.0f} %",
            seconds_text(found["cpu_s"]),
        ]
        text = ""


def _legend(run: dict[str, Any]) -> Iterator[str]:
    for name in run["plan"]["ways"]:
        yield f"{name}: {WAYS[name].about}"


def print_run(run: dict[str, Any]) -> None:
    """Print a run on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(f"[bold]{title(run)}[/]\n{surroundings(run)}")
    for line in (NOTE, *_legend(run)):
        console.print(line, style="dim")
    for name, rows in tables(run):
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(run: dict[str, Any]) -> str:
    """Return a run as Markdown."""
    lines = [f"# {title(run)}", "", surroundings(run), "", NOTE, "", *(f"- {line}" for line in _legend(run)), ""]
    for name, rows in tables(run):
        lines += [f"## {name}", "", _line(HEADINGS), _line(["---", "---", *["---:"] * (len(HEADINGS) - 2)])]
        lines += [*(_line(row) for row in rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

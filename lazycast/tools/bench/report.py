"""The results of a run for people: a table on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from lazycast.tools.bench import machine
from lazycast.tools.bench.plan import COLUMNS, MEMORY_COLUMNS, MIB, size_text

if TYPE_CHECKING:
    from rich.console import Console

_REFERENCE = "lazycast"
_WIDE = 135  # columns of a terminal that has room for spreads
HEADINGS = ("size", "way", "rounds", *(h for column in COLUMNS for h in (column, "ratio")))
MEMORY_HEADINGS = (
    *("payload", "size", "way"),
    *(f"{who}, {column}" for column in MEMORY_COLUMNS for who in ("root", "others")),
    "shared",
)
_KINDS = {
    "array": "NumPy array",
    "tensor": "torch tensor",
    "images": "dict of JPEG bytes",
    "nested": "nested dict of many small things",
}


def seconds_text(seconds: float) -> str:
    """Return a time with three significant digits and its unit."""
    factor, unit = next(((f, u) for f, u in ((1e6, "µs"), (1e3, "ms")) if seconds * f < 999.5), (1.0, "s"))
    scaled = seconds * factor
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {unit}"


def title(run: dict[str, Any]) -> str:
    """Say in a line what a run measured."""
    plan = run["plan"]
    return f"lazycast {run['versions']['lazycast']}, {plan['ranks']} ranks, {plan['backend']} backend"


def surroundings(run: dict[str, Any]) -> str:
    """Say in a line when and on what a run ran."""
    box, versions = run["machine"], run["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "lazycast")
    return (
        f"{run['date']}; {box['cores']} cores of {box['cpu']}, {box['memory_gib']:g} GiB, Linux {box['kernel']}, "
        f"load {box['load_before']:g} before; {libraries}"
    )


def warning(run: dict[str, Any]) -> str | None:
    """Say that a run was made on a busy machine, and what that means; None if it was not."""
    load, cores = run["machine"]["load_before"], run["machine"]["cores"]
    if not machine.busy(load, cores):
        return None
    return (
        f"The machine was busy before the run began (load {load:g} on {cores} cores): no conclusions. "
        "Measure again on a quiet machine."
    )


def figures(run: dict[str, Any]) -> Iterator[str]:
    """Yield the figures that stand alone, and what was not measured, a line each."""
    found = run["figures"]
    if "async_blocked" in found:
        blocked = found["async_blocked"]
        spread = f"{seconds_text(blocked['p10_s'])} to {seconds_text(blocked['p90_s'])}, {blocked['count']} calls"
        yield (
            f"broadcast_async of {size_text(blocked['nbytes'])} holds its caller up for "
            f"{seconds_text(blocked['median_s'])} ({spread})"
        )
    if "idle_cpu_fraction" in found:
        parts = ", ".join(f"{fraction:.2%}" for fraction in found["idle_cpu_fraction"])
        own = found.get("idle_threads_fraction")  # older runs do not say
        threads = f", lazycast's threads {', '.join(f'{fraction:.2%}' for fraction in own)}" if own else ""
        yield f"idle ranks, in rank order, take {parts} of a core{threads}"
    for way, reason in run.get("absent", {}).items():  # older runs do not say
        yield f"not measured: {way} ({reason})"


def kind_name(kind: str) -> str:
    """Return what to call a kind of payload."""
    return _KINDS.get(kind, kind)


def kinds(run: dict[str, Any]) -> dict[str, str]:
    """Return the kinds of payload a run has measured, and what to call them."""
    return {kind: kind_name(kind) for kind in dict.fromkeys(result["kind"] for result in run["results"])}


def rows(run: dict[str, Any], kind: str, *, spreads: tuple[str, ...] = COLUMNS) -> Iterator[tuple[int, list[str]]]:
    """Yield one kind's results as (size, cells under `HEADINGS`), in the order of the run.

    Args:
        spreads: the columns whose medians have their percentiles beside them.
    """
    table: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for result in run["results"]:
        if result["kind"] == kind:
            table.setdefault((result["nbytes"], result["way"]), {})[result["column"]] = result
    for (nbytes, way), columns in table.items():
        reference = table.get((nbytes, _REFERENCE))
        cells = [size_text(nbytes), way, str(columns[COLUMNS[0]]["count"])]
        for column in COLUMNS:
            if column not in columns:
                cells += ["-", "-"]
                continue
            result = columns[column]
            spread = f" ({seconds_text(result['p10_s'])} to {seconds_text(result['p90_s'])})"
            ratio = f"{result['median_s'] / reference[column]['median_s']:.2f}" if reference else "-"
            cells += [seconds_text(result["median_s"]) + (spread if column in spreads else ""), ratio]
        yield nbytes, cells


NOTE = (
    "Times from the root's call until the last rank holds the value, has read every byte of it, has overwritten every "
    "byte of it: median (10th to 90th percentile). A ratio is to lazycast's median: above 1 the way takes longer."
)


MEMORY_NOTE = (
    "Private memory that the root, and the worst other rank, needed at most for one broadcast beyond what they held "
    "before, by what was done with the value: in multiples of the payload. Shared: what all ranks together have taken "
    "of shared memory for this way, by then; an arena keeps what it has grown to."
)


def memory_rows(run: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield what was seen of memory as (kind and size, cells under `MEMORY_HEADINGS`), in the order of the run."""
    table: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = {}
    for need in run.get("memory", ()):  # older runs have none
        table.setdefault((need["kind"], need["nbytes"], need["way"]), {})[need["column"]] = need
    for (kind, nbytes, way), columns in table.items():
        cells = [kind_name(kind), size_text(nbytes), way]
        for column in MEMORY_COLUMNS:
            need = columns.get(column)
            cells += [f"{need[who] / nbytes:.2f}" if need else "-" for who in ("root_nbytes", "others_nbytes")]
        shared_nbytes = max(need["shared_nbytes"] for need in columns.values())
        cells.append(f"{shared_nbytes / MIB:.0f} MiB" if shared_nbytes else "-")
        yield f"{kind} {nbytes}", cells


def print_run(run: dict[str, Any]) -> None:
    """Print a run on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 150)  # a file has no edge at which to break lines
    if (said := warning(run)) is not None:
        console.print(f"[bold red]{said}[/]")
    console.print(f"[bold]{title(run)}[/]\n{surroundings(run)}\n{NOTE}")
    wide = console.width >= _WIDE
    for kind, name in kinds(run).items():
        shape, padding = (box.HEAVY_HEAD, (0, 1)) if wide else (box.SIMPLE_HEAD, (0, 1, 0, 0))
        table = Table(title=name, title_justify="left", box=shape, padding=padding)
        for heading in HEADINGS if wide else HEADINGS[:2] + HEADINGS[3:]:
            justify: Literal["left", "right"] = "left" if heading in ("size", "way") else "right"
            table.add_column(heading, justify=justify, no_wrap=heading != "way", overflow="fold")
        before = None
        for nbytes, cells in rows(run, kind, spreads=COLUMNS[:1] if wide else ()):
            if before not in (None, nbytes):
                table.add_section()
            row = cells if wide else cells[:2] + cells[3:]
            table.add_row(*row, style="bold" if cells[1] == _REFERENCE else None)
            before = nbytes
        console.print(table)
    if run.get("memory"):
        _print_memory(run, console)
    for line in figures(run):
        console.print(line)


def _print_memory(run: dict[str, Any], console: Console) -> None:
    from rich import box
    from rich.table import Table

    console.print(MEMORY_NOTE)
    table = Table(title="memory", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in MEMORY_HEADINGS:
        table.add_column(heading, justify="left" if heading in MEMORY_HEADINGS[:3] else "right", overflow="fold")
    before = None
    for group, cells in memory_rows(run):
        if before not in (None, group):
            table.add_section()
        table.add_row(*cells, style="bold" if cells[2] == _REFERENCE else None)
        before = group
    console.print(table)


def markdown(run: dict[str, Any], *, plot: str | None = None) -> str:
    """Return a run as Markdown.

    Args:
        plot: the path of its picture, to be shown in it.
    """
    lines = [f"# {title(run)}", ""]
    if (said := warning(run)) is not None:
        lines += [f"**{said}**", ""]
    if plot:
        lines += [f"![time over size]({plot})", ""]
    lines += [surroundings(run), "", NOTE, ""]
    for kind, name in kinds(run).items():
        lines += [f"## {name}", "", _line(HEADINGS), _line(["---", "---", *["---:"] * (len(HEADINGS) - 2)])]
        lines += [_line(cells) for _, cells in rows(run, kind)]
        lines.append("")
    if run.get("memory"):
        lines += ["## Memory", "", MEMORY_NOTE, ""]
        lines += [_line(MEMORY_HEADINGS), _line(["---"] * 3 + ["---:"] * (len(MEMORY_HEADINGS) - 3))]
        lines += [_line(cells) for _, cells in memory_rows(run)]
        lines.append("")
    lines += [f"- {line}" for line in figures(run)]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

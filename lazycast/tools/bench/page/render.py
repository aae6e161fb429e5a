"""The page from a folder: everything that goes into the template, and the template filled in.

Guarantees: whatever stands in a file is escaped; the page asks the network for nothing and runs nothing, which it also
says to the browser (Content-Security-Policy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from lazycast.tools.bench import machine, report
from lazycast.tools.bench.page import charts, requests, scaling, times
from lazycast.tools.bench.page.advice import Advice
from lazycast.tools.bench.page.files import Folder, Read, read
from lazycast.tools.bench.page.records import RequestsRun, TimesRun
from lazycast.tools.bench.qps import report as qps_report
from lazycast.tools.bench.sglang import report as sglang_report
from lazycast.version import __version__

NAME = "report.html"

#: Takes the share that is done, and what comes next.
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Table:
    """A table of the page. `texts`: so many columns from the left are no numbers."""

    title: str
    headings: tuple[str, ...]
    rows: list[list[str]]
    texts: int = 1

    @property
    def lines(self) -> Iterator[tuple[bool, list[str]]]:
        """Yield each row, and whether it is of lazycast."""
        for row in self.rows:
            yield any(cell.startswith("lazycast") for cell in row[: self.texts]), row


@dataclass(frozen=True)
class Section:
    """One run, or one workload of it: plots, and the figures behind them."""

    title: str
    about: str
    source: str
    svgs: list[str]
    tables: list[Table]
    notes: tuple[str, ...] = ()


def write(folder: Path, path: Path, tell: Tell) -> Folder:
    """Make the page of a folder; return what was found there.

    Args:
        tell: is told of the progress: plots take their time.
    Raises: OSError if the folder cannot be read or the page not be written.
    """
    found = read(folder)
    path.write_text(html(found, tell), encoding="utf-8")
    return found


def _nobody(share: float, what: str) -> None:
    """Be told, and do nothing."""


def html(found: Folder, tell: Tell = _nobody) -> str:
    """Return the page of what was found in a folder."""
    from jinja2 import Environment, StrictUndefined

    here = resources("lazycast.tools.bench.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(here.joinpath("page.html.j2").read_text("utf-8"))
    scales = list(scaling.scalings(found))
    calm = found.without(_busy)
    sections: dict[str, list[Section]] = {}
    number = max(1, len(list(found.all())))
    for index, one in enumerate(found.all()):
        tell(index / number, f"drawing {one.name}")
        sections[one.name] = list(_sections(one))
    tell(1.0, "writing the page")
    return template.render(
        style=here.joinpath("page.css").read_text("utf-8"),
        version=__version__,
        made=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        runs=[_about(one) for one in found.all()],
        headline=_headline(found),
        busy=[one.name for one in found.all() if _busy(one)],
        advice=_by_subject(_advice(calm, list(scaling.scalings(calm)), most=True)),
        more_advice=_by_subject(_advice(calm, [], most=False)),
        times=[section for one in found.times for section in sections[one.name]],
        times_notes=report.NOTE,
        memory_note=report.MEMORY_NOTE,
        requests=[section for one in found.requests for section in sections[one.name]],
        requests_notes=qps_report.notes(any(one.run.plan.slowdown_s for one in found.requests)),
        legend=list(_legend(found)),
        scalings=[Section(f"{s.title}, {s.backend}", s.quantity, "", [charts.scaling(s)], [_scale(s)]) for s in scales],
        sglang=[section for one in found.sglang for section in sections[one.name]],
        sglang_note=sglang_report.NOTE,
        unread=found.unread,
    )


def _busy(one: Read[Any]) -> bool:
    """Whether the machine was too busy for conclusions from a run."""
    return machine.busy(one.run.machine.load_before, one.run.machine.cores)


def _headline(found: Folder) -> tuple[str, str] | None:
    """Return the picture that comes first, and what it shows: of a calm run of requests if there is one, the newest."""
    runs = sorted(found.requests, key=lambda one: (not _busy(one), one.run.date))
    for one in reversed(runs):
        workload = next((work for work in one.workloads.values() if work.ways), None)
        if workload is not None:
            plan = one.run.plan
            return charts.headline(workload, plan.backend, plan.ranks), workload.about
    return None


def _sections(one: Read[Any]) -> Iterator[Section]:
    """Yield what the page has of one run."""
    if isinstance(one.run, TimesRun):
        yield from _times(one)
    elif isinstance(one.run, RequestsRun):
        yield from _requests(one)
    else:
        yield _sglang(one)


def _about(one: Read[Any]) -> dict[str, str]:
    """Return what is known of where a run comes from, in words."""
    run, box = one.run, one.run.machine
    if hasattr(run.plan, "backend"):
        what = "requests" if one.workloads else "time over size"
        what += f": {run.plan.ranks} ranks, {run.plan.backend} backend"
    else:
        what = f"SGLang: {', '.join(str(ranks) for ranks in run.plan.ranks)} ranks"
    return {
        "file": one.name,
        "what": what,
        "date": run.date.replace("T", " "),
        "machine": f"{box.cores} cores of {box.cpu or 'an unnamed processor'}, {box.memory_gib:g} GiB, "
        f"Linux {box.kernel}, load {box.load_before:g} before",
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        "command": run.command or "",
    }


def _advice(found: Folder, scales: list[scaling.Scaling], *, most: bool) -> Iterator[Advice]:
    """Yield what is drawn from the runs with the most ranks of each backend and benchmark, or from the others."""
    for one in _with_most_ranks(found.requests, most):
        yield from requests.advise(one.run, one.workloads)
    for times_run in _with_most_ranks(found.times, most):
        yield from times.advise(times_run.run)
    for scale in scales:
        yield from scaling.advise(scale)


def _with_most_ranks(runs: Sequence[Read[Any]], most: bool) -> Iterator[Read[Any]]:
    """Yield the newest run with the most ranks of each backend, or all others; `runs` are in that order."""
    last = {one.run.plan.backend: one for one in runs}
    for one in runs:
        if (last[one.run.plan.backend] is one) is most:
            yield one


def _by_subject(pieces: Iterator[Advice]) -> dict[str, list[Advice]]:
    """Put together what is about the same, in the order of the first of each."""
    found: dict[str, list[Advice]] = {}
    for piece in pieces:
        found.setdefault(piece.about, []).append(piece)
    return found


def _times(one: Read[Any]) -> Iterator[Section]:
    """Yield a section for each kind of payload of a run, and one for what belongs to none."""
    where = f"{one.run.plan.ranks} ranks, {one.run.plan.backend}"
    for kind, name in report.kinds(one.raw).items():
        rows = [cells for _, cells in report.rows(one.raw, kind)]
        table = Table("all figures", report.HEADINGS, rows, texts=2)
        yield Section(f"{name}: {where}", "", one.name, [charts.time_over_size(one.run, kind, name)], [table])
    lines = tuple(report.figures(one.raw))
    memory = [cells for _, cells in report.memory_rows(one.raw)]
    tables = [Table("memory", report.MEMORY_HEADINGS, memory, texts=3)] if memory else []
    if lines or tables:
        yield Section(f"Beside the broadcasts: {where}", "", one.name, [], tables, lines)


def _requests(one: Read[Any]) -> Iterator[Section]:
    for name, workload in one.workloads.items():
        plan = one.run.plan
        tables = []
        for table in qps_report.tables(workload.raw):
            texts = 4 if table.headings[1:2] == ("placement",) else 1
            tables.append(Table(table.title, table.headings, table.rows, texts))
        svgs = [charts.requests(workload, plan.backend, plan.ranks)] if workload.ways else []
        notes = () if workload.ways else ("No way ran: the table says why.",)
        title = f"{name}: {plan.ranks} ranks, {plan.backend}"
        yield Section(title, f"{workload.about}; {qps_report.load(one.raw)}", one.name, svgs, tables, notes)


def _legend(found: Folder) -> Iterator[str]:
    raws = [one.raw for one in found.requests]
    return iter(dict.fromkeys(line for raw in raws for line in qps_report.legend(raw)))


def _scale(found: scaling.Scaling) -> Table:
    headings = ("way", *(f"{ranks} ranks" for ranks in found.ranks))
    return Table("all figures", headings, [[way, *(found.cell(way, n) for n in found.ranks)] for way in found.lines])


def _sglang(one: Read[Any]) -> Section:
    title = f"SGLang {one.run.versions.get('sglang', 'of an unknown version')}"
    found = [Table(name, sglang_report.HEADINGS, rows, texts=2) for name, rows in sglang_report.tables(one.raw)]
    return Section(title, "", one.name, [], found)

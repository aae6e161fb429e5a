"""The same runs over numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazycast.tools.bench.page.advice import Advice, number, times
from lazycast.tools.bench.page.files import Folder
from lazycast.tools.bench.page.records import RequestsRun, TimesRun
from lazycast.tools.bench.plan import size_text
from lazycast.tools.bench.report import kind_name, seconds_text


@dataclass(frozen=True)
class Scaling:
    """One figure of every way over numbers of ranks.

    Attributes:
        title: what was measured.
        backend: on which backend.
        quantity: what the numbers are; `rates` are the better for being higher, times for being lower.
        lines: by way, (ranks, figure) in order.
    """

    title: str
    backend: str
    quantity: str
    rates: bool
    lines: dict[str, list[tuple[int, float]]]

    @property
    def ranks(self) -> list[int]:
        return sorted({ranks for line in self.lines.values() for ranks, _ in line})

    def cell(self, way: str, ranks: int) -> str:
        """Return a figure as text."""
        found = dict(self.lines[way]).get(ranks)
        if found is None:
            return "-"
        return number(found) if self.rates else seconds_text(found)


def scalings(folder: Folder) -> Iterator[Scaling]:
    """Yield what was measured with several numbers of ranks on one backend; of equal runs, the last one counts."""
    times_of: dict[str, dict[int, TimesRun]] = {}
    for read in folder.times:
        times_of.setdefault(read.run.plan.backend, {})[read.run.plan.ranks] = read.run
    for backend, runs in times_of.items():
        if len(runs) > 1:
            yield from _times(backend, [runs[ranks] for ranks in sorted(runs)])
    requests_of: dict[str, dict[int, tuple[RequestsRun, dict[str, dict[str, float]]]]] = {}
    for one in folder.requests:
        qps = {name: {way.way: way.qps for way in work.ways.values()} for name, work in one.workloads.items()}
        requests_of.setdefault(one.run.plan.backend, {})[one.run.plan.ranks] = (one.run, qps)
    for backend, found in requests_of.items():
        if len(found) > 1:
            yield from _requests(backend, {ranks: found[ranks][1] for ranks in sorted(found)})


def _times(backend: str, runs: Sequence[TimesRun]) -> Iterator[Scaling]:
    """Yield one for the largest size that all runs have of each kind."""
    cells = [{(r.kind, r.nbytes) for r in run.results if r.column == "holds"} for run in runs]
    common = set.intersection(*cells)
    for kind in dict.fromkeys(result.kind for result in runs[0].results):
        sizes = [nbytes for name, nbytes in common if name == kind]
        if not sizes:
            continue
        lines: dict[str, list[tuple[int, float]]] = {}
        for run in runs:
            for r in run.results:
                if (r.kind, r.nbytes, r.column) == (kind, max(sizes), "holds"):
                    lines.setdefault(r.way, []).append((run.plan.ranks, r.median_s))
        title = f"{kind_name(kind)} of {size_text(max(sizes))}"
        yield Scaling(title, backend, "time until the last rank holds it", False, lines)


def _requests(backend: str, runs: dict[int, dict[str, dict[str, float]]]) -> Iterator[Scaling]:
    common = set.intersection(*(set(workloads) for workloads in runs.values()))
    for name in dict.fromkeys(name for workloads in runs.values() for name in workloads):
        lines: dict[str, list[tuple[int, float]]] = {}
        for ranks, workloads in runs.items() if name in common else ():
            for way, qps in workloads[name].items():
                lines.setdefault(way, []).append((ranks, qps))
        if lines:
            yield Scaling(name, backend, "requests a second", True, lines)


def advise(scaling: Scaling) -> Iterator[Advice]:
    """Say what becomes of the best way of each side from the fewest ranks to the most."""
    few, many = scaling.ranks[0], scaling.ranks[-1]
    whole = {way: dict(line) for way, line in scaling.lines.items() if {few, many} <= set(dict(line))}
    ours = {way: line for way, line in whole.items() if way.startswith("lazycast")}
    others = {way: line for way, line in whole.items() if way not in ours and way != "one memcpy"}
    if not ours or not others:
        return
    better = max if scaling.rates else min
    mine, theirs = (better(ways, key=lambda way: ways[way][many]) for ways in (ours, others))
    mine = next((way for way in ("lazycast", "lazycast-auto") if way in ours), mine)  # as it comes, if it was measured
    gains = [
        (ours[mine][ranks] / others[theirs][ranks]) ** (1 if scaling.rates else -1) for ranks in (few, many)
    ]  # how often better
    said = [
        f"{way} {scaling.cell(way, few)} with {few} ranks and {scaling.cell(way, many)} with {many}"
        for way in (mine, theirs)
    ]
    winner = mine if gains[1] >= 1 else theirs
    yield Advice(
        f"{scaling.title}, {few} to {many} ranks, {scaling.backend}",
        f"{winner} with {many} ranks",
        f"{scaling.quantity}: {'; '.join(said)}. lazycast is {times(gains[0])} as fast with {few} ranks, "
        f"{times(gains[1])} with {many}.",
    )

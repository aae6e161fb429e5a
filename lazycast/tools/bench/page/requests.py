"""What to choose, from requests under load: who materializes, whether lazycast pays, and what the scheduler feels."""

from __future__ import annotations

from collections.abc import Iterator

from lazycast.tools.bench.page.advice import EQUAL, Advice, apart, number, times
from lazycast.tools.bench.page.records import RequestsRun, Way, Workload
from lazycast.tools.bench.report import seconds_text

_OURS = "lazycast-"
_AUTO = "lazycast-auto"


def advise(run: RequestsRun, workloads: dict[str, Workload]) -> Iterator[Advice]:
    """Yield what a run says, workload by workload."""
    for workload in workloads.values():
        about = f"{workload.name}, {run.plan.ranks} ranks, {run.plan.backend}"
        ours = [way for way in workload.ways.values() if not way.known and way.way.startswith(_OURS)]
        known = [way for way in workload.ways.values() if way not in ours]
        yield from _placement(ours, about)
        yield from _peers(ours, known, about)
        yield from _latency(ours, about)
        yield from _scheduler(ours, known, about)


def _qps(way: Way) -> list[float]:
    return [each.qps for each in way.rounds]


def _p99(way: Way) -> list[float]:
    return [each.p99_s for each in way.rounds]


def placement(way: Way) -> str:
    """Return what to write for a way: `placement="shard"`."""
    return f'placement="{way.way.removeprefix(_OURS)}"'


def _differ(one: Way, other: Way) -> bool:
    """Whether their QPS differ in every round."""
    return apart(_qps(one), _qps(other))


def _placement(ours: list[Way], about: str) -> Iterator[Advice]:
    fixed = sorted((way for way in ours if way.way != _AUTO), key=lambda way: -way.qps)
    auto = next((way for way in ours if way.way == _AUTO), None)
    if not fixed:
        return
    best = fixed[0]
    line = ", ".join(f"{way.way.removeprefix(_OURS)} {number(way.qps)}" for way in fixed)
    if auto is None:
        if len(fixed) > 1:
            even = [way for way in fixed[1:] if not _differ(best, way)]
            names = " or ".join(placement(way) for way in [best, *even])
            yield Advice(about, names, f"Requests a second: {line}. Automatic choice was not measured.")
        return
    chose = ""
    if auto.chosen:
        last = auto.chosen[-1]
        chose = f" What it chose last: {last.reason}."
    if not _differ(auto, best) or auto.qps > best.qps:
        yield Advice(
            about,
            'placement="auto", the default',
            f"{number(auto.qps)} requests a second; with a fixed placement: {line}.{chose}",
        )
    else:
        yield Advice(
            about,
            placement(best),
            f"Requests a second: {line}; the automatic choice reached {number(auto.qps)} only.{chose}",
        )


def _peers(ours: list[Way], known: list[Way], about: str) -> Iterator[Advice]:
    if not ours or not known:
        return
    best, other = (max(ways, key=lambda way: way.qps) for ways in (ours, known))
    cpu = (
        f"of processor time, all ranks spend {best.cpu_in_materializations:.1f} materializations on a request, "
        f"against {other.cpu_in_materializations:.1f}"
    )
    figures = f"{number(best.qps)} requests a second with {placement(best)}, {number(other.qps)} with {other.way}"
    if not _differ(best, other):
        yield Advice(about, f"lazycast or {other.way}: speed does not decide", f"{figures}; {cpu}.")
    elif best.qps > other.qps:
        yield Advice(
            about,
            f"lazycast rather than {other.way}, the best of the other ways",
            f"{figures}: {times(best.qps / other.qps)} as many; {cpu}.",
        )
    else:
        yield Advice(about, f"{other.way} rather than lazycast", f"{figures}; {cpu}.")


def _latency(ours: list[Way], about: str) -> Iterator[Advice]:
    """Name a placement whose slowest requests are clearly faster than those of the one with most requests."""
    if len(ours) < 2:
        return
    most = max(ours, key=lambda way: way.qps)
    calm = min(ours, key=lambda way: way.p99_s)
    if calm is not most and apart(_p99(calm), _p99(most)) and calm.p99_s < most.p99_s:
        yield Advice(
            about,
            f"{placement(calm)} where the slowest requests matter more than their number",
            f"p99 {seconds_text(calm.p99_s)} at {number(calm.qps)} requests a second, against "
            f"{seconds_text(most.p99_s)} at {number(most.qps)} with {placement(most)}.",
        )


def _scheduler(ours: list[Way], known: list[Way], about: str) -> Iterator[Advice]:
    """Say what each side takes from a main thread that never rests."""
    measured = [[way for way in ways if way.slowdown is not None] for ways in (ours, known)]
    if not all(measured):
        return
    best, other = (min(ways, key=lambda way: way.slowdown.lost if way.slowdown else 1.0) for ways in measured)
    assert best.slowdown is not None
    assert other.slowdown is not None
    figures = (
        f"Beside {placement(best)} a scheduler that never rests loses {best.slowdown.lost:.1%} of its steps, "
        f"beside {other.way} {other.slowdown.lost:.1%}; the call that starts a request holds the root up for "
        f"{seconds_text(best.blocked_s[0])} and {seconds_text(other.blocked_s[0])}."
    )
    gap = best.slowdown.lost - other.slowdown.lost
    if abs(gap) < EQUAL:
        choose = "whichever: the scheduler feels no difference"
    else:
        choose = f"{placement(best)} for the scheduler's sake" if gap < 0 else f"{other.way} for the scheduler's sake"
    yield Advice(about, choose, figures)

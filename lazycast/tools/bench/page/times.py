"""What to choose, from how long one broadcast takes by size: whether it pays, what agreement costs, which values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazycast.tools.bench.page.advice import Advice, apart, listed, times
from lazycast.tools.bench.page.records import Result, TimesRun
from lazycast.tools.bench.plan import size_text
from lazycast.tools.bench.report import kind_name, seconds_text

OURS, NO_AGREE, COPY, LEAST = "lazycast", "lazycast agree=False", "lazycast values=copy", "one memcpy"
#: A smaller share of a cast is not worth a decision.
_COSTLY = 0.1

#: By (way, column): the results of one kind of payload, by size.
_Table = dict[tuple[str, str], dict[int, Result]]


def advise(run: TimesRun) -> Iterator[Advice]:
    """Yield what a run says."""
    for kind in dict.fromkeys(result.kind for result in run.results):
        table: _Table = {}
        for result in run.results:
            if result.kind == kind:
                table.setdefault((result.way, result.column), {})[result.nbytes] = result
        about = f"{kind_name(kind)}, {run.plan.ranks} ranks, {run.plan.backend}"
        yield from _peers(table, about)
        yield from _agreement(table, about)
        yield from _values(table, about)
    yield from _caller(run)


def _spread(result: Result) -> tuple[float, float]:
    return result.p10_s, result.p90_s


def _runs(sizes: Sequence[int], among: Sequence[int]) -> str:
    """Say which sizes, as ranges of those that were measured."""
    parts: list[list[int]] = []
    for size in among:
        if size in sizes:
            before = among.index(size) - 1
            if parts and before >= 0 and parts[-1][-1] == among[before]:
                parts[-1].append(size)
            else:
                parts.append([size])
    return listed([size_text(p[0]) if len(p) == 1 else f"{size_text(p[0])} to {size_text(p[-1])}" for p in parts])


def _peers(table: _Table, about: str) -> Iterator[Advice]:
    """Compare with every other way until the last rank holds the value."""
    ours = table.get((OURS, "holds"), {})
    for (way, column), found in table.items():
        if column != "holds" or way.startswith(OURS) or way == LEAST:
            continue
        sizes = sorted(set(ours) & set(found))
        if not sizes:
            continue
        ratios = {size: found[size].median_s / ours[size].median_s for size in sizes}
        different = [size for size in sizes if apart(_spread(ours[size]), _spread(found[size]))]
        faster = [size for size in different if ratios[size] > 1]
        slower = [size for size in different if ratios[size] < 1]
        even = [size for size in sizes if size not in faster and size not in slower]
        said = []
        if faster:
            best = max(faster, key=ratios.__getitem__)
            said.append(
                f"{way} takes {times(ratios[best])} as long at {size_text(best)} "
                f"({seconds_text(found[best].median_s)} against {seconds_text(ours[best].median_s)})"
            )
        if slower:
            worst = min(slower, key=ratios.__getitem__)
            said.append(
                f"lazycast takes {times(1 / ratios[worst])} as long at {size_text(worst)} "
                f"({seconds_text(ours[worst].median_s)} against {seconds_text(found[worst].median_s)})"
            )
        if even:
            said.append(f"no difference beyond the spread at {_runs(even, sizes)}")
        if faster and slower:
            choose = f"lazycast for {_runs(faster, sizes)}; {way} for {_runs(slower, sizes)}"
        elif faster:
            choose = f"lazycast rather than {way}" + (f", for {_runs(faster, sizes)}" if even else "")
        elif slower:
            choose = f"{way} rather than lazycast" + (f", for {_runs(slower, sizes)}" if even else "")
        else:
            choose = f"lazycast or {way}: speed does not decide"
        yield Advice(about, choose, "; ".join(said) + ".")


def _agreement(table: _Table, about: str) -> Iterator[Advice]:
    """Say what `agree=True` costs."""
    with_, without = table.get((OURS, "holds"), {}), table.get((NO_AGREE, "holds"), {})
    sizes = sorted(set(with_) & set(without))
    if not sizes:
        return
    extra_s = {size: with_[size].median_s - without[size].median_s for size in sizes}
    share = {size: extra_s[size] / with_[size].median_s for size in sizes}
    costly = [size for size in sizes if share[size] >= _COSTLY and with_[size].median_s > without[size].p90_s]
    if not costly:
        shown = sizes[0]
        figures = f"{seconds_text(with_[shown].median_s)} with it, {seconds_text(without[shown].median_s)} without"
        yield Advice(
            about, "leave agree=True", f"No cost beyond the spread at any size; at {size_text(shown)} {figures}."
        )
        return
    most = max(costly, key=share.__getitem__)
    free = [size for size in sizes if size not in costly]
    why = f"At {size_text(most)} agreement is {seconds_text(extra_s[most])} of {seconds_text(with_[most].median_s)}"
    why += f"; at {_runs(free, sizes)} no cost beyond the spread." if free else "; it costs something at every size."
    yield Advice(about, f"agree=False only where casts of {_runs(costly, sizes)} must be fast", why)


def _values(table: _Table, about: str) -> Iterator[Advice]:
    """Say whether private views or copies are the better values, by what is done with them."""
    column_sizes = {
        column: sorted(set(table.get((OURS, column), {})) & set(table.get((COPY, column), {})))
        for column in ("read", "overwritten")
    }
    for column, sizes in column_sizes.items():
        if not sizes:
            continue
        views, copies = table[OURS, column], table[COPY, column]
        different = [size for size in sizes if apart(_spread(views[size]), _spread(copies[size]))]
        copy = [size for size in different if copies[size].median_s < views[size].median_s]
        private = [size for size in different if size not in copy]
        shown = max(copy or private or sizes)
        figures = (
            f"At {size_text(shown)}: {seconds_text(copies[shown].median_s)} until copies were {column}, "
            f"{seconds_text(views[shown].median_s)} for views."
        )
        if copy:
            yield Advice(about, f'values="copy" for {_runs(copy, sizes)} that every rank has {column} whole', figures)
        elif private:
            yield Advice(about, f'leave values="private" for values that are {column}', figures)
        else:
            choose = f'values="private" or "copy" for values that are {column}: no difference beyond the spread'
            yield Advice(about, choose, figures)


def _caller(run: TimesRun) -> Iterator[Advice]:
    """Say what the root's caller is spared by `broadcast_async`."""
    blocked = run.figures.async_blocked
    # A whole broadcast of no more bytes: what a larger one takes says nothing of a call with less.
    no_larger = [
        result
        for result in run.results
        if (result.way, result.column, result.kind) == (OURS, "holds", "array")
        and blocked is not None
        and result.nbytes <= blocked.nbytes
    ]
    if blocked is None or not no_larger:
        return
    whole = max(no_larger, key=lambda result: result.nbytes)
    if blocked.p90_s < whole.p10_s:
        less = "" if whole.nbytes == blocked.nbytes else f", {times(blocked.nbytes / whole.nbytes)} fewer bytes,"
        yield Advice(
            f"{run.plan.ranks} ranks, {run.plan.backend}",
            "broadcast_async in a thread that has other work",
            f"Its call returns after {seconds_text(blocked.median_s)} for {size_text(blocked.nbytes)}; a whole "
            f"broadcast of {size_text(whole.nbytes)}{less} took {seconds_text(whole.median_s)}, "
            f"{times(whole.median_s / blocked.median_s)} as long.",
        )

"""What was measured, held against what it must reach. Plain functions of plain data.

Ways are compared within each round, since machines are busier at one time than at another: a figure is the median over
rounds, or single requests, with its 10th and 90th percentile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lazycast.tools.bench.making.ways import QUIET, STRANGERS
from lazycast.tools.bench.report import seconds_text


class Spread(NamedTuple):
    """A median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


class Verdict(NamedTuple):
    """One target.

    Attributes:
        row: the row of the benchmark that it is of.
        target: what must be, in words.
        measured: what was found, in words.
        figure: that, as a number, with its spread; None where it was not measured.
        reached: whether it was; None where that cannot be said.
    """

    row: str
    target: str
    measured: str
    figure: Spread | None
    reached: bool | None


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the spread of values. Raises: IndexError if there are none."""
    p10, median, p90 = (float(np.percentile(values, percent)) for percent in (10, 50, 90))
    return Spread(median, p10, p90)


def _ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    return spread([one / other for one, other in zip(over, under, strict=True)])


def _text(found: Spread, unit: str = "") -> str:
    return f"{found.median:.3g}{unit} ({found.p10:.3g} to {found.p90:.3g})"


def worst_p99(rounds: Sequence[Sequence[Mapping[str, float]]]) -> list[float]:
    """Return, of each round, the p99 of the rank whose scheduler it hit hardest (seconds)."""
    return [max(rank["p99_s"] for rank in ranks) for ranks in rounds]


def steps_per_s(rounds: Sequence[Sequence[Mapping[str, float]]]) -> list[float]:
    """Return, of each round, the steps a second of the mean rank."""
    return [float(np.mean([rank["count"] / rank["seconds"] for rank in ranks])) for ranks in rounds]


def lost(found: Mapping[str, Any], way: str) -> list[float]:
    """Return, of each round, which share of the steps without requests was not made beside a way."""
    return [1 - one / quiet for one, quiet in zip(steps_per_s(found[way]), steps_per_s(found[QUIET]), strict=True)]


def _scheduler(found: Mapping[str, Any]) -> Iterator[Verdict]:
    way = "lazycast-helpers"
    ratio = _ratios(worst_p99(found[way]), worst_p99(found[STRANGERS]))
    said = f"{_text(ratio, ' x')}; {_seconds(worst_p99(found[way]))} beside {_seconds(worst_p99(found[STRANGERS]))}"
    yield Verdict("scheduler", "step p99 with helpers at most 1.5 x strangers'", said, ratio, ratio.median <= 1.5)
    beyond = spread([one - other for one, other in zip(lost(found, way), lost(found, STRANGERS), strict=True)])
    said = f"{100 * beyond.median:.1f} % beyond ({100 * beyond.p10:.1f} to {100 * beyond.p90:.1f})"
    # Rounds differ: steps are lost beyond doubt only if nine rounds of ten say so.
    yield Verdict("scheduler", "steps lost: none beyond strangers'", said, beyond, beyond.p10 <= 0)


def _seconds(values: Sequence[float]) -> str:
    return seconds_text(spread(values).median)


def _photos(found: Mapping[str, Any]) -> Iterator[Verdict]:
    ratio = _ratios(found["lazycast-helpers"], found["lazycast-shard"])
    yield Verdict("photos", "helpers at least as many as shard", _text(ratio, " x"), ratio, ratio.median >= 1.0)
    share = _ratios(found["lazycast-shard"], found["ideal"])
    said = f"{100 * share.median:.0f} % ({100 * share.p10:.0f} to {100 * share.p90:.0f})"
    yield Verdict("photos", "shard at least 90 % of ideal", said, share, share.median >= 0.9)


def _value(found: Mapping[str, Any]) -> Iterator[Verdict]:
    mine = found["lazycast-helpers"]
    for way, name in (("pool", "multiprocessing.Pool"), ("executor", "ProcessPoolExecutor")):
        target = f"10 MB from a helper: 10 x less overhead than {name}"
        if way not in found:
            yield Verdict("value", target, "not available", None, None)
            continue
        ratio = _ratios(found[way], mine)
        said = f"{_text(ratio, ' x')}; {_seconds(mine)} to {_seconds(found[way])}"
        yield Verdict("value", target, said, ratio, ratio.median >= 10)


def _album(found: Mapping[str, Any]) -> Iterator[Verdict]:
    target = "8 photos on helpers, item by item: at most 0.6 x one rank's time"
    ratio = _ratios(found["lazycast-each"], found["lazycast-shard"])
    said = f"{_text(ratio, ' x')}; {_seconds(found['lazycast-each'])} to {_seconds(found['lazycast-shard'])}"
    yield Verdict("album", target, said, ratio, ratio.median <= 0.6)


def _hit(found: Mapping[str, Any]) -> Iterator[Verdict]:
    ratio = _ratios(found["lazycast-memo"], found["lazycast-small"])
    said = f"{_text(ratio, ' x')}; {_seconds(found['lazycast-memo'])} to {_seconds(found['lazycast-small'])}"
    yield Verdict("hit", "a hit of 10 MB at most 1.5 x a small cast", said, ratio, ratio.median <= 1.5)


def _killed(found: Mapping[str, Any]) -> Iterator[Verdict]:
    for name, target in (
        ("lazycast-helpers", "the value within 1 s beyond the work"),
        ("replaced", "a new helper within 1 s"),
    ):
        worst = spread(found[name])
        most_s = max(found[name])
        said = f"{seconds_text(worst.median)}, at most {seconds_text(most_s)} of {len(found[name])}"
        yield Verdict("killed", target, said, worst, most_s <= 1.0)


def _chat(found: Mapping[str, Any]) -> Iterator[Verdict]:
    mine, wanted = found["lazycast-memo"], found["simulated"]
    said = ", ".join(f"{mine[name]} {name} of {wanted[name]}" for name in ("hits", "values", "nbytes", "evictions"))
    same = all(mine[name] == wanted[name] for name in wanted)
    yield Verdict("chat", "what is remembered is what the policy says", said, None, same)


_OF: dict[str, Callable[[Mapping[str, Any]], Iterator[Verdict]]] = {
    "scheduler": _scheduler,
    "photos": _photos,
    "value": _value,
    "album": _album,
    "hit": _hit,
    "killed": _killed,
    "chat": _chat,
}


def of(rows: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield a verdict for each target of the rows that were measured."""
    for name, found in rows.items():
        yield from _OF[name](found)

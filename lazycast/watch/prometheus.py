"""Hands what is counted to Prometheus: `register()` once per process, then serve `prometheus_client`'s registry.

Guarantees: nothing is read but when Prometheus asks and when an object is closed. Counters never go back: those of an
object that was closed stay as they were last, but it is not kept alive. No scrape finds it both open and closed, or
neither. A forked child exports nothing of its parent's.
Needs `prometheus_client` (`pip install 'lazycast[prometheus]'`), which is imported when a collector is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lazycast import errors
from lazycast.api import LazyBroadcast
from lazycast.core.engine import Engine
from lazycast.options import HELPERS, PLACEMENTS
from lazycast.start import lifetime
from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.timing import BOUNDS_S, Timing, merged

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

#: The buckets' bounds (seconds): 1, 2 and 5 of each decade.
_LE_S = tuple(b for b in BOUNDS_S if 1e-5 <= b <= 100 and f"{b:e}"[:8] in ("1.000000", "2.000000", "5.000000"))


#: How calls end, in series that are there from the first scrape on: `rate()` takes no notice of a series' first value,
#: so the first failure of a kind would not show. Classes that are not here get theirs when they happen.
_OUTCOMES = (
    *("value", "cancelled"),
    *(
        error.__name__
        for error in (
            *(errors.EncodeError, errors.DecodeError, errors.MaterializeError, errors.PayloadMismatchError),
            *(errors.PeerLostError, errors.ClosedError, errors.CastTimeoutError, errors.DivergenceError),
            *(errors.BackendError, errors.TrustError),
        )
    ),
)
#: What a cast is placed as, for the same reason: "auto" chooses one of the others.
_PLACED = (*(placement for placement in PLACEMENTS if placement != "auto"), HELPERS)


@dataclass(frozen=True)
class _Number:
    """One family of counters or gauges, and how to read its values from `Stats`: by the values of its own label."""

    name: str
    help: str
    read: Callable[[Stats], Any]
    label: str | None = None
    counter: bool = True

    def values(self, stats: Stats) -> Iterator[tuple[tuple[str, ...], float]]:
        found = self.read(stats)
        if self.label is None:
            yield (), found
        else:
            yield from (((value,), number) for value, number in found.items())


def _ended(stats: Stats) -> dict[str, int]:
    return {**dict.fromkeys(_OUTCOMES, 0), "value": stats.resolved, "cancelled": stats.cancelled, **stats.failed}


def _placed(stats: Stats) -> dict[str, int]:
    return {**dict.fromkeys(_PLACED, 0), **stats.placements}


def _received(stats: Stats) -> dict[str, int]:
    return {"network": stats.nbytes_received - stats.nbytes_from_host, "host": stats.nbytes_from_host}


def _looked_up(stats: Stats) -> dict[str, int]:
    return {"found": stats.materializer_hits, "loaded": stats.materializer_loads}


_NUMBERS = (
    _Number("lazycast_casts", "Casts sent (root) or received, by placement.", _placed, "placement"),
    _Number("lazycast_calls", "Calls of broadcast and broadcast_async.", lambda s: s.asked),
    _Number(
        "lazycast_calls_ended", "Calls that are done: value, cancelled, or the class of their error.", _ended, "outcome"
    ),
    _Number("lazycast_aborted_casts", "Casts that the root withdrew; they are no failures.", lambda s: s.aborted),
    _Number("lazycast_lost_ranks", "Ranks that ended without a farewell, as this rank knows.", lambda s: s.lost),
    _Number("lazycast_sent_bytes", "Bytes sent to other hosts, relaying included.", lambda s: s.nbytes_sent),
    _Number("lazycast_received_bytes", "Bytes received, by what way.", _received, "by"),
    _Number("lazycast_materializer_lookups", "Materializers that were loaded already or had to be.", _looked_up, "how"),
    _Number(
        "lazycast_unshared_values", "Values that an owner could not share, or a rank rebuild.", lambda s: s.unshared
    ),
    _Number("lazycast_pending_calls", "Calls whose future is not done.", lambda s: s.pending, counter=False),
    _Number("lazycast_blocked_calls", "Calls that back-pressure holds up now.", lambda s: s.blocking, counter=False),
    _Number("lazycast_unasked_casts", "Casts here that nobody has asked for.", lambda s: s.unasked, counter=False),
    _Number("lazycast_shared_bytes", "Shared memory that somebody holds.", lambda s: s.shared_nbytes, counter=False),
    _Number("lazycast_memo_hits", "Casts that had again what was remembered.", lambda s: s.memo_hits),
    _Number("lazycast_memo_saved_seconds", "What it took to make that when it was new.", lambda s: s.memo_saved_s),
    _Number("lazycast_memo_bytes", "Values that are remembered.", lambda s: s.memo_nbytes, counter=False),
    _Number("lazycast_helpers", "Processes that materialize, and are ready.", lambda s: s.helpers, counter=False),
    _Number("lazycast_busy_helpers", "Those that make a value now.", lambda s: s.helpers_busy, counter=False),
    _Number("lazycast_lost_helpers", "Those that have ended and were replaced.", lambda s: s.helpers_lost),
    _Number("lazycast_arena_bytes", "Shared memory that is taken.", lambda s: s.arena_nbytes, counter=False),
)
_LABELS = ("name", "rank")


@dataclass
class _Sums:
    """What objects with the same name and rank in one process have counted together: a series must be there once."""

    numbers: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    timings: dict[tuple[str, ...], Timing] = field(default_factory=dict)

    ages: dict[tuple[str, ...], float] = field(default_factory=dict)  # since the root has heard of a rank (seconds)

    def add(self, stats: Stats, age_s: float, *, closed: bool = False) -> None:
        """Add what one object has counted. One that is closed holds nothing and waits for nothing: its gauges are 0."""
        who = stats.name, str(stats.rank)
        self.ages[who] = age_s
        for number in _NUMBERS:
            family = self.numbers.setdefault(number.name, {})
            for labels, value in number.values(stats):
                family[who + labels] = family.get(who + labels, 0) + (0 if closed and not number.counter else value)
        for phase in PHASES:
            labels = (*who, phase)
            self.timings[labels] = merged([self.timings.get(labels, Timing()), getattr(stats, phase)])

    def copy(self) -> _Sums:
        """Return one that can be added to; timings never change."""
        return _Sums({name: dict(family) for name, family in self.numbers.items()}, {**self.timings}, {**self.ages})


class Collector:
    """What a registry asks at each scrape.

    Args:
        objects: export these; without any, all that are open in this process, now or later. What was closed before is
            not exported.
        group: export what the roots of these objects know of all their ranks, and nothing of objects whose root is
            elsewhere. So one process is enough to scrape; figures are up to a few seconds old.
    Raises: ImportError if prometheus_client is not installed.

    What is closed later keeps its series: counters and histograms as they were last, gauges 0, and with `group` the age
    of each rank's last word. An object of the same name and rank counts on from there. So memory grows with the number
    of names, not of objects.
    Threads: safe.
    """

    def __init__(self, *objects: LazyBroadcast[Any, Any], group: bool = False) -> None:
        try:
            from prometheus_client import core
        except ImportError as exc:
            raise ImportError("prometheus_client is missing; run: pip install 'lazycast[prometheus]'") from exc
        self._core = core
        self._chosen = weakref.WeakSet(objects) if objects else None
        self._group = group
        self._lock = threading.RLock()  # a finalizer may close an object in the middle of a scrape
        self._closed = _Sums()
        self._ended: weakref.WeakSet[lifetime.Closable] = weakref.WeakSet()  # what is in these sums
        self._pid = os.getpid()
        lifetime.tell(self)

    def began(self, thing: lifetime.Closable) -> None:
        """Nothing is to be done for what is opened: each scrape looks for what there is."""

    def ended(self, thing: lifetime.Closable) -> None:
        """Keep what an object has counted at last. Called when it has been closed."""
        with self._lock:
            if thing in self._ended or not isinstance(thing, Engine):
                return
            if self._chosen is not None and not any(lazy._engine is thing for lazy in self._chosen):
                return
            self._ended.add(thing)
            for stats, age_s in self._read(thing):
                self._closed.add(stats, age_s, closed=True)

    def describe(self) -> list[Metric]:
        """Return nothing: names are found at the first scrape, not when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families. Called by the registry."""
        with self._lock:
            if self._pid != os.getpid():  # this process was forked: what is closed here was its parent's
                self._pid, self._closed = os.getpid(), _Sums()
            sums = self._closed.copy()
            for one in self._open():
                for stats, age_s in self._read(one) if one not in self._ended else ():
                    sums.add(stats, age_s)
        for number in _NUMBERS:
            yield self._family(number, sums.numbers.get(number.name, {}))
        if self._group:
            text = "How long ago the root heard of the rank."
            family = self._core.GaugeMetricFamily("lazycast_report_age_seconds", text, labels=_LABELS)
            for labels, age_s in sums.ages.items():
                family.add_metric(labels, age_s)
            yield family
        text = "How long each phase of a cast took."
        histogram = self._core.HistogramMetricFamily("lazycast_phase_seconds", text, labels=(*_LABELS, "phase"))
        for labels, timing in sums.timings.items():
            histogram.add_metric(labels, _cumulated(timing), timing.total_s)
        yield histogram

    def _open(self) -> list[Engine]:
        engines = [thing for thing in lifetime.open_now() if isinstance(thing, Engine)]
        if self._chosen is None:
            return engines
        chosen = [lazy._engine for lazy in self._chosen]
        return [engine for engine in engines if any(engine is one for one in chosen)]

    def _read(self, one: Engine) -> list[tuple[Stats, float]]:
        try:
            mine = one.looks.stats()
            if not self._group:
                return [(mine, 0.0)]
            if mine.rank != (mine.root if len(one.lanes) == 1 else 0):  # of several roots one speaks for the group
                return []
            group = one.looks.group_stats()
        except errors.ClosedError:  # this process was forked
            return []
        return [(stats, group.age_s[rank]) for rank, stats in group.ranks.items()]

    def _family(self, number: _Number, values: dict[tuple[str, ...], float]) -> Metric:
        labels = _LABELS if number.label is None else (*_LABELS, number.label)
        kind = self._core.CounterMetricFamily if number.counter else self._core.GaugeMetricFamily
        family = kind(number.name, number.help, labels=labels)
        for chosen, value in values.items():
            family.add_metric(chosen, value)
        return family


def _cumulated(timing: Timing) -> list[tuple[str, float]]:
    """Return the counts up to each bound, as Prometheus wants them."""
    found, below, index = [], 0, 0
    for bound_s in _LE_S:
        while timing.count and BOUNDS_S[index] <= bound_s:  # without a count there are no buckets
            below += timing.buckets[index]
            index += 1
        found.append((f"{bound_s:g}", float(below)))
    return [*found, ("+Inf", float(timing.count))]


def register(
    *objects: LazyBroadcast[Any, Any], group: bool = False, registry: CollectorRegistry | None = None
) -> Collector:
    """Register a `Collector` of these arguments, with prometheus_client's own registry by default, and return it."""
    collector = Collector(*objects, group=group)
    from prometheus_client import REGISTRY

    (REGISTRY if registry is None else registry).register(collector)
    return collector

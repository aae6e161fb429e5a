"""Counts and timings of one object on one rank."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lazycast.materialize.placement.chooser import Standing, duration
from lazycast.watch.timing import Tally, Timing


@dataclass(frozen=True)
class Stats:
    """What `LazyBroadcast.stats()` returns: a snapshot, counted since construction. `str()` is a table for people.

    Attributes:
        name, rank, size, root: as on the object.
        age_s: since construction (seconds).
        qps: calls that got a value, per second, over the last 10 seconds.
        placement: what the last cast was placed as; `placement_reason` says why.
        placements: how many casts were placed as what; those sent as failures are not among them.
        standings: on the root, with `placement="auto"`: how each kind of cast is placed now, why, and what each
            placement is known to cost.
        casts: casts that this rank has sent (on the root) or received (elsewhere), failed ones included.
        asked: calls of `broadcast` and `broadcast_async` on this rank.
        pending: those whose future is not done.
        unasked: casts that have arrived and nobody here has asked for.
        resolved, cancelled, failed: how calls ended; `failed` counts by class of error.
        aborted: casts that the root withdrew: with agreement their calls are cancelled on every rank.
        lost: ranks that ended without a farewell, as far as this rank knows.
        blocking: calls on the root that back-pressure holds up now.
        materializer_hits, materializer_loads: how often a cast found its materializer loaded on this rank, and how
            often it had to be imported or unpickled first.
        unshared: values or hints that this rank, as an owner, could not share, or could not rebuild from what an owner
            shared, so that it made its own; `unshared_reason` says why, for the last one.
        nbytes_sent: to other hosts, through the backend, headers and relaying for others included.
        nbytes_received: from anybody, headers included; on a host a body counts though it is not copied.
        nbytes_from_host: of these, from ranks of this host: by local sockets and shared memory, not by the network.
        hosts: the ranks of each host; those of one share memory.
        shared_slots, shared_nbytes: what this rank has written to shared memory and somebody still holds.
        arena_nbytes: the memory that this takes: the arena grows with what is in use at a time, and keeps its pages.
        memo_hits: casts, and items of casts, that had again what was remembered; `memo_values` and `memo_nbytes` are
            remembered here now.
        memo_saved_s: how long that had taken when it was new, from its cast's arrival here until this rank had the
            value (seconds; of an item its share).
        helpers: processes that materialize for this rank's host and are ready, where this rank is their leader;
            `helpers_busy` are making a value now, `helpers_lost` have ended and were replaced.
        queue: from the call to its turn (root), back-pressure on the caller included.
        held: from a call's being ready to be sent to the start of its encoding (root): behind others of its key, or
            held back by `max_inflight_nbytes`.
        encode, decode, materialize: that work, each on this rank.
        transfer: from a cast's having been encoded on the root to its arrival on this rank, which has been given
            its body by then. Only where this rank has the root's clock (it runs on the same kernel).
        wait: from the call to the arrival of its cast, for calls that came first (not on the root).
        unread: from the arrival of a cast to its call, for casts that came first (not on the root).
        share: from an owner's having made a value to its having sent it to its host.
        agree: from this rank's report to the verdict.
        total: from the call to the settled future, for calls that got a value.
        blocked: how long calls on the root were held up by back-pressure, for those that were, refused ones included.
    """

    name: str
    rank: int
    size: int
    root: int
    age_s: float
    qps: float
    placement: str
    placement_reason: str
    placements: dict[str, int]
    standings: tuple[Standing, ...]
    casts: int
    asked: int
    pending: int
    unasked: int
    resolved: int
    cancelled: int
    failed: dict[str, int]
    aborted: int
    lost: int
    blocking: int
    materializer_hits: int
    materializer_loads: int
    unshared: int
    unshared_reason: str | None
    nbytes_sent: int
    nbytes_received: int
    nbytes_from_host: int
    hosts: tuple[tuple[int, ...], ...]
    shared_slots: int
    shared_nbytes: int
    arena_nbytes: int
    memo_hits: int
    memo_saved_s: float
    memo_values: int
    memo_nbytes: int
    helpers: int
    helpers_busy: int
    helpers_lost: int
    queue: Timing
    held: Timing
    encode: Timing
    decode: Timing
    materialize: Timing
    transfer: Timing
    wait: Timing
    unread: Timing
    share: Timing
    agree: Timing
    total: Timing
    blocked: Timing

    def __str__(self) -> str:
        return "\n".join(_lines(self))


#: The attributes of `Stats` that are timings, in the order of a cast's life.
PHASES = (
    *("blocked", "queue", "held", "encode", "transfer", "wait", "unread"),
    *("decode", "materialize", "share", "agree", "total"),
)


def _lines(stats: Stats) -> Iterator[str]:
    """Yield a snapshot for people: what was never counted has no line."""
    root = "the root" if stats.rank == stats.root else f"root {stats.root}"
    hosts = _counted(len(stats.hosts), "host")
    yield f"{stats.name!r}, rank {stats.rank} of {stats.size}, {root}, {hosts}; open for {duration(stats.age_s)}"
    placed = [f"{count} {placement}" for placement, count in stats.placements.items()]
    yield _row("casts", stats.casts, *placed)
    if stats.placement_reason:
        yield _row("last placed", stats.placement_reason)
    failed = [f"{count} {name}" for name, count in stats.failed.items()]
    ended = f"{stats.resolved} got a value ({stats.qps:.3g} per s lately)"
    yield _row("calls", stats.asked, ended, f"{sum(stats.failed.values())} failed", f"{stats.cancelled} cancelled")
    if failed:
        yield _row("failures", *failed)
    if stats.lost:
        yield _row("lost", _counted(stats.lost, "rank"))
    if stats.unshared:
        yield _row("not shared", stats.unshared, f"the last: {stats.unshared_reason}")
    blocking = [f"{stats.blocking} held up by back-pressure"] if stats.blocking else []
    yield _row(
        "now",
        _counted(stats.pending, "call") + " pending",
        _counted(stats.unasked, "cast") + " not asked for",
        *blocking,
    )
    away_nbytes = stats.nbytes_received - stats.nbytes_from_host
    yield _row("network", f"{nbytes_text(stats.nbytes_sent)} sent", f"{nbytes_text(away_nbytes)} received")
    yield _row("this host", f"{nbytes_text(stats.nbytes_from_host)} received")
    held = f"{nbytes_text(stats.shared_nbytes)} held in {_counted(stats.shared_slots, 'slot')}"
    yield _row("shared memory", held, f"{nbytes_text(stats.arena_nbytes)} taken")
    if stats.memo_hits or stats.memo_values:
        kept = f"{nbytes_text(stats.memo_nbytes)} of {_counted(stats.memo_values, 'value')} remembered"
        yield _row("memo", f"{stats.memo_hits} had again", f"{duration(stats.memo_saved_s)} saved", kept)
    if stats.helpers or stats.helpers_lost:
        yield _row("helpers", f"{stats.helpers} ready", f"{stats.helpers_busy} at work", f"{stats.helpers_lost} lost")
    timings = [(phase, getattr(stats, phase)) for phase in PHASES]
    if any(timing.count for _, timing in timings):
        yield f"{'phase':<15}{'count':>9}{'p50':>11}{'p99':>11}{'max':>11}{'in all':>11}"
    for phase, timing in timings:
        if timing.count:
            spread = (timing.p50_s, timing.p99_s, timing.max_s, timing.total_s)
            yield f"{phase:<15}{timing.count:>9}" + "".join(f"{duration(seconds):>11}" for seconds in spread)


def _row(name: str, *found: object) -> str:
    first, *others = map(str, found)
    if isinstance(found[0], int) and others:  # what the others are parts of
        first = f"{first}: {others.pop(0)}"
    return f"{name:<15}{', '.join([first, *others])}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def nbytes_text(nbytes: int) -> str:
    """Return a number of bytes for people: four figures at most."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.4g} {unit}"
    return f"{nbytes} bytes"


#: How much is noted before whoever ends a call counts it, if nobody has looked.
FOLD_AT = 1000


class Rate:
    """How often something has happened per second, lately."""

    WINDOW_S = 10
    _SLOTS = 16

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._second = int(now_s)
        self._counts = [0] * self._SLOTS

    def tick(self, now_s: float) -> None:
        """Count one."""
        second = int(now_s)
        if second > self._second:
            self._turn_to(second)
        self._counts[second % self._SLOTS] += 1

    def _turn_to(self, second: int) -> None:
        """Forget the seconds that have passed without a count, and what their places held before."""
        for passed in range(max(self._second + 1, second - self._SLOTS + 1), second + 1):
            self._counts[passed % self._SLOTS] = 0
        self._second = second

    def per_s(self, now_s: float) -> float:
        """Return the rate over the last seconds, or since the beginning if that is later."""
        second = int(now_s)
        if second > self._second:
            self._turn_to(second)
        begin_s = max(self._since_s, float(second - self.WINDOW_S))
        count = sum(self._counts[past % self._SLOTS] for past in range(second - self.WINDOW_S, second + 1))
        return count / max(1e-3, now_s - begin_s)


@dataclass
class Counters:
    """The mutable side. Guarded by the owner's lock."""

    since_s: float = field(default_factory=time.monotonic)
    casts: int = 0
    asked: int = 0
    resolved: int = 0
    cancelled: int = 0
    aborted: int = 0
    lost: int = 0
    blocking: int = 0
    unshared: int = 0
    unshared_reason: str | None = None
    placements: Counter[str] = field(default_factory=Counter)  # of the casts that bring more than a failure
    failed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rate = Rate(self.since_s)
        self._timings: dict[str, Tally] = {}
        #: What took how long (seconds), to be counted: in one step, since every cast notes half a dozen on each rank.
        self.noted: list[tuple[str, float]] = []
        self.resolved_s: list[float] = []  # when calls got their values, to be counted

    def fold(self) -> None:
        """Count what has been noted."""
        noted, self.noted = self.noted, []
        for what, seconds in noted:
            tally = self._timings.get(what)
            if tally is None:
                tally = self._timings[what] = Tally()
            tally.add(seconds)
        resolved_s, self.resolved_s = self.resolved_s, []
        for now_s in resolved_s:
            self._rate.tick(now_s)

    def qps(self, now_s: float) -> float:
        """Calls that got a value, per second."""
        self.fold()
        return self._rate.per_s(now_s)

    def count_failure(self, exc: BaseException) -> None:
        """Count a call that failed."""
        name = type(exc).__name__
        self.failed[name] = self.failed.get(name, 0) + 1

    def timing(self, what: str) -> Timing:
        """Return a snapshot."""
        self.fold()
        tally = self._timings.get(what)
        return Timing() if tally is None else tally.timing()

    def text(self) -> str:
        """Return a line for a dump."""
        failed = ", ".join(f"{count} {name}" for name, count in list(self.failed.items()))
        return (
            f"casts {self.casts}, asked {self.asked}, resolved {self.resolved}, cancelled {self.cancelled}, "
            f"aborted {self.aborted}, lost {self.lost}, unshared {self.unshared}, failed {failed or 0}"
        )

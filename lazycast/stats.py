"""Counts and timings of one object on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from lazycast.placement.chooser import Standing


@dataclass(frozen=True)
class Timing:
    """How long something took: how often, in all, at most (seconds)."""

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """Mean in seconds; 0 if it never happened."""
        return self.total_s / self.count if self.count else 0.0


@dataclass(frozen=True)
class Stats:
    """What `LazyBroadcast.stats()` returns: a snapshot, counted since construction.

    Attributes:
        rank, size, root: as on the object.
        placement: what the last cast was placed as; `placement_reason` says why.
        standings: on the root, with `placement="auto"`: how each kind of cast is placed now, why, and what each
            placement is known to cost.
        casts: casts that this rank has sent (on the root) or received (elsewhere), failed ones included.
        asked: calls of `broadcast` and `broadcast_async` on this rank.
        pending: those whose future is not done.
        unasked: casts that have arrived and nobody here has asked for.
        resolved, cancelled, failed: how calls ended; `failed` counts by class of error.
        unshared: values or hints that this rank, as an owner, could not share, or could not rebuild from what an owner
            shared, so that it made its own; `unshared_reason` says why, for the last one.
        nbytes_sent: to other hosts, through the backend, headers and relaying for others included.
        nbytes_received: from anybody, headers included; on a host a body counts though it is not copied.
        hosts: the ranks of each host; those of one share memory.
        shared_slots, shared_nbytes: what this rank has written to shared memory and somebody still holds.
        arena_nbytes: the memory that this takes: the arena grows with what is in use at a time, and keeps its pages.
        queue: from the call to the start of encoding (root).
        encode, decode, materialize: that work, each on this rank.
        share: from an owner's having made a value to its having sent it to its host.
        agree: from this rank's report to the verdict.
        total: from the call to the settled future, for calls that got a value.
        blocked: how long calls on the root were held up by back-pressure, for those that were.
    """

    rank: int
    size: int
    root: int
    placement: str
    placement_reason: str
    standings: tuple[Standing, ...]
    casts: int
    asked: int
    pending: int
    unasked: int
    resolved: int
    cancelled: int
    failed: dict[str, int]
    unshared: int
    unshared_reason: str | None
    nbytes_sent: int
    nbytes_received: int
    hosts: tuple[tuple[int, ...], ...]
    shared_slots: int
    shared_nbytes: int
    arena_nbytes: int
    queue: Timing
    encode: Timing
    decode: Timing
    materialize: Timing
    share: Timing
    agree: Timing
    total: Timing
    blocked: Timing


@dataclass(slots=True)
class _Tally:
    """A `Timing` that goes on: to make a frozen one each time would take 3 µs, and every cast has three."""

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0


@dataclass
class Counters:
    """The mutable side. Guarded by the owner's lock."""

    casts: int = 0
    asked: int = 0
    resolved: int = 0
    cancelled: int = 0
    unshared: int = 0
    unshared_reason: str | None = None
    failed: dict[str, int] = field(default_factory=dict)
    timings: dict[str, _Tally] = field(default_factory=dict)

    def took(self, what: str, seconds: float) -> None:
        """Count one occurrence of something that takes time."""
        tally = self.timings.get(what)
        if tally is None:
            tally = self.timings[what] = _Tally()
        tally.count += 1
        tally.total_s += seconds
        if seconds > tally.max_s:
            tally.max_s = seconds

    def count_failure(self, exc: BaseException) -> None:
        """Count a call that failed."""
        name = type(exc).__name__
        self.failed[name] = self.failed.get(name, 0) + 1

    def timing(self, what: str) -> Timing:
        """Return a snapshot."""
        tally = self.timings.get(what)
        return Timing() if tally is None else Timing(tally.count, tally.total_s, tally.max_s)

    def text(self) -> str:
        """Return a line for a dump."""
        failed = ", ".join(f"{count} {name}" for name, count in list(self.failed.items()))
        return (
            f"casts {self.casts}, asked {self.asked}, resolved {self.resolved}, cancelled {self.cancelled}, "
            f"unshared {self.unshared}, failed {failed or 0}"
        )

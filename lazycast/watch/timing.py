"""How long things take, as counts in fixed buckets: memory does not grow, and any number of ranks can be added up.

Guarantees: a quantile lies in the bucket that holds the true one, whose bounds are at most 10 % apart between 1 µs and
1000 s. A tally is not thread-safe; a timing never changes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

# Decimal, so that 1, 2 and 5 of each decade are bounds: an exporter can merge buckets without touching a count.
_STEPS: Final = (
    *("1", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "2", "2.2", "2.4", "2.6", "2.8", "3"),
    *("3.3", "3.6", "3.9", "4.2", "4.6", "5", "5.5", "6", "6.5", "7", "7.5", "8", "8.5", "9", "9.5"),
)
#: Upper bounds of all buckets but the last, which has none (seconds).
BOUNDS_S: Final = (*(float(f"{step}e{decade}") for decade in range(-6, 3) for step in _STEPS), 1e3)
_BUCKETS: Final = len(BOUNDS_S) + 1


@dataclass(frozen=True)
class Timing:
    """How long something took: how often, in all, at most (seconds), and how that is spread.

    `buckets[i]` counts what took at most `BOUNDS_S[i]` and longer than the bound before it; it is empty if there is
    nothing to count.
    """

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0
    buckets: tuple[int, ...] = field(default=(), repr=False)

    @property
    def mean_s(self) -> float:
        """Mean in seconds; 0 if it never happened."""
        return self.total_s / self.count if self.count else 0.0

    @property
    def p50_s(self) -> float:
        """Median in seconds; 0 if it never happened."""
        return self.quantile_s(0.5)

    @property
    def p99_s(self) -> float:
        """The time (seconds) that 99 of 100 did not exceed; 0 if it never happened."""
        return self.quantile_s(0.99)

    def quantile_s(self, q: float) -> float:
        """Return the time (seconds) that a part `q` (0 to 1) did not exceed, within 10 %; 0 if it never happened."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, got {q!r}")
        below, wanted = 0, max(1, math.ceil(q * self.count))
        for index, count in enumerate(self.buckets):
            if below + count >= wanted:
                low = BOUNDS_S[index - 1] if index else 0.0
                high = min(BOUNDS_S[index], self.max_s) if index < len(BOUNDS_S) else self.max_s
                return min(high, low + max(0.0, high - low) * ((wanted - below) / count))
            below += count
        return 0.0


def merged(timings: Iterable[Timing]) -> Timing:
    """Add up timings of several ranks or objects: quantiles of the sum are as good as those of each."""
    some = [timing for timing in timings if timing.count]
    if not some:
        return Timing()
    buckets = tuple(map(sum, zip(*(timing.buckets for timing in some), strict=True)))
    return Timing(sum(t.count for t in some), sum(t.total_s for t in some), max(t.max_s for t in some), buckets)


class Tally:
    """A `Timing` that goes on."""

    __slots__ = ("buckets", "max_s", "total_s")

    def __init__(self) -> None:
        self.total_s = self.max_s = 0.0
        self.buckets = [0] * _BUCKETS

    def add(self, seconds: float) -> None:
        """Count one occurrence. Takes a third of a microsecond."""
        self.total_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1

    def timing(self) -> Timing:
        """Return a snapshot."""
        return Timing(sum(self.buckets), self.total_s, self.max_s, tuple(self.buckets))


def trimmed(timing: Timing) -> tuple[int, list[int]]:
    """Return the index of the first bucket that is not empty, and the counts from there to the last such."""
    used = [index for index, count in enumerate(timing.buckets) if count]
    return (used[0], list(timing.buckets[used[0] : used[-1] + 1])) if used else (0, [])


def restored(total_s: float, max_s: float, first: int, counts: Sequence[int]) -> Timing:
    """Return the timing that `trimmed` was given. Counts beyond the last bucket are left out."""
    buckets = [*[0] * min(first, _BUCKETS), *counts, *[0] * _BUCKETS][:_BUCKETS]
    count = sum(buckets)
    return Timing(count, total_s, max_s, tuple(buckets)) if count else Timing()

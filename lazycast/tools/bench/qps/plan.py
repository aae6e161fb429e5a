"""What a run measures, and when its requests arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Requests in a round, at most and at least; the least is a multiple of those outstanding, so that filling and emptying
#: the loop is not all there is.
MAX_COUNT = 20_000
_MIN_WINDOWS = 2

#: Requests outstanding at once in an open loop, at most: what arrives meanwhile waits, and its time counts.
OPEN_WINDOW = 64


#: To start ranks and import what they need (seconds); how much longer than `seconds` a round of a way takes.
_START_S, _LONGER = 10.0, 1.5


@dataclass(frozen=True)
class Plan:
    """One run. Each round of a workload takes every way in turn.

    Attributes:
        workloads, ways: names in `workloads.WORKLOADS` and `ways.WAYS`; all ways if empty.
        seconds: how long a round of one way is to take.
        rounds: how many, beside a first one that does not count.
        concurrency: requests outstanding in a closed loop.
        rate: requests a second in an open loop; None for a closed one.
        slowdown_s: how long to watch the scheduler without each way, and beside it; 0 leaves it out.
        slowdown_rounds: how often.
    """

    backend: str
    ranks: int
    workloads: tuple[str, ...]
    ways: tuple[str, ...] = ()
    seconds: float = 5.0
    rounds: int = 5
    concurrency: int = 8
    rate: float | None = None
    slowdown_s: float = 1.0
    slowdown_rounds: int = 3

    def about_s(self, workloads: int, ways: int) -> float:
        """How long the run will take, as far as that is known before (seconds), with so many workloads and ways."""
        a_way_s = (self.rounds + 1) * self.seconds * _LONGER + 2 * self.slowdown_rounds * self.slowdown_s
        return _START_S + workloads * ways * a_way_s

    def count(self, qps: float, window: int) -> int:
        """How many requests a round has, for a way that has lately reached `qps` with `window` outstanding."""
        if self.rate is not None:
            return max(1, min(MAX_COUNT, round(self.rate * self.seconds)))
        return max(_MIN_WINDOWS * window, min(MAX_COUNT, round(qps * self.seconds)))


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Return when `count` requests arrive, in seconds from the start: as a Poisson process does, `rate` a second.

    The same on every rank for the same seed, and scaled so that the last of them arrives at exactly `count / rate`.
    """
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    moments: list[float] = (np.cumsum(gaps) * (count / rate / gaps.sum())).tolist()
    return moments

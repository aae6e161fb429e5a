"""A scheduler on the main thread of a rank that never rests: steps of some 0.7 ms, and how long each took.

Between two steps it asks for the requests that have arrived, and takes the values that are there: a step's time
includes that, as it does in an engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from lazycast.tools.bench.qps.loop import Loop

STEP_S = 0.7e-3
_TRIES = 200


@dataclass(frozen=True)
class Steps:
    """What a scheduler did: `count` steps in `seconds`, their median, and what one in a hundred exceeds."""

    count: int
    seconds: float
    p50_s: float
    p99_s: float


def _work(adds: int) -> int:
    total = 0
    for number in range(adds):
        total += number & 7
    return total


def calibrate() -> int:
    """Return how many additions take a step, where nothing holds them up. Blocking: a quarter of a second or so."""
    adds, fastest_s = 5000, float("inf")
    for _ in range(_TRIES):
        began_s = time.perf_counter()
        _work(adds)
        fastest_s = min(fastest_s, time.perf_counter() - began_s)
    return round(adds * STEP_S / fastest_s)


def watch(adds: int, seconds: float, loop: Loop | None, begin_ns: int) -> Steps:
    """Make steps for so long from `begin_ns`, beside a loop if there is one; then let the loop finish."""
    time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
    began_ns, end_ns = time.monotonic_ns(), begin_ns + round(seconds * 1e9)
    ends = [began_ns]
    while ends[-1] < end_ns:
        _work(adds)
        if loop is not None:
            while loop.start_one():
                loop.take_all()
            loop.take_all()
        ends.append(time.monotonic_ns())
    took_s = np.diff(np.array(ends, np.int64)) / 1e9
    if loop is not None:
        loop.run()
    p50_s, p99_s = (float(np.percentile(took_s, percent)) for percent in (50, 99))
    return Steps(len(took_s), (ends[-1] - began_ns) / 1e9, p50_s, p99_s)

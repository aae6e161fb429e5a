"""A scheduler that never rests, and what ways cost it: steps of pure Python and small arrays, one after another.

Requests arrive in an open loop at a modest rate; between two steps the scheduler asks for those that have. Without a
way, the same steps with nothing beside them.
"""

from __future__ import annotations

import time

import numpy as np

from lazycast.tools.bench.qps.loop import Loop
from lazycast.tools.bench.qps.records import Beside

_SMALL = np.random.default_rng(1).random(2000)
_ADDS = 2000


def step() -> float:
    """Do what a scheduler might between two batches: some 200 µs of it, always the same."""
    total = 0
    for number in range(_ADDS):
        total += number & 7
    return total + float(np.sort(_SMALL)[:100].sum())


def watch(seconds: float, loop: Loop | None, begin_ns: int) -> Beside:
    """Make steps for so long from `begin_ns`, beside a loop if there is one; then let the loop finish."""
    time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
    end_ns = begin_ns + round(seconds * 1e9)
    process_s, main_s = time.process_time(), time.thread_time()
    steps = 0
    while True:
        step()
        steps += 1
        if loop is not None:
            while loop.start_one():
                loop.take_all()
            loop.take_all()
        now_ns = time.monotonic_ns()
        if now_ns >= end_ns:
            break
    main_s = time.thread_time() - main_s - (loop.starting_cpu_s if loop is not None else 0.0)
    other_s = time.process_time() - process_s - main_s
    if loop is not None:
        loop.run()
    return Beside(steps, (now_ns - begin_ns) / 1e9, main_s, other_s)

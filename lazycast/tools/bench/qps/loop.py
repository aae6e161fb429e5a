"""The loop of one rank over one way: ask for requests as they arrive, take values as they come.

When a request arrives: in an open loop, at its moment in a schedule that every rank has; in a closed loop, when the
last rank has the value that makes room for it. The root follows that rule for all, where a request needs it; else every
rank does on its own.

Guarantees: `start` of a way is called from one thread, in the order of numbers. A value is dropped as soon as it is
here, but for the first few, which are kept to be verified.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np

from lazycast.errors import CastTimeoutError
from lazycast.tools.bench.qps.records import Moments
from lazycast.tools.bench.qps.tally import Tally
from lazycast.tools.bench.qps.ways import Way
from lazycast.tools.bench.sync import TIMEOUT_S

#: How often a rank that is ahead looks for the others (seconds). A look takes some 50 µs.
_LOOK_S = 2e-3


class Loop:
    """So many requests over one way.

    Args:
        first, count: the number of the first request, and how many there are.
        window: how many may be outstanding.
        begin_ns: when it all begins (CLOCK_MONOTONIC); the same on every rank.
        schedule: when requests arrive (seconds after the beginning); None in a closed loop.
        keep: how many of the first values to keep.
        tally: how far the other ranks are; set back by who makes the loop.
        led: nothing comes of a request before the root has started it, so this rank need not look when that may be.
    """

    def __init__(
        self,
        way: Way,
        pool: Sequence[Any],
        *,
        first: int,
        count: int,
        window: int,
        begin_ns: int,
        schedule: Sequence[float] | None = None,
        keep: int = 0,
        tally: Tally | None = None,
        led: bool = False,
    ) -> None:
        self._way, self._pool = way, pool
        self._first, self._count, self._window = first, count, window
        self._begin_ns = begin_ns
        self._schedule = None if schedule is None else [begin_ns + round(at * 1e9) for at in schedule]
        self._keep = keep
        self._came: queue.Queue[tuple[int, int, Any, BaseException | None]] = queue.Queue()
        self._tally = tally or Tally(None)
        self._led = led
        self.started = self.finished = 0
        self.done_ns: Moments = np.zeros(count, np.int64)
        self.blocked_s = self.starting_cpu_s = 0.0
        self.values: dict[int, Any] = {}

    def run(self) -> None:
        """Run all requests, asleep whenever there is nothing to do.

        Raises: what a request fails with; CastTimeoutError if nothing happens for long.
        """
        time.sleep(max(0.0, (self._begin_ns - time.monotonic_ns()) / 1e9))
        while self.finished < self._count:
            while self.start_one():
                self.take_all()
            wait_s = self._wait_s()
            if not self.take(wait_s) and wait_s == TIMEOUT_S:
                raise CastTimeoutError(f"{self._way.name}: {self.finished} of {self._count} requests are done")

    def start_one(self) -> bool:
        """Ask for the next request if it has arrived; return whether it had."""
        at = self.started
        if not self._has_room() or (self._schedule is not None and self._schedule[at] > time.monotonic_ns()):
            return False
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        number = self._first + at
        self.started += 1
        future = self._way.start(number, self._pool[number % len(self._pool)])
        self.blocked_s += time.perf_counter() - began_s
        self.starting_cpu_s += time.thread_time() - cpu_s
        future.add_done_callback(lambda f: self._settle(at, f))
        return True

    def _has_room(self) -> bool:
        if self.started == self._count or self.started - self.finished >= self._window:
            return False
        return self._schedule is not None or self._led or self.started - self._tally.least() < self._window

    def _settle(self, at: int, future: Future[Any]) -> None:
        """Note that a value is here. On any thread."""
        now_ns = time.monotonic_ns()
        error = CancelledError() if future.cancelled() else future.exception()
        value = future.result() if error is None and at < self._keep else None
        self._came.put((at, now_ns, value, error))

    def take(self, timeout_s: float) -> bool:
        """Take a value, waiting for one if need be; return whether there was one."""
        try:
            at, done_ns, value, error = self._came.get(timeout=timeout_s) if timeout_s > 0 else self._came.get_nowait()
        except queue.Empty:
            return False
        if error is not None:
            raise error
        self.done_ns[at] = done_ns
        self.finished += 1
        self._tally.put(self.finished)
        if at < self._keep:
            self.values[self._first + at] = value
        return True

    def take_all(self) -> None:
        """Take all values that are here."""
        while self.take(0.0):
            pass

    def _wait_s(self) -> float:
        """Until the next arrival that there is room for, or for long; not at all when there is nothing to wait for."""
        if self.finished == self._count:
            return 0.0
        if self.started == self._count or self.started - self.finished >= self._window:
            return TIMEOUT_S
        if self._schedule is None:
            return _LOOK_S  # room there is on this rank, and not on another
        return max(1e-6, (self._schedule[self.started] - time.monotonic_ns()) / 1e9)

"""How long a scheduler's loop is held up by requests with images: measured in each rank, read by who has started it.

What is timed is `ingest_requests`, in which a scheduler receives, maps and dispatches: each call in which a request
with images was received or handed on. Ranks write to memory that is made before they are forked.
"""

from __future__ import annotations

import importlib
import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_EVENTS = 1 << 16


class Stalls:
    """The calls of all ranks."""

    def __init__(self, ranks: int) -> None:
        """Make it before ranks are forked."""
        numbers = np.frombuffer(mmap.mmap(-1, ranks * (_EVENTS + 1) * 8), np.float64).reshape(ranks, _EVENTS + 1)
        self._counts, self._took_s = numbers[:, 0], numbers[:, 1:]

    def count(self, rank: int) -> int:
        """Return how many calls there have been."""
        return int(self._counts[rank])

    def since(self, rank: int, count: int) -> list[float]:
        """Return what the calls since then took, in seconds."""
        return [float(self._took_s[rank, n % _EVENTS]) for n in range(count, self.count(rank))]

    def watch(self, rank: int) -> None:
        """Measure this process's scheduler from now on."""
        cls: Any = importlib.import_module("sglang.srt.managers.scheduler").Scheduler
        cls.ingest_requests = self._timed(cls.ingest_requests, rank)

    def _timed(self, original: Callable[..., Any], rank: int) -> Callable[..., Any]:
        def ingest_requests(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            before = _aside(scheduler)
            began_s = time.perf_counter()
            received = original(scheduler, *args, **kwargs)
            took_s = time.perf_counter() - began_s
            with_images = any(getattr(request, "mm_inputs", None) is not None for request in received)
            if with_images or _aside(scheduler) > before:
                count = self.count(rank)
                self._took_s[rank, count % _EVENTS] = took_s
                self._counts[rank] = count + 1
            return received

        return ingest_requests


def _aside(scheduler: Any) -> int:
    desk = vars(scheduler).get("_lazycast_desk")
    return 0 if desk is None else len(desk.aside)

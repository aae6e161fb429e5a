"""For how long a call keeps the interpreter from the other threads of its process.

A thread beside it sleeps for a millisecond at a time, and notes how much later than asked it goes on. From that comes
off what it has waited for a core, which Linux counts, and what other threads have computed meanwhile: that was not the
call. What is left, it has waited for the interpreter's lock, and so would any other thread; but a call holds that for
no longer than it computes, or waits for a core.

Guarantees: the thread has ended when the watch has. A watch that cannot begin says nothing; it fails nobody.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from types import TracebackType
from typing import Final, TextIO

_TICK_S: Final = 0.001
_LATE_S: Final = 0.001  # what a thread that is woken may be late by anyhow
_RUN_QUEUE: Final = "/proc/thread-self/schedstat"
_FIRST: Final = 4  # calls of a materializer that are all watched
_EVERY: Final = 16  # and one of so many afterwards
_KEPT: Final = 256


def _times(said: TextIO) -> tuple[float, float]:
    """How long a thread has computed, and waited for a core, by what the kernel says of it (seconds)."""
    said.seek(0)
    computed_ns, queued_ns, _ = said.read().split()
    return int(computed_ns) / 1e9, int(queued_ns) / 1e9


def _own_s() -> float | None:
    """How long the calling thread has wanted a core, and had it or not; None: the kernel does not say so."""
    try:
        with open(_RUN_QUEUE) as said:
            return sum(_times(said))
    except (OSError, ValueError):
        return None


class Watch:
    """Watches what the calling thread does within `with`. Starts a thread, which takes some 0.1 ms.

    Attributes:
        held_s: afterwards, for how long other threads have waited for the interpreter (seconds); None: not known.
    """

    def __init__(self) -> None:
        self.held_s: float | None = None
        self._late_s = 0.0
        self._known = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="lazycast-watch", daemon=True)

    def __enter__(self) -> Watch:
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be had
            self._over.set()
        self._own_s = _own_s()
        self._others_s = time.process_time() - time.thread_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        others_s = time.process_time() - time.thread_time() - self._others_s
        own_s = _own_s()
        began = not self._over.is_set()
        self._over.set()
        if began:
            self._thread.join()
            if self._known and own_s is not None and self._own_s is not None:
                self.held_s = max(0.0, min(self._late_s - others_s, own_s - self._own_s))

    def _tick(self) -> None:
        try:
            with open(_RUN_QUEUE) as said:
                self._count(said)
            self._known = True
        except (OSError, ValueError):  # a kernel that does not say so
            return

    def _count(self, said: TextIO) -> None:
        over = False
        _, queued_s = _times(said)
        while not over:
            began_s = time.monotonic()
            over = self._over.wait(_TICK_S)
            late_s = time.monotonic() - began_s - _TICK_S
            before_s = queued_s
            _, queued_s = _times(said)
            late_s -= queued_s - before_s
            if late_s > _LATE_S:
                self._late_s += late_s


class Watching:
    """Which calls are watched: the first ones of each materializer, and a few later. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: OrderedDict[str, int] = OrderedDict()

    def due(self, materializer: str) -> bool:
        """Count a call, and return whether it is to be watched."""
        with self._lock:
            calls = self._calls.pop(materializer, 0)
            self._calls[materializer] = calls + 1
            if len(self._calls) > _KEPT:
                self._calls.popitem(last=False)
        return calls < _FIRST or calls % _EVERY == 0

"""What comes of the casts of several roots, one after the other: `next` where every rank is a root.

Guarantees: casts of one root are taken in its order, and of those that wait what came first goes first. That one root
has closed ends nothing, as long as another may cast.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from lazycast.core.asks import Asks
from lazycast.core.engine import Engine, Taken
from lazycast.core.interrupts import Uninterrupted
from lazycast.net.wire import Failure


class Source(Protocol):
    """The lane of another root. Its attributes are looked at with the engine's lock held."""

    @property
    def ended(self) -> Failure | None:
        """Why nothing more can come, once that is so."""

    def came_s(self, *, keyed: bool) -> float | None:
        """Return when that came which is to be taken first (monotonic seconds); None if nothing waits."""

    @property
    def asks(self) -> Asks:
        """Whose gates open when something has changed."""

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        """Take what came first: see `Lane`."""


class Coming:
    """See the module's text. Thread-safe."""

    def __init__(self, engine: Engine, sources: Sequence[Source]) -> None:
        self._engine, self._sources = engine, sources

    def next_call(self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool, looks: bool) -> None:
        """As `Lane.next_call`, of all roots."""
        deadline_s = time.monotonic() + wait_s
        while True:
            gate = threading.Lock()
            gate.acquire()

            def wake(gate: threading.Lock = gate) -> None:
                with contextlib.suppress(RuntimeError):  # it is open: another root's lane was quicker
                    gate.release()

            left_s = deadline_s - time.monotonic()
            with Uninterrupted(), self._engine.lock:
                first, over = self._first(keyed=keyed), self._is_over()
                if first is None and not over and left_s > 0:
                    for source in self._sources:
                        source.asks.gates.wake(wake)
            if first is not None:
                first.next_call(taken, 0.0, timeout_s, keyed=keyed, looks=True)
                if taken:
                    return
            elif over:
                self._last().next_call(taken, 0.0, timeout_s, keyed=keyed, looks=looks)
                return
            elif left_s <= 0:
                return
            else:
                try:
                    gate.acquire(timeout=left_s)
                finally:
                    self._engine.forget_waker(wake)

    def when_come(self, wake: Callable[[], None]) -> bool:
        """As `Lane.when_come`, of all roots."""
        with Uninterrupted(), self._engine.lock:
            if self._first(keyed=False) is not None or self._is_over():
                return True
            for source in self._sources:
                source.asks.gates.wake(wake)
            return False

    def _first(self, *, keyed: bool) -> Source | None:
        """With the lock held."""
        came = [(came_s, source) for source in self._sources if (came_s := source.came_s(keyed=keyed)) is not None]
        return min(came, key=lambda one: one[0])[1] if came else None

    def _is_over(self) -> bool:
        """With the lock held: whether nothing more can come of anybody, or this rank closes."""
        return self._engine.closing or all(source.ended is not None for source in self._sources)

    def _last(self) -> Source:
        """Of all that have ended, the one that says why: a loss, if there was one."""
        lost = (source for source in self._sources if source.ended is not None and source.ended.kind == "lost")
        return next(lost, self._sources[0])

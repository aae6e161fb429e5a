"""Brings together the casts that arrive at a rank and the calls that ask for them: plain data, no threads.

Guarantees:

* Per key (and for calls without one), the n-th ask gets the n-th arrival, whichever comes first.
* An ask that was given up (timed out, cancelled, refused, discarded) still counts: it consumes its arrival.
* Memory is proportional to what waits; a key that has been served leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from lazycast.net.wire import Key

A = TypeVar("A")  # asks
C = TypeVar("C")  # arrivals
T = TypeVar("T")


class Mailbox(Generic[A, C]):
    """Two kinds of waiting things per key, never both at once. Not thread-safe."""

    def __init__(self) -> None:
        self._asks: dict[Key | None, deque[A]] = {}
        self._arrivals: dict[Key | None, deque[C]] = {}

    def ask(self, key: Key | None, ask: A) -> C | None:
        """Return the arrival that was waiting for this ask, or keep the ask and return None."""
        waiting = self._arrivals.get(key)
        if waiting is None:
            self._asks.setdefault(key, deque()).append(ask)
            return None
        return _pop(self._arrivals, key, waiting)

    def take(self, key: Key | None) -> C | None:
        """Return the arrival that waits for the next ask, if there is one; remember nothing."""
        waiting = self._arrivals.get(key)
        return None if waiting is None else _pop(self._arrivals, key, waiting)

    def arrive(self, key: Key | None, arrival: C) -> A | None:
        """Return the ask that was waiting for this arrival, or keep the arrival and return None."""
        waiting = self._asks.get(key)
        if waiting is None:
            self._arrivals.setdefault(key, deque()).append(arrival)
            return None
        ask = waiting.popleft()  # `_pop`, without the call: every cast passes here
        if not waiting:
            del self._asks[key]
        return ask

    def asks(self) -> list[A]:
        """Return the asks that wait for an arrival."""
        return [ask for waiting in list(self._asks.values()) for ask in list(waiting)]

    def arrivals(self) -> list[C]:
        """Return the arrivals nobody has asked for."""
        return [arrival for waiting in list(self._arrivals.values()) for arrival in list(waiting)]

    def clear_asks(self) -> None:
        """Forget all waiting asks: nothing will arrive any more."""
        self._asks.clear()


def _pop(table: dict[Key | None, deque[T]], key: Key | None, waiting: deque[T]) -> T:
    first = waiting.popleft()
    if not waiting:
        del table[key]
    return first

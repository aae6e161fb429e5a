"""Brings together the casts that arrive at a rank and the calls that ask for them: plain data, no threads.

Guarantees:

* Per key (and for calls without one), the n-th ask gets the n-th arrival, whichever comes first.
* An ask that was given up (timed out, cancelled, refused, discarded) still counts: it consumes its arrival.
* `first` is what came before all others that wait: to take one after the other takes them as they came.
* Memory is proportional to what waits; a key that has been served leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from lazycast.net.wire import Key

A = TypeVar("A")  # asks
C = TypeVar("C")  # arrivals


class _Place(Generic[C]):
    """An arrival that waits."""

    __slots__ = ("arrival", "key")

    def __init__(self, key: Key | None, arrival: C) -> None:
        self.key, self.arrival = key, arrival


class Mailbox(Generic[A, C]):
    """Two kinds of waiting things per key, never both at once. Not thread-safe."""

    def __init__(self) -> None:
        self._asks: dict[Key | None, deque[A]] = {}
        self._arrivals: dict[Key | None, deque[_Place[C]]] = {}
        self._order: dict[_Place[C], None] = {}  # of all arrivals

    def ask(self, key: Key | None, ask: A) -> C | None:
        """Return the arrival that was waiting for this ask, or keep the ask and return None."""
        if key not in self._arrivals:
            self._asks.setdefault(key, deque()).append(ask)
            return None
        return self.take(key)

    def take(self, key: Key | None) -> C | None:
        """Return the arrival that waits for the next ask, if there is one; remember nothing."""
        waiting = self._arrivals.get(key)
        if waiting is None:
            return None
        place = waiting.popleft()
        if not waiting:
            del self._arrivals[key]
        del self._order[place]
        return place.arrival

    def arrive(self, key: Key | None, arrival: C) -> A | None:
        """Return the ask that was waiting for this arrival, or keep the arrival and return None."""
        waiting = self._asks.get(key)
        if waiting is None:
            place = _Place(key, arrival)
            self._arrivals.setdefault(key, deque()).append(place)
            self._order[place] = None
            return None
        ask = waiting.popleft()
        if not waiting:
            del self._asks[key]
        return ask

    def first(self, *, keyed: bool) -> C | None:
        """Return what came before all others, of those with a key if `keyed`. It goes on waiting."""
        return next((place.arrival for place in self._order if not keyed or place.key is not None), None)

    def asks(self) -> list[A]:
        """Return the asks that wait for an arrival."""
        return [ask for waiting in list(self._asks.values()) for ask in list(waiting)]

    def arrivals(self) -> list[C]:
        """Return the arrivals nobody has asked for, as they came."""
        return [place.arrival for place in list(self._order)]

    def clear_asks(self) -> None:
        """Forget all waiting asks: nothing will arrive any more."""
        self._asks.clear()

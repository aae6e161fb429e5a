"""A queue for one thread that takes, and may wait for a time as short as it likes.

Not `queue.SimpleQueue`: before Python 3.13 its `get(timeout=...)` waits for ever if the time is over as it begins to
wait, which a thread that was not run for a moment finds often enough with microseconds. Not `queue.Queue`: its `put`
may not be called while a `put` of the same thread is under way, as a signal handler or a finalizer does.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """See the module's text. Any thread may put."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._asleep = threading.Lock()  # held while there is nothing: who puts something releases it

    def put(self, item: T) -> None:
        """Add an item. Reentrant, never waits."""
        self._items.append(item)
        if self._asleep.locked():
            try:
                self._asleep.release()
            except RuntimeError:  # another one was first
                return

    def take(self, wait_s: float) -> T | None:
        """Return the oldest item. None if there is none and none comes within `wait_s` seconds; now and then sooner."""
        items = self._items
        if not items:
            self._asleep.acquire(blocking=False)  # whether or not it is held already: from now on it is
            if not items:  # what comes from here on releases it
                self._asleep.acquire(timeout=wait_s)
        return items.popleft() if items else None

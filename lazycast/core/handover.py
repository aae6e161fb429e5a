"""What comes in the middle of lazycast's own work, and is done when that is over.

Guarantees: what is handed over is done once, in its order, by whoever makes the next call or by the engine's thread.
What comes in the middle of our own work in the same thread, from a finalizer that the collector runs there, may look:
the engine's lock lets it in. What would change something is handed over.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from lazycast.core.interrupts import Uninterrupted
from lazycast.core.workers import inside, role_of
from lazycast.errors import ClosedError

logger = logging.getLogger("lazycast")


class Handover:
    """See the module's text. Thread-safe.

    Args:
        owner: of the work: see `workers.inside`.
        wake: makes the engine's thread look.
        closed: whether that thread has ended.
    """

    def __init__(self, owner: object, wake: Callable[[], None], closed: threading.Event) -> None:
        self._owner, self._wake, self._closed = owner, wake, closed
        #: What was asked for, with its arguments. Filled in one step, from anywhere.
        self.waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._at_it = threading.Lock()  # held by the thread that does it

    def put(self, fn: Callable[..., object], *args: object) -> None:
        """Have something done that cannot be done in the middle of what this thread is at."""
        self.waiting.append((fn, args))
        self._wake()
        if self._closed.is_set():
            # Nobody else will, unless they are at it; and by now it can only fail. Not to be waited for: this thread is
            # in the middle of its work, and may hold what whoever is at it waits for.
            self.do(wait=False)

    def do(self, *, wait: bool = True) -> None:
        """Do what was handed over, in its order. Call it before anything that takes a place in line, without the lock.

        Without `wait`, what another thread is doing is left to that one, which looks again when it is done.
        """
        if role_of(self._owner) == "finalizer":
            return  # it is being done: what comes first is in the middle of its own call
        with Uninterrupted(), inside(self._owner, "finalizer"):
            while self.waiting and self._at_it.acquire(blocking=wait):
                try:
                    self._do_first()
                finally:
                    self._at_it.release()

    def _do_first(self) -> None:
        """Do what was handed over first. It stays there meanwhile, so that other threads' calls come after it."""
        if not self.waiting:  # another thread has done it
            return
        fn, args = self.waiting[0]
        try:
            fn(*args)
        except ClosedError as exc:  # closed meanwhile; whoever asked for it has gone on
            logger.debug("lazycast: what was handed over came too late: %s", exc)
        finally:
            self.waiting.popleft()

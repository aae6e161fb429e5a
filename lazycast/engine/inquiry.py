"""The root answers whoever waits, itself included: who is missing, who has answered, who does not answer at all.

Guarantees: queries are taken and answered without blocking; answers are made up when they are sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

import msgspec

from lazycast.engine.rollcall import RollCalls
from lazycast.relay import Relay
from lazycast.wire import Query, RollCall, Silence, Status


class Inquiries:
    """See the module's text. Thread-safe.

    Args:
        lock: the lane's; guards the books, and is not held while something is sent.
        others: the ranks beside the root.
        answer: makes the answer to a query, but for the silent ranks; called with the lock held.
        mine: takes the answer to a query of the root itself.
        wake: makes the engine thread call `work`.
    """

    def __init__(
        self,
        lock: threading.Lock,
        relay: Relay,
        others: Collection[int],
        *,
        answer: Callable[[Query], Status],
        mine: Callable[[Status], None],
        wake: Callable[[], None],
    ) -> None:
        self._lock, self._relay = lock, relay
        self._answer, self._mine, self._wake = answer, mine, wake
        self._calls = RollCalls(others)
        self._root: int | None = None

    def ask(self, query: Query, *, own: bool = False) -> None:
        """Take a query."""
        if own:
            self._root = query.rank
        with self._lock:
            call = self._calls.ask(query, time.monotonic())
        if call:
            self._relay.down(RollCall())
        self._wake()

    def present(self, rank: int) -> None:
        """A rank has answered a roll call."""
        with self._lock:
            self._calls.present(rank, time.monotonic())
        self.work()

    def gone(self, rank: int) -> None:
        """With the lock held: a rank has ended."""
        self._calls.gone(rank)

    def work(self) -> float | None:
        """Answer what can be answered; return when to be called again."""
        if not self._calls.waiting:  # without the lock: the engine thread passes here at every turn
            return None
        now_s = time.monotonic()
        with self._lock:
            ready = self._calls.ready(now_s)
            silent = self._silences(now_s) if ready else []
            answers = [msgspec.structs.replace(self._answer(query), silent=silent) for query in ready]
            next_s = self._calls.next_s()
        for status in answers:
            if status.to == self._root:
                self._mine(status)
            else:
                self._relay.one(status)
        return next_s

    def _silences(self, now_s: float) -> list[Silence]:
        return self._calls.silences(now_s, self._relay.heard_ago_s)

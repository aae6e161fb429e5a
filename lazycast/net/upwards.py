"""What goes up from a rank that others are below: what they say of casts is combined, and sent in one order.

Guarantees: what was combined before is overtaken by nothing that is decided after it, so deciding and sending happen
under one lock. Sending never blocks. A roll call, and the news of an end, find nothing held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from lazycast.net import wire
from lazycast.net.combining import Combining
from lazycast.net.wire import Cast, Drop, Read, Report, RollCall


class Upwards:
    """See the module's text. Thread-safe.

    Args:
        send: sends a header towards the root.
        wake: is called when `tell_reads` has something to do earlier than it has said.
    """

    def __init__(
        self, combining: Combining, rank: int, send: Callable[[bytes], None], wake: Callable[[], None]
    ) -> None:
        self.combining = combining
        self._rank, self._send, self._wake = rank, send, wake
        #: Told of each report, and of the first cast of those that were read, that goes up from here as this rank's.
        self.said: Callable[[str, int], None] | None = None
        self._lock = threading.Lock()

    def take(self, message: Report | Read) -> None:
        """Take what this rank, or one below, says of casts; send what goes up now."""
        combining, now_s = self.combining, time.monotonic()
        with self._lock:
            before_s = combining.due_s
            if isinstance(message, Report):
                self._say(combining.report(message, now_s))
            else:
                combining.read(message, now_s)
            self._say(combining.take(now_s))
            due_s = combining.due_s
        if due_s is not None and (before_s is None or due_s < before_s):
            self._wake()

    def look_at(self, message: Cast | Drop | RollCall) -> None:
        """Know what those below will speak of, before they can: a message on its way down."""
        combining = self.combining
        with self._lock:
            if isinstance(message, Cast):
                combining.opened(message, time.monotonic())
            elif isinstance(message, Drop):
                combining.dropped(message.seq)
            else:
                self._say(combining.asked(time.monotonic()))

    def tell_reads(self, now_s: float) -> float | None:
        """Pass on what ranks below have asked for, if it is time; return when to come back (monotonic seconds)."""
        combining = self.combining
        if combining.due_s is None:
            return None
        with self._lock:
            self._say(combining.take(now_s))
            return combining.due_s

    def stop(self) -> None:
        """A rank has ended: what is held goes up, before the news, and nothing is held any more."""
        with self._lock:
            self._say(self.combining.stop())
            self._say(self.combining.take(time.monotonic()))

    def _say(self, messages: Sequence[Report | Read]) -> None:
        """With the lock held."""
        for message in messages:
            if self.said is not None and message.rank == self._rank:
                if isinstance(message, Report):
                    self.said("report", message.seq)
                else:
                    self.said("read", message.seqs[0])
            self._send(wire.encode(message))

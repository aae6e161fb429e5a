"""Ranks that have stopped asking while casts go on: a main loop that has ended, or stands still. Plain data, no clock.

Guarantees: a rank is named once, and again only after it has asked for what it was named for. Where nobody asks, and
nothing more is cast, nobody is named: the group rests.
"""

from __future__ import annotations

import math

import msgspec

from lazycast.core.ledger import Ledger
from lazycast.net.members import bits, ranks_of
from lazycast.net.wire import Key


class Lag(msgspec.Struct, frozen=True):
    """A rank that lags: since when (seconds), by how many casts, and the oldest of them."""

    rank: int
    for_s: float
    casts: int
    seq: int
    key: Key | None


class Lagging:
    """See the module's text. Not thread-safe.

    Args: `after_s` is how long a cast may stay unasked for while others go on (seconds).
    """

    def __init__(self, ledger: Ledger, after_s: float) -> None:
        self._ledger, self._after_s = ledger, after_s
        self._named: dict[int, int] = {}  # by rank: the cast that it was named for
        self.next_s = math.inf if math.isinf(after_s) else 0.0  # when to look again, if anything is on the books

    def turn(self, now_s: float) -> list[Lag]:
        """Return who is to be named now."""
        if now_s < self.next_s:
            return []
        ledger, news = self._ledger, []
        self._named = {rank: seq for rank, seq in self._named.items() if ledger.is_unread(rank, seq)}
        self.next_s = now_s + self._after_s
        for seq, entry in ledger.entries.items():  # as they were sent
            if not entry.unread:
                continue
            age_s = now_s - entry.sent_s
            if age_s < self._after_s:
                self.next_s = min(self.next_s, entry.sent_s + self._after_s)
                break
            goes_on = entry.unread.bit_count() < ledger.readers or now_s - ledger.last_sent_s < self._after_s
            for rank in ranks_of(entry.unread & ~bits(self._named)) if goes_on else ():
                self._named[rank] = seq
                news.append(Lag(rank, age_s, ledger.unread_of(rank), seq, entry.key))
        return news

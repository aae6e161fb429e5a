"""The root's book of who answers: plain data, no threads, no clock.

Guarantees:

* Nobody is called on unless somebody waits: there is no traffic in an idle group.
* A query is answered as soon as everybody has answered the roll call, or when most of the time of whoever asks is over.
* To look whether any can be answered takes no longer if many wait.
* A rank has one query open at most for each of its calls, and `_MOST` in all: what comes beyond that is not kept.
* A rank is silent from the first roll call that it has not answered until anything answers for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection

from lazycast.net.wire import Query, Silence

#: How much of the time that whoever asks has left the ranks get for their answers.
_SHARE = 0.6
#: Queries that come so close after each other share a roll call (seconds).
_TOGETHER_S = 0.02
#: No query waits longer, whatever time it says it has (seconds): ranks ask a second or so before they must know.
_LONGEST_S = 60.0
#: How many queries of one rank may wait. Whoever asks has been told at once what is known; more would fill memory.
_MOST = 4096


class RollCalls:
    """Queries that wait for the ranks to answer. Not thread-safe.

    Args:
        others: the ranks beside the root.
        members: of a rank and those below it, for whom it may speak, as a set of `net.members`.
    """

    def __init__(self, others: Collection[int], members: Callable[[int], int] = lambda rank: 1 << rank) -> None:
        self._others, self._members = set(others), members
        self._open: list[tuple[float, int, Query]] = []  # a heap: (due, number, query)
        self._asking: dict[int, set[int]] = {}  # by rank: the calls that it has a query open for
        self._taken = 0
        self._called_s: float | None = None
        self._since_s: dict[int, float] = {}  # by silent rank
        self._heard_s: dict[int, float] = {}
        self._whole_s: dict[int, float] = {}  # by rank: when it spoke for all below it

    def ask(self, query: Query, now_s: float) -> bool:
        """Take a query. True if a roll call is to be sent for it."""
        asking = self._asking.setdefault(query.rank, set())
        if query.token in asking or len(asking) >= _MOST:
            return False
        asking.add(query.token)
        within_s = max(0.0, min(_LONGEST_S, query.within_s))  # in this order, for one that is no number
        self._taken += 1
        heapq.heappush(self._open, (now_s + within_s * _SHARE, self._taken, query))
        if self._called_s is not None and now_s - self._called_s < _TOGETHER_S and self._since_s:
            return False
        self._called_s = now_s
        for rank in self._others:
            self._since_s.setdefault(rank, now_s)
        return True

    @property
    def waiting(self) -> bool:
        """Whether any query waits."""
        return bool(self._open)

    def heard(self, rank: int, now_s: float, *, whole: bool = False) -> None:
        """Something has come from a rank by way of others, or, `whole`, of all ranks below it."""
        (self._whole_s if whole else self._heard_s)[rank] = now_s

    def present(self, rank: int, now_s: float) -> None:
        """A rank has answered."""
        if rank in self._others:
            self._heard_s[rank] = now_s
            self._since_s.pop(rank, None)

    def gone(self, rank: int) -> None:
        """A rank has ended; nobody expects an answer of it."""
        self._others.discard(rank)
        self._since_s.pop(rank, None)

    def ready(self, now_s: float) -> list[Query]:
        """Return and take off the queries that can be answered."""
        ready = []
        while self._open and (not self._since_s or self._open[0][0] <= now_s):
            query = heapq.heappop(self._open)[2]
            self._asking[query.rank].discard(query.token)
            ready.append(query)
        return ready

    def next_s(self) -> float | None:
        """Return when to look again, or None."""
        return self._open[0][0] if self._open else None

    def silences(self, now_s: float, heard_ago_s: Callable[[int], float | None], most: int) -> list[Silence]:
        """Return the first `most` who are silent; `heard_ago_s` knows when something came from a neighbour."""
        found = []
        for rank, since_s in heapq.nsmallest(most, self._since_s.items()):
            heard_s = heard_ago_s(rank)
            times_s = [at_s for by, at_s in self._whole_s.items() if self._members(by) >> rank & 1]
            times_s += [self._heard_s[rank]] if rank in self._heard_s else []
            if heard_s is None and times_s:
                heard_s = now_s - max(times_s)
            found.append(Silence(rank, now_s - since_s, heard_s))
        return found

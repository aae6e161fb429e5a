"""The casts that another rank of this host materializes, and what such owners have said: plain data, no threads.

Guarantees:

* A value, or the news that somebody will not make it, counts in whatever order they come, also before the cast itself.
* A cast is taken off when its value is there, when this rank is the owner itself, or when its owner has gone.
* Of what comes before its cast, only so much is kept of each rank: one that says too much loses its own words alone.
* Of a cast that several make, each part counts for itself.
* Nobody but its owner makes the value of a cast. An owner that has heard that a cast has failed declines it: the others
  wait for the root's word, which may come later to them.
* Every answer is a function of what was told before; the caller acts on it outside any lock.
"""

from __future__ import annotations

import logging

from lazycast.core.arrival import Arrival
from lazycast.core.items.gathering import Gathering
from lazycast.net.wire import Failure, Pass, Value

logger = logging.getLogger("lazycast")

#: How many early messages of one rank are kept. What a value can overtake is in flight, and the root's `max_inflight`,
#: which may be another one than this rank's, bounds that.
_MOST_EARLY = 4096


class Awaited:
    """See the module's text. Not thread-safe."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._casts: dict[int, Arrival] = {}  # by seq: those whose owner has not sent its `Value`
        self._early: dict[int, list[tuple[Value | Pass, memoryview]]] = {}  # from owners, before the cast itself
        self._early_count: dict[int, int] = {}  # of these, by sender
        self._late_passes: dict[int, int] = {}  # by seq: how many are still to come of a cast that is off
        self._silent: dict[int, Failure] = {}  # ranks of this host that send no more, and why

    def admit(self, arrival: Arrival) -> None:
        """Book a new cast that another rank owns, and give it what has been said of it already."""
        seq = arrival.message.seq
        self._casts[seq] = arrival
        early = self._early.pop(seq, ())
        for said, _ in early:
            self._early_count[said.rank] -= 1
        for said, body in sorted(early, key=lambda entry: isinstance(entry[0], Value)):  # the owner, then its value
            if self._casts.get(seq) is not arrival:
                self._late(said)
            else:
                self._note(arrival, said, body)
        if arrival.items is None:
            self._last_word(arrival)
        else:
            for rank, failure in self._silent.items():
                arrival.items.gone(rank, failure)
            self._settle_parts(arrival)

    def hear(self, message: Value | Pass, body: memoryview, *, keep: bool) -> tuple[Arrival | None, bool]:
        """Take what an owner says; with `keep`, also of a cast that is still to come.

        Returns the cast, if it is booked, and whether this rank is its owner now and has given it up before.
        """
        seq = message.seq
        arrival = self._casts.get(seq)
        if arrival is not None:
            again = self._note(arrival, message, body)
            if not isinstance(message, Value):
                self._last_word(arrival)
            return arrival, again
        if seq in self._late_passes:
            self._late(message)
        elif keep:
            self._keep(message, body)
        return None, False

    def _late(self, message: Value | Pass) -> None:
        """Take what is said of a cast that is off."""
        if isinstance(message, Pass):
            self._count_pass(message.seq, self._late_passes.pop(message.seq, 0) - 1)

    def _keep(self, message: Value | Pass, body: memoryview) -> None:
        count = self._early_count.get(message.rank, 0)
        if count < _MOST_EARLY:
            self._early_count[message.rank] = count + 1
        else:  # its oldest one goes: of what is still in flight there are fewer
            seq, said = next((s, e) for s, e in self._early.items() if any(m.rank == message.rank for m, _ in e))
            said.remove(next(entry for entry in said if entry[0].rank == message.rank))
            if not said:
                del self._early[seq]
        self._early.setdefault(message.seq, []).append((message, body))

    def pass_on(self, arrival: Arrival, to: int) -> None:
        """Book that this rank, the owner of a cast, leaves it to another one: its value will come here too."""
        arrival.owner, arrival.passed = to, [*arrival.passed, self._rank]
        arrival.passes = len(arrival.passed) - self._late_passes.pop(arrival.message.seq, 0)
        self._casts[arrival.message.seq] = arrival
        self._last_word(arrival)

    def gone(self, owner: int, failure: Failure) -> list[Arrival]:
        """Book that a rank sends no more; return the casts that fail with it, now taken off."""
        self._silent[owner] = failure  # for casts that are still to come
        failing = []
        for arrival in list(self._casts.values()):
            if arrival.items is not None:
                if arrival.items.gone(owner, failure):
                    failing.append(arrival)
                    self._settle_parts(arrival)
            elif arrival.owner == owner:
                failing.append(arrival)
                del self._casts[arrival.message.seq]
        return failing

    def clear(self) -> None:
        """Let go of all casts, and of what was said of those that have not come."""
        for table in (self._casts, self._early, self._early_count, self._late_passes):
            table.clear()

    def lines(self) -> list[str]:
        """Return a line for each cast."""
        return [f"#{a.message.seq}: rank {a.owner} materializes it" for a in list(self._casts.values())]

    def __len__(self) -> int:
        return len(self._casts) + len(self._early) + len(self._late_passes)

    def _note(self, arrival: Arrival, message: Value | Pass, body: memoryview) -> bool:
        """Note what an owner says of a cast. True if this rank is the owner now, and has given it up before."""
        if isinstance(message, Value) and arrival.items is not None:
            self._note_part(arrival, arrival.items, message, body)
            return False
        if isinstance(message, Value):
            if message.rank != arrival.owner and arrival.message.fingerprint is None:
                # Where all have the payload an owner may leave a cast to another one, and that news may come later.
                text = "lazycast: rank %d has sent a value of cast #%d, which rank %s owns; it is dropped"
                logger.warning(text, message.rank, message.seq, arrival.owner)
                return False
            del self._casts[message.seq]
            self._count_pass(message.seq, message.passes - arrival.passes)
            if message.failure is not None and message.failure.kind == "refused":
                arrival.declined = True
            elif arrival.final is None and not arrival.begun:
                arrival.shared = message, body
            return False
        arrival.passes += 1
        if len(message.passed) > len(arrival.passed):  # they come from several ranks, in any order
            arrival.owner, arrival.passed = message.to, message.passed
        if message.to != self._rank:
            return False
        del self._casts[message.seq]
        self._count_pass(message.seq, len(arrival.passed) - arrival.passes)
        return arrival.begun or arrival.final is not None

    def _note_part(self, arrival: Arrival, items: Gathering, message: Value, body: memoryview) -> None:
        """Note a part of a cast that several make."""
        if not items.take(message, body):
            text = "lazycast: rank %d has sent part %d of cast #%d, which is not its own, or again; it is dropped"
            logger.warning(text, message.rank, message.part, message.seq)
        arrival.declined |= items.declined
        self._settle_parts(arrival)

    def _settle_parts(self, arrival: Arrival) -> None:
        """A cast of which all parts have been heard is off."""
        if arrival.items is not None and not arrival.items.awaits:
            self._casts.pop(arrival.message.seq, None)

    def _last_word(self, arrival: Arrival) -> None:
        """If the owner of a cast has gone, and left nothing for it, what it was to make fails."""
        seq, owner = arrival.message.seq, arrival.owner
        if owner in self._silent and self._casts.pop(seq, None) is not None:
            arrival.shared = Value(owner, seq, failure=self._silent[owner]), memoryview(b"")

    def _count_pass(self, seq: int, left: int) -> None:
        """A value, or the last of the news, can overtake news of how its owner came to be it, which others send."""
        if left > 0:
            self._late_passes[seq] = left

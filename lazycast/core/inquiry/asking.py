"""What a rank has asked the root about its calls that wait, and what came of it: plain data, no threads, no clock.

Guarantees: an answer counts for the call that it was asked for, as long as that waits; any other is dropped.
"""

from __future__ import annotations

from typing import Any

from lazycast.core.future import CastFuture, Inquiry
from lazycast.core.situation import Phase
from lazycast.net.wire import Query, Relayed, Status


class Queries:
    """See the module's text. Not thread-safe."""

    def __init__(self, rank: int, root: int) -> None:
        self._rank, self._root = rank, root
        self._asks: dict[int, CastFuture[Any]] = {}  # by number

    def open(self, ask: CastFuture[Any], now_s: float) -> Query:
        """Book that the root is asked about a call; return the question."""
        last, arrival = ask.inquiry, ask.arrival
        ask.inquiry = Inquiry(last.asked_s if last is not None and last.status is None else now_s)
        self._asks[ask.number] = ask
        seq = arrival.message.seq if arrival is not None else None
        return Query(self._rank, ask.number, seq, ask.key, max(0.0, ask.next_s - now_s))

    def answered(self, message: Status | Relayed) -> None:
        """Book what came of a question."""
        ask = self._asks.get(message.token)
        if ask is None or ask.inquiry is None:
            return
        if isinstance(message, Relayed):
            ask.inquiry.relayed.add(message.by)
        else:
            ask.inquiry.status = message

    def forget(self, ask: CastFuture[Any]) -> None:
        """A call waits no more."""
        self._asks.pop(ask.number, None)

    def __len__(self) -> int:
        return len(self._asks)

    # What the root has said of a call

    def before_arrival(self, ask: CastFuture[Any]) -> Phase:
        """Return how far a call without a cast has come."""
        status = _status(ask)
        if status is None:
            return "not arrived", (self._root,), ()
        return f"not arrived; {status.phase}", tuple(status.missing), tuple(status.answered)

    def agreement(self, ask: CastFuture[Any]) -> Phase:
        """Return how far a call has come whose part is done here."""
        status = _status(ask)
        if status is None:
            return "agreeing", (self._root,), (self._rank,)
        return status.phase, tuple(status.missing), tuple(status.answered)

    def notes(self, ask: CastFuture[Any]) -> tuple[str, ...]:
        """Return what else there is to say of a call."""
        notes = [f"made at {ask.origin.site}"] if ask.origin is not None else []
        status = _status(ask)
        if status is None or ask.arrival is not None:
            return tuple(notes)
        if ask.key is None:
            notes.append(f"the root has made {status.calls} calls without a key, this is number {ask.nth} here")
        if status.recent:
            notes.append(f"the root's last calls: {', '.join(status.recent)}")
        return tuple(notes)


def _status(ask: CastFuture[Any]) -> Status | None:
    return ask.inquiry.status if ask.inquiry is not None else None

"""The root answers whoever waits, itself included: who is missing, who has answered, who does not answer at all.

Guarantees: queries are taken and answered without blocking: at once, and again when the roll has been called.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from lazycast.core.calls import CallPhase, Calls
from lazycast.core.divergence import SHOWN_CALLS, made
from lazycast.core.future import CastFuture, Inquiry
from lazycast.core.inquiry.rollcall import RollCalls
from lazycast.core.ledger import Ledger
from lazycast.core.situation import Phase
from lazycast.core.window import Window
from lazycast.net.relay import Relay
from lazycast.net.wire import Present, Query, RollCall, Status

_SHOWN_HOLDERS = 3
_SHOWN_RANKS = 100  # of each kind: an answer is a header


class Inquiries:
    """See the module's text. Thread-safe.

    Args:
        lock: the lane's; guards the books, and is not held while something is sent.
        others: the ranks beside the root.
        unkeyed: how many calls without a key the root has made.
        wake: makes the engine thread call `work`.
    """

    def __init__(
        self,
        root: int,
        lock: threading.RLock,
        relay: Relay,
        others: Collection[int],
        books: tuple[Ledger, Calls, Window],
        *,
        unkeyed: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self._root, self._lock, self._relay = root, lock, relay
        self._ledger, self._calls, self._window = books
        self._unkeyed, self._wake = unkeyed, wake
        self._rolls = RollCalls(others, relay.members)
        self.far = {rank for rank in others if relay.is_far(rank)}
        self._holders: dict[int, str] = {}  # by rank: what its workers were busy with when it answered last
        self._own: dict[int, CastFuture[Any]] = {}  # by number: calls of the root about which the ranks are asked
        self._recent: deque[str] = deque(maxlen=SHOWN_CALLS)

    # Asking

    def ask(self, query: Query) -> None:
        """Take the query of a rank: tell it at once what is known here, and again when the ranks have answered."""
        with self._lock:
            call = self._rolls.ask(query, time.monotonic())
            status = self._answer(query)
        if query.rank != self._root:
            self._relay.one(status)
        if call:
            self._relay.down(RollCall())
        self._wake()

    def ask_myself(self, ask: CastFuture[Any]) -> None:
        """The same about a call of the root's own."""
        now_s, arrival = time.monotonic(), ask.arrival
        with self._lock:
            if ask.taken:
                return
            here = arrival is None and self._window.has_room()
            if not here:
                ask.inquiry = Inquiry(now_s)
                self._own[ask.number] = ask
        if here:
            self.hear_all()
            return
        seq = arrival.message.seq if arrival is not None else None
        self.ask(Query(self._root, ask.number, seq, ask.key, max(0.0, ask.next_s - now_s)))

    def hear_all(self) -> None:
        """A call of the root's own waits for the root, and perhaps for others later: who speaks for others is to hold
        nothing back when its time is over.
        """
        if self.far:
            self._relay.down(RollCall())

    def forget(self, ask: CastFuture[Any]) -> None:
        """With the lock held: a call of the root has ended."""
        if self._own:
            self._own.pop(ask.number, None)

    def note(self, ask: CastFuture[Any], seq: int) -> None:
        """With the lock held, in debug mode: the root has made a call."""
        self._recent.append(made(seq, ask.key, ask.origin))

    # Answering

    def present(self, answer: Present) -> None:
        """A rank has answered a roll call."""
        with self._lock:
            self._holders[answer.rank] = answer.holders
            self._rolls.present(answer.rank, time.monotonic())
        self.work()

    def heard(self, rank: int, *, whole: bool) -> None:
        """With the lock held: something has come from a rank by way of others, or, `whole`, of all ranks below it."""
        self._rolls.heard(rank, time.monotonic(), whole=whole)

    def gone(self, rank: int) -> None:
        """With the lock held: a rank has ended."""
        self._rolls.gone(rank)

    def work(self) -> float | None:
        """Answer what can be answered; return when to be called again."""
        if not self._rolls.waiting:  # without the lock: the engine thread passes here at every turn
            return None
        now_s = time.monotonic()
        with self._lock:
            ready = self._rolls.ready(now_s)
            silent = self._rolls.silences(now_s, self._relay.heard_ago_s, _SHOWN_RANKS) if ready else []
            answers = [msgspec.structs.replace(self._answer(query), silent=silent) for query in ready]
            for status in answers:
                ask = self._own.pop(status.token, None) if status.to == self._root else None
                if ask is not None and ask.inquiry is not None:
                    ask.inquiry.status = status
            next_s = self._rolls.next_s()
        for status in answers:
            if status.to != self._root:
                self._relay.one(status)
        return next_s

    def _answer(self, query: Query) -> Status:
        seq, held = query.seq, self._held()
        answered: tuple[int, ...] = ()
        if seq is not None:
            phase, missing, answered = self.agreement(seq)
        elif (first := self._calls.first(query.key)) is not None:
            phase, missing = f"{first.phase.text} as #{first.seq}{held and f', {held}'}", (self._root,)
        else:
            phase, missing = f"the root has not made this call{held and f' ({held})'}", (self._root,)
        shown = slice(_SHOWN_RANKS)
        return Status(
            query.rank,
            query.token,
            phase,
            list(missing[shown]),
            list(answered[shown]),
            calls=self._unkeyed(),
            recent=list(self._recent),
        )

    def _held(self) -> str:
        return self._window.held_back() if not self._window.has_room() else ""

    def agreement(self, seq: int) -> Phase:
        """With the lock held: who has reported on a cast, and who has not."""
        missing = self._ledger.unreported(seq)
        phase = "agreeing" if missing else "agreed, and the verdict is on its way"
        held = [f"waits for {text}" for rank in missing[:_SHOWN_HOLDERS] if (text := self._holders.get(rank))]
        return "; ".join([phase, *held]), tuple(missing), tuple(self._ledger.reported(seq))

    def before_sending(self, ask: CastFuture[Any]) -> Phase:
        """With the lock held: what a call of the root's own waits for before it is sent."""
        call, held = self._calls.of(ask), self._held()
        if held and (call is None or call.phase is CallPhase.HELD):
            return f"waiting for room on the root, {held}", tuple(self._window.slowest()), ()
        phase = call.phase.text if call is not None else CallPhase.QUEUED.text
        return f"{phase}{held and f', {held}'}", (self._root,), ()

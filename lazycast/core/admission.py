"""The root's calls: each gets its place among the casts, waits while the ranks are behind, and may be withdrawn.

Guarantees:

* `call` copies nothing and does no work on the payload.
* A call that is refused, times out in the queue or is withdrawn there consumes its cast: it is sent as a failure. One
  that is withdrawn after it was sent fails as others do, on every rank alike, as long as it has no verdict.
* Back-pressure: a call waits while the slowest rank has `max_inflight` casts, or `max_inflight_nbytes` bytes, unread.
* An interrupt of the caller leaves no call half made: once it counts it enters the queue, if only as a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lazycast.arguments import usable_key
from lazycast.codec.trust import Policy
from lazycast.codec.untouched import mark
from lazycast.core.arrival import Arrival
from lazycast.core.asks import Asks
from lazycast.core.calls import Call, CallPhase, Calls
from lazycast.core.casts import Casts
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.inquiry.answering import Inquiries
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.ledger import Ledger
from lazycast.core.performer import Group
from lazycast.core.situation import Situation
from lazycast.core.window import Window
from lazycast.errors import CastTimeoutError, ClosedError, TrustError, WouldBlockError
from lazycast.materialize.materializers import objection
from lazycast.materialize.staged import unusable
from lazycast.missing import MISSING
from lazycast.net.relay import Relay
from lazycast.net.wire import Failure, Key, Verdict
from lazycast.options import Options


class Admission:
    """See the module's text. Thread-safe. What becomes of a call that has entered is for `Sending`.

    Args:
        casts: what becomes of the casts that were sent.
        relay: by which ranks are asked whom a call waits for.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        policy: Policy,
        asks: Asks,
        casts: Casts,
        relay: Relay,
    ) -> None:
        self._engine, self._group, self._options, self._policy = engine, group, options, policy
        self._asks, self._casts, self._end = asks, casts, casts.end
        self._lock, self._counters, self._thread = engine.lock, engine.counters, engine.thread
        others = [rank for rank in range(group.size) if rank != group.root]
        self.ledger = Ledger(group.root, others)
        # Where every rank is a root no two casts have the same number.
        self.seqs = itertools.count(group.root + 1, group.size) if options.roots == "any" else itertools.count(1)
        self.calls = Calls()
        asks.held = self.calls.sendable
        self.recalled: deque[tuple[Arrival, Verdict]] = deque()  # casts that are taken back
        self.dropped: deque[int] = deque()  # casts of which the ranks are to be told
        self.window = Window(self.ledger, self.calls, options)
        self.inquiries = Inquiries(
            group.root,
            engine.lock,
            relay,
            others,
            (self.ledger, self.calls, self.window),
            unkeyed=lambda: asks.unkeyed,
            wake=engine.thread.wake,
        )
        self.work_one: Callable[[], bool] = bool  # see `Sending`

    # Making a call

    def call(
        self,
        payload: object,
        materialize: Callable[[Any], Any] | None,
        key: Key | None,
        timeout_s: float,
        refusal: Exception | None = None,
        *,
        here: bool = False,
        block: bool = True,
        priority: int = 0,
        counted: list[bool] | None = None,
    ) -> CastFuture[Any]:
        began_s = time.monotonic()
        fn: Any = materialize if materialize is not None else self._options.materialize
        if self._engine.handed.waiting:
            self._engine.handed.do()
        if refusal is not None:
            pass
        elif payload is MISSING:
            remedy = "; for another rank's cast, name it: root=" if len(self._engine.lanes) > 1 else ""
            refusal = TypeError(f"{self._asks.label(key, None)}: broadcast() needs a payload on the root{remedy}")
        elif fn is not None and fn is not self._options.materialize and (wrong := unusable(fn)) is not None:
            refusal = TypeError(f"{self._asks.label(key, None)}: {wrong}")
        elif fn is not None and self._policy.paths is not None and (refused := objection(fn, self._policy)) is not None:
            refusal = TrustError(f"{self._asks.label(key, None)}: {refused}", rank=self._group.rank)
        as_called, beyond = None, self._options.beyond
        if self._options.debug and refusal is None:
            with contextlib.suppress(Exception):  # of one that cannot be looked at nothing is known
                as_called = mark(payload)
        call: Call | None = None  # once it counts
        try:
            with Uninterrupted():  # what has begun must count, or the ranks would be out of step
                with self._lock:
                    if self._engine.closing:
                        self._engine.refuse_if_closed()
                    if beyond != "wait" and refusal is None and not self.window.has_room():
                        self._go_beyond(beyond)
                        block = block and beyond != "refuse"
                    if not block and refusal is None and not self.window.has_room() and self._end.failure is None:
                        if counted is not None:
                            counted.append(False)
                        raise self._would_block(key)
                    if refusal is None and key is not None and key in self._asks.pending:
                        refusal = self._asks.key_in_use(key)
                    operation = "broadcast" if here else "broadcast_async"
                    ask = self._asks.make_call(key, timeout_s, began_s, operation, booked=refusal is None)
                    made = Call(next(self.seqs), key, ask, fn, payload, priority)
                    made.as_called = as_called
                    if ask.origin is not None:
                        self.inquiries.note(ask, made.seq)
                    if counted is not None:
                        counted.append(True)
                    call = made
                    waits = refusal is None and not self.window.has_room() and self._end.failure is None
                    if waits:  # in its place among the casts of its key
                        refusal = self._hold_back(call)
                    if refusal is not None:
                        self._enter(call, refusal)
                    elif not waits:
                        self.calls.enter(call)
                if waits or refusal is not None or not here:
                    self._thread.wake()
                else:
                    self._thread.work_here(self.work_one)
            if waits and refusal is None:
                refusal = self._wait_and_enter(call)
        except BaseException as exc:
            if call is not None:  # an interrupt, maybe while it waited or was about to; another may come at any time
                self._engine.handed.waiting.append((self._enter_interrupted, (call, exc)))
                self._thread.wake()
            raise
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # it leads to its traceback, and that to this frame: it would lead back to it
        return ask

    def _wait_and_enter(self, call: Call) -> Exception | None:
        """Wait for room. Interrupts come while it waits, and find nothing half done."""
        while True:
            with Uninterrupted():
                with self._lock:
                    held = self._still_held(call)
                    if held is None or isinstance(held, Exception):
                        self._enter(call, held)
                if isinstance(held, Situation):  # its place in line is its own already, so there is no hurry
                    held = self._not_sent(call.ask, held)
                    with self._lock:
                        self._enter(call, held)
                if held is None or isinstance(held, Exception):
                    self._thread.wake()
                    return held
            gate, left_s = held
            gate.acquire(timeout=left_s)

    def _enter_interrupted(self, call: Call, exc: BaseException) -> None:
        with Uninterrupted():
            with self._lock:
                self._enter(call, exc)
            self._thread.wake()

    def count_missed(self, key: Key | None, exc: BaseException) -> None:
        key, bad = usable_key(key)
        with Uninterrupted():
            with self._lock:
                if bad is not None or self._engine.closing:
                    return
                ask = self._asks.make_call(key, 1.0, time.monotonic(), "broadcast", booked=False)
                self._enter(Call(next(self.seqs), key, ask), exc)
            self._thread.wake()

    def _enter(self, call: Call, refusal: BaseException | None) -> None:
        """With the lock held: put a call, or its refusal, into the queue, once."""
        if call.phase > CallPhase.HELD:
            return
        if call.held_since_s is not None:
            self._counters.blocking -= 1
            self._engine.count("blocked", call.held_since_s, time.monotonic(), call)
        if refusal is not None:
            self._asks.take(call.ask, refusal, seq=call.seq)
            if call.failure is None:
                call.failure = call.ask.late or self._refused(refusal)
        self.calls.enter(call)

    def _refused(self, refusal: BaseException) -> Failure:
        return self._engine.performer.failure("refused", "the root's call was refused", refusal)

    # Waiting for room

    def _go_beyond(self, beyond: str) -> None:
        """With the lock held: there is no room for a call. Drop what nobody has asked for, if that is wanted."""
        if beyond != "drop" or self._end.failure is not None:  # then the call goes through, and fails
            return
        while not self.window.has_room() and (seq := self.ledger.untouched()) is not None:
            if self.ledger.undecided(seq):
                self.recall(
                    self._casts.agreeing[seq],
                    self._casts.said("withdrawn", "the root dropped this cast: nobody had asked"),
                )
            else:
                self._counters.aborted += 1  # of one that is recalled who tells of it counts
            self._engine.notices.dropped(time.monotonic(), key=self.ledger.entries[seq].key, seq=seq)
            self.ledger.drop(seq)
            self.dropped.append(seq)

    def has_room(self) -> bool:
        with Uninterrupted(), self._lock:
            if self.window.has_room() or self._end.failure is not None:
                return True
            return self._options.beyond == "drop" and self.ledger.untouched() is not None

    def when_room(self, wake: Callable[[], None]) -> bool:
        with Uninterrupted(), self._lock:
            if self.window.has_room() or self._end.failure is not None or self._engine.closing:
                return True
            self._asks.gates.wake(wake)
            return False

    def _would_block(self, key: Key | None) -> WouldBlockError:
        """With the lock held."""
        held = self.window.held_back()
        text = f"{self._asks.label(key, None)}: it would block: {held}; nothing was cast: come back later"
        return WouldBlockError(f"{text}, or await lazy.cast(...)", rank=self._group.rank)

    def _hold_back(self, call: Call) -> Exception | None:
        """With the lock held: a call is to wait while the slowest rank has too much unread; or is refused."""
        reentrant = self._engine.reentrant("broadcast_async() under back-pressure")
        if reentrant is not None:
            return reentrant
        self.calls.hold(call)
        if (tracer := self._engine.tracer) is not None:
            tracer.happened("held back", call, text=self.window.held_back())
        self._counters.blocking += 1
        call.held_since_s = call.ask.since_s
        return None

    def _still_held(self, call: Call) -> tuple[threading.Lock, float] | Exception | Situation | None:
        """With the lock held: return what to wait for and how long, if there is still no room for a call.

        Else an error to raise, or how things stood when the time was over.
        """
        ask = call.ask
        if not self.window.has_room():  # what was not sent when the call was made can be dropped now
            self._go_beyond(self._options.beyond)
        if self.window.has_room() or self._end.failure is not None or call.failure is not None:
            return None
        if self._engine.closing:
            return ClosedError(f"{self._asks.label_of(ask)}: closed here before it was sent", rank=self._group.rank)
        left_s = ask.since_s + ask.timeout_s - time.monotonic()
        if ask.taken or left_s <= 0:
            return self._asks.role.look(ask)
        return self._asks.gates.watch(), left_s

    def _not_sent(self, ask: CastFuture[Any], situation: Situation) -> Exception:
        """The time of a call that waits for room is over."""
        situation = self._asks.role.worded(situation)
        ask.late = self._asks.overdue(ask, situation)
        text = f"{self._asks.label_of(ask)}: not sent within {ask.timeout_s:g} s: {situation.text()}"
        return self._asks.explain(ask, CastTimeoutError(text, rank=self._group.rank), situation)

    def freed(self) -> None:
        """With the lock held: something was read, so what was held back may go."""
        if self._asks.gates.closed:
            self._asks.gates.open()
        if self.calls.sendable:
            self._thread.wake()

    # Withdrawing

    def cancel(self, ask: CastFuture[Any]) -> bool:
        failure = self._casts.said("withdrawn", "the root withdrew this cast")
        with self._lock:
            if ask.taken:
                return ask.cancelled()
            call, arrival = self.calls.of(ask), ask.arrival
            if call is not None and call.phase is not CallPhase.SENDING:
                call.failure = failure
                if call.phase is CallPhase.MAKING:  # nobody waits for what is made of it
                    self.calls.make_ready(call)
            elif call is not None:
                ask.late = failure  # whoever is sending it finds that
            elif arrival is not None and not self.recall(arrival, failure):
                return False  # everybody is about to get it
            self._asks.take(ask, cancelled=True)
        ask.settle_cancelled()
        self._thread.wake()
        return True

    def recall(self, arrival: Arrival, failure: Failure) -> bool:
        """With the lock held: take back a cast that has gone out, unless it has its verdict. The engine tells of it.

        What the root says of a cast comes after it: only the engine sends.
        """
        message = arrival.message
        if message.failure is not None:
            return False
        verdict = self.ledger.withdraw(message.seq, failure, agree=message.agree)
        if verdict is None:
            return False
        arrival.objection = failure
        self.recalled.append((arrival, verdict))
        return True

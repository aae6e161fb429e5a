"""The root's calls: each gets its place among the casts, waits while the ranks are behind, and may be withdrawn.

Guarantees:

* `call` copies nothing and does no work on the payload.
* A call that is refused, times out in the queue or is withdrawn consumes its cast: it is sent as a failure.
* Back-pressure: a call waits while the slowest rank has `max_inflight` casts, or `max_inflight_nbytes` bytes, unread.
* An interrupt of the caller leaves no call half made: once it counts it enters the queue, if only as a failure.
"""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lazycast.backend import Context
from lazycast.engine.ask import Ask
from lazycast.engine.calls import Call, Calls
from lazycast.engine.inquiry import Inquiries
from lazycast.engine.interrupts import Uninterrupted
from lazycast.engine.lane import Lane
from lazycast.engine.ledger import Ledger
from lazycast.engine.performer import Group
from lazycast.engine.situation import Situation
from lazycast.engine.window import Window
from lazycast.errors import CastTimeoutError, ClosedError, TrustError
from lazycast.fanout.mesh import Mesh
from lazycast.future import CastFuture
from lazycast.materializers import objection
from lazycast.missing import MISSING
from lazycast.options import Options
from lazycast.topology import Topology
from lazycast.wire import Failure, FailureKind, Key


class Intake(Lane):
    """See the module's text. What becomes of a call that has entered is `Sending`."""

    def __init__(self, group: Group, options: Options, context: Context, topology: Topology, mesh: Mesh | None) -> None:
        super().__init__(group, options, context, topology, mesh)
        others = [rank for rank in range(group.size) if rank != group.root]
        self._ledger = Ledger(group.root, others)
        self._seqs = itertools.count(1)
        self._calls = Calls()
        self._window = Window(self._ledger, self._calls, options)
        self._inquiries = Inquiries(
            group.root,
            self._lock,
            self._relay,
            others,
            (self._ledger, self._calls, self._window),
            unkeyed=lambda: self._unkeyed,
            wake=self._clock.wake,
        )

    @abstractmethod
    def _work_a_little(self) -> None:
        """For a caller who waits for its call: do what is queued, but not all that others have queued before it."""

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
    ) -> CastFuture[Any]:
        began_s = time.monotonic()
        fn: Any = materialize if materialize is not None else self._options.materialize
        if refusal is not None:
            pass
        elif payload is MISSING:
            refusal = TypeError(f"{self._label(key, None)}: broadcast() needs a payload on the root")
        elif fn is not None and not callable(fn):
            refusal = TypeError(f"{self._label(key, None)}: materialize must be callable, got {type(fn).__name__}")
        elif fn is not None and (refused := objection(fn, self._policy)) is not None:
            refusal = TrustError(f"{self._label(key, None)}: {refused}", rank=self._group.rank)
        call: Call | None = None
        try:
            with Uninterrupted():  # what has begun must count, or the ranks would be out of step
                with self._lock:
                    self._refuse_if_closed()
                    ask = self._make_ask(key, timeout_s, began_s, "broadcast" if here else "broadcast_async")
                    if refusal is None and key is not None and key in self._pending:
                        refusal = self._key_in_use(key)
                    call = Call(next(self._seqs), key, ask, fn, payload)
                    if ask.origin is not None:
                        self._inquiries.note(ask, call.seq)
                    self._calls.add(call)  # its place among the casts of its key, before it waits for anything
                    if refusal is None:
                        self._book(ask)
                    waits = refusal is None and self._must_wait(call)
                    if not waits:
                        self._enter(call, refusal)
                if waits or refusal is not None or not here:
                    self._clock.wake()
                else:
                    self._clock.work_here(self._work_a_little)
            if waits:
                refusal = self._wait_and_enter(call, began_s)
        except BaseException as exc:
            if call is not None:  # an interrupt, maybe while it waited or was about to
                self._enter_interrupted(call, exc)
            raise
        if refusal is not None:
            raise refusal
        return ask.future

    def _wait_and_enter(self, call: Call, began_s: float) -> Exception | None:
        with self._lock:
            ended = self._wait_for_room(call, began_s)
            if not isinstance(ended, Situation):
                self._enter(call, ended)
        if isinstance(ended, Situation):  # its place in line is its own already, so there is no hurry
            ended = self._not_sent(call.ask, ended)
            with self._lock:
                self._enter(call, ended)
        self._clock.wake()
        return ended

    def _enter_interrupted(self, call: Call, exc: BaseException) -> None:
        with Uninterrupted():
            with self._lock:
                self._enter(call, exc)
            self._clock.wake()

    def _enter(self, call: Call, refusal: BaseException | None) -> None:
        """With the lock held: put a call, or its refusal, into the queue, once."""
        if call.entered:
            return
        if refusal is not None:
            if self._take(call.ask):
                self._counters.count_failure(refusal)
            if call.failure is None:
                call.failure = call.ask.late or self._refused(refusal)
        self._calls.enter(call)

    def _refused(self, refusal: BaseException) -> Failure:
        return self._performer.failure("refused", "the root's call was refused", refusal)

    # Waiting for room

    def has_room(self) -> bool:
        with self._lock:
            return self._window.has_room() or self._end.failure is not None

    def _must_wait(self, call: Call) -> bool:
        """With the lock held."""
        return not self._window.has_room() and self._end.failure is None and call.failure is None

    def _wait_for_room(self, call: Call, began_s: float) -> Exception | Situation | None:
        """With the lock held: wait while the slowest rank has too much unread.

        Returns an error to raise, or how things stood when the time was over.
        """
        if not self._must_wait(call):  # there is room by now
            return None
        reentrant = self.reentrant("broadcast_async() under back-pressure")
        if reentrant is not None:
            return reentrant
        call.phase = "waiting for room"
        if (tracer := self._tracer) is not None:
            tracer.happened("held back", call, text=self._window.held_back())
        self._counters.blocking += 1
        try:
            return self._wait_while_held_back(call)
        finally:
            call.phase = "queued"
            self._counters.blocking -= 1
            self._count("blocked", began_s, time.monotonic(), call)

    def _wait_while_held_back(self, call: Call) -> Exception | Situation | None:
        """With the lock held."""
        ask = call.ask
        while self._must_wait(call):
            if self._closing:
                return ClosedError(f"{self._ask_label(ask)}: closed here before it was sent", rank=self._group.rank)
            left_s = ask.wait.deadline_s - time.monotonic()
            if ask.taken or left_s <= 0:
                return self._look(ask)
            self._wait_changed(left_s)
        return None

    def _not_sent(self, ask: Ask, situation: Situation) -> Exception:
        """The time of a call that waits for room is over."""
        situation = self._worded(situation)
        ask.late = situation.overdue(self._group.rank, self._group.hosts[self._group.rank], ask.timeout_s)
        text = f"{self._ask_label(ask)}: not sent within {ask.timeout_s:g} s: {situation.text()}"
        return self._explain(ask, CastTimeoutError(text, rank=self._group.rank), situation)

    # Withdrawing

    def discard(self, key: Key) -> None:
        with self._lock:
            self._refuse_if_closed()
            ask = self._pending.get(key)
        if ask is not None:
            self._withdraw(ask)

    def _take(self, ask: Ask) -> bool:
        taken = super()._take(ask)
        self._inquiries.forget(ask)
        if taken and self._calls.held:
            self._clock.wake()  # it may be the one that is held: now it goes out without its value
        return taken

    def _cancel(self, ask: Ask) -> bool:
        with self._lock:
            call = self._calls.of(ask)
            if call is None or call.sending or not self._take(ask):
                return ask.future.cancelled()
            self._counters.cancelled += 1
            call.failure = self._said("withdrawn", "the root withdrew this cast")
        ask.future.settle_cancelled()
        return True

    def _said(self, kind: FailureKind, text: str) -> Failure:
        rank = self._group.rank
        return Failure(kind, rank, self._group.hosts[rank], text)

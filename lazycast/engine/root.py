"""The lane of the root: takes calls, begins and sends them in order, keeps the ledger, gives verdicts.

Guarantees:

* `call` copies nothing and does no work on the payload; encoding happens on the engine thread, in the order of calls.
  Only casts of one key (and those without one) wait for each other, and only while the root materializes.
* A call that is refused, times out in the queue or is withdrawn consumes its cast: it is sent as a failure.
* The root's own materializer starts after its payload has been encoded, since materializers may change their input.
* Back-pressure: a call waits while the slowest rank has `max_inflight` casts, or `max_inflight_nbytes` bytes, unread;
  the queue waits for the bytes too, so what is unread is at most that and one payload.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec

from lazycast import codec
from lazycast.backend import Context
from lazycast.engine.arrival import Arrival
from lazycast.engine.ask import Ask
from lazycast.engine.calls import Call, Calls
from lazycast.engine.encoder import Encoder, own_of
from lazycast.engine.figures import Reported
from lazycast.engine.inquiry import Inquiries
from lazycast.engine.interrupts import Uninterrupted
from lazycast.engine.lane import Lane
from lazycast.engine.ledger import Ledger
from lazycast.engine.parts import MAX_REASON
from lazycast.engine.performer import Group, Result
from lazycast.engine.placing import Placing
from lazycast.engine.situation import Phase
from lazycast.engine.window import Window
from lazycast.errors import CastTimeoutError, ClosedError, TrustError
from lazycast.failures import clip
from lazycast.fanout.mesh import Mesh
from lazycast.fingerprint import approximate_nbytes, fingerprint
from lazycast.future import CastFuture
from lazycast.group_stats import GroupStats
from lazycast.materializers import objection
from lazycast.missing import MISSING
from lazycast.options import Options
from lazycast.placement.chooser import Standing
from lazycast.staged import Staged
from lazycast.stats import Stats
from lazycast.topology import Topology
from lazycast.tracing.tracer import Named
from lazycast.wire import (
    AnyMessage,
    Cast,
    Code,
    Cost,
    Failure,
    FailureKind,
    Figures,
    Gone,
    Key,
    Need,
    Pass,
    Present,
    Query,
    Read,
    Report,
    Value,
)

_STEPS_HERE = 4


class RootLane(Lane):
    """See the module's text."""

    def __init__(self, group: Group, options: Options, context: Context, topology: Topology, mesh: Mesh | None) -> None:
        super().__init__(group, options, context, topology, mesh)
        self._ledger = Ledger(group.root, [rank for rank in range(group.size) if rank != group.root])
        self._seqs = itertools.count(1)
        self._calls = Calls()
        self._window = Window(self._ledger, self._calls, options)
        self._encoder = Encoder(self._relay, self._policy, self._seqs, agree=options.agree)
        self._placed = options.placement, "nothing has been cast"
        self._reported = Reported()
        self._placing = Placing(group, topology, options)
        self._inquiries = Inquiries(
            group.root,
            self._lock,
            self._relay,
            [rank for rank in range(group.size) if rank != group.root],
            (self._ledger, self._calls, self._window),
            unkeyed=lambda: self._unkeyed,
            wake=self._clock.wake,
        )

    # Calls

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
            refusal = self._wait_for_room(call, began_s)
            self._enter(call, refusal)
        self._clock.wake()
        return refusal

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
                call.failure = self._performer.failure("refused", "the root's call was refused", refusal)
        self._calls.enter(call)

    def has_room(self) -> bool:
        with self._lock:
            return self._window.has_room() or self._end.failure is not None

    def _must_wait(self, call: Call) -> bool:
        """With the lock held."""
        return not self._window.has_room() and self._end.failure is None and call.failure is None

    def _wait_for_room(self, call: Call, began_s: float) -> Exception | None:
        """With the lock held: wait while the slowest rank has too much unread. Returns an error to raise."""
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

    def _wait_while_held_back(self, call: Call) -> Exception | None:
        """With the lock held."""
        ask = call.ask
        while self._must_wait(call):
            if self._closing:
                return ClosedError(f"{self._ask_label(ask)}: closed here before it was sent", rank=self._group.rank)
            left_s = ask.wait.deadline_s - time.monotonic()
            if ask.taken or left_s <= 0:
                return self._not_sent(ask)
            self._wait_changed(left_s)
        return None

    def _not_sent(self, ask: Ask) -> Exception:
        """With the lock held: the time of a call that waits for room is over."""
        situation = self._look(ask)
        text = f"{self._ask_label(ask)}: not sent within {ask.timeout_s:g} s: {situation.text()}"
        return self._explain(ask, CastTimeoutError(text, rank=self._group.rank), situation)

    def discard(self, key: Key) -> None:
        with self._lock:
            self._refuse_if_closed()
            ask = self._pending.get(key)
        if ask is not None:
            self._cancel(ask)

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

    # The engine thread: begin, send

    def _do_queued(self) -> float | None:
        while self._work_one():
            pass
        return self._inquiries.work()  # besides, a new call, a value or a read will wake us

    def _work_a_little(self) -> None:
        """For a caller who waits for its call: begin it, send it. What others have queued before it takes no longer."""
        for _ in range(_STEPS_HERE):
            if not self._work_one():
                return
        self._clock.wake()

    def _work_one(self) -> bool:
        """Begin or send a call; return whether there was one."""
        with self._lock:
            new = self._calls.next_to_begin()
            call = self._next_to_send() if new is None and self._calls.held else None
        if new is not None:
            self._begin_call(new)
        elif call is not None:
            self._send(call)
        return new is not None or call is not None

    def _next_to_send(self) -> Call | None:
        """With the lock held: take the call whose turn has come, if there is room for it."""
        end = self._end.failure
        call = self._calls.next_to_send(has_room=self._window.has_room_for_bytes() or end is not None)
        if call is not None and call.failure is None and end is not None:
            call.failure = end
        elif call is not None and call.failure is None and call.ask.taken:
            if self._closing:
                call.failure = self._said("closed", "the root had closed its object when this call's turn came")
            else:
                text = f"the root's call had waited {call.ask.timeout_s:g} s when its turn came"
                call.failure = self._said("timeout", text)
        return call

    def _begin_call(self, call: Call) -> None:
        fn, payload = call.materialize, call.payload
        self._took("queue", call.ask.since_s, call)
        nbytes = self._look_at(call)
        with self._lock:
            if call.failure is None:
                self._placed = self._placing.place(call, nbytes, len(self._waits) - 1)
                call.placement = self._placed[0]
                call.measured = self._placing.chooses and fn is not None
            doubtful = call.failure is None and self._placing.doubts(call)
            if call.failure is not None or fn is None or call.placement != "root":
                self._calls.make_ready(call)
                return
            call.phase = "materializing on the root"
        if doubtful:
            self._spare(call)
        call.payload = call.materialize = None
        staged = isinstance(fn, Staged)
        first = fn.prepare if isinstance(fn, Staged) else fn

        def part() -> Result:
            cpu_s = time.thread_time()
            result, materialize_s = self._parts.materialize(call, first, payload)
            cpu_s = time.thread_time() - cpu_s
            with self._lock:
                self._placing.spent(call.seq, Cost(cpu_s, materialize_s, cpu_s))
            return result

        def done(result: Result) -> None:
            with self._lock:
                if staged:
                    call.payload, call.materialize, call.hint = payload, fn, result.value
                else:
                    call.payload = result.value
                call.prepared = True
                if result.failure is not None and call.failure is None:
                    call.failure, call.cause = result.failure, result.cause
                self._calls.make_ready(call)
            self._clock.wake()

        self._performer.run(part, done)

    def _look_at(self, call: Call) -> int:
        """Take the fingerprint of a replicated payload; return about how large a payload is, if that matters."""
        try:
            if call.failure is None and self._options.replicated:
                call.mark = fingerprint(call.payload)
        except Exception as exc:  # whatever the attributes of a payload do when they are looked at
            what = "no fingerprint of the payload could be taken"
            call.failure, call.cause = self._performer.failure("encode", what, exc), exc
        if call.failure is not None or call.materialize is None or not self._placing.chooses:
            return 0
        try:
            return approximate_nbytes(call.payload)
        except Exception:
            return 0  # the choice is made without it

    def _spare(self, call: Call) -> None:
        """Get ready for a value that does not pickle: then every rank is to make its own, from the payload as it is."""
        call.placement = "every"
        try:
            call.spare = self._encoder.encode(call)
        except BaseException as exc:  # the payload does not pickle either
            call.failure, call.cause = self._performer.failure("encode", "encoding failed", exc), exc
        call.placement = "root"

    def _said(self, kind: FailureKind, text: str) -> Failure:
        rank = self._group.rank
        return Failure(kind, rank, self._group.hosts[rank], text)

    def _send(self, call: Call) -> None:
        began_s, cpu_s = time.monotonic(), time.thread_time() if call.measured else 0.0
        if call.failure is None:
            call.phase = "encoding"
            try:
                cast, room, codes = self._encoder.encode(call)
            except BaseException as exc:  # MemoryError, and whatever a payload's own code raises
                if call.spare is not None:
                    cast, room, codes = call.spare
                    cast = msgspec.structs.replace(cast, sent_s=time.monotonic())
                    self._unshared(call, exc)
                else:
                    call.failure, call.cause = self._performer.failure("encode", "encoding failed", exc), exc
            call.spare = None
        if call.failure is not None:
            self._send_failure(call, call.failure)
            return
        own = own_of(call)
        arrival = Arrival(cast, None, ask=call.ask, own=own)
        with self._lock:
            if call.measured:
                sent_nbytes = cast.nbytes if call.prepared else 0
                self._placing.spent(call.seq, Cost(time.thread_time() - cpu_s, 0.0, shared_nbytes=sent_nbytes))
            self._admit(arrival)
            self._ledger.sent(cast.seq, cast.key, cast.nbytes, agree=cast.agree)
            if cast.agree:
                self._agreeing[cast.seq] = arrival
            self._count("held", call.ready_s, began_s, cast)
            self._count("encode", began_s, cast.sent_s, cast)
            self._book_sent(call, arrival)
        for code in codes:
            self._relay.down(*code)
        tracer, began_s = self._tracer, time.monotonic()
        self._relay.down(cast, room)
        if tracer is not None:
            tracer.took("send", began_s, time.monotonic(), cast)
        del room  # a slot is held as long as its writer has a hand on it
        if own.prepare is None and own.finish is None:  # the value is here
            self._local_done(arrival, Result(own.payload))
        else:
            self._advance(arrival)

    def _unshared(self, call: Call, exc: BaseException) -> None:
        """A value of the root does not pickle, though it was to be cast: the ranks make their own."""
        reason = clip(f"the root could not share its value: {type(exc).__name__}: {exc}", MAX_REASON)
        with self._lock:
            self._counters.unshared += 1
            self._counters.unshared_reason = reason
            self._placing.spent(call.seq, Cost(0.0, 0.0, unshared=reason))
        call.placement = "every"

    def _send_failure(self, call: Call, failure: Failure) -> None:
        """Tell the ranks that a call has no value: it counts all the same."""
        cast = Cast(call.seq, call.key, call.placement, False, None, failure=failure, origin=call.ask.origin)
        arrival = Arrival(cast, None, ask=call.ask)
        with self._lock:
            call.payload = call.materialize = None
            self._placing.failed(call.seq)
            self._book_sent(call, arrival)
        self._relay.down(cast)
        self._conclude(arrival, Result(failure=failure, cause=call.cause))

    def _book_sent(self, call: Call, arrival: Arrival) -> None:
        """With the lock held: a call goes out."""
        if not call.ask.taken:
            call.ask.arrival = arrival
        elif arrival.message.agree:
            arrival.objection = call.ask.late
        self._counters.cast(None if arrival.message.failure is not None else arrival.message.placement)
        self._calls.sent(call)
        self._notify()

    # Messages

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        if isinstance(message, Report):
            self._on_report(message)
        elif isinstance(message, Read):
            if message.seqs:
                self._trace_heard(message.rank, "read", message.seqs[0])
            with self._lock:
                for seq in message.seqs:
                    self._ledger.read(message.rank, seq)
                self._freed()
        elif isinstance(message, (Value, Pass)):
            self._on_host_message(message, body)
        elif isinstance(message, Need):
            self._on_need(message)
        elif isinstance(message, Query):
            self._inquiries.ask(message)
        elif isinstance(message, Present):
            self._inquiries.present(message.rank)
        elif isinstance(message, Figures):
            with self._lock:
                self._reported.note(message)
        elif isinstance(message, Gone):
            self._on_gone(message)

    def _on_report(self, message: Report) -> None:
        self._trace_heard(message.rank, "report", message.seq)
        with self._lock:
            if message.read and message.rank != self._group.rank:
                self._ledger.read(message.rank, message.seq)
                self._freed()
            if message.failure is None:
                self._placing.reported(message.seq, message.rank, message.cost)
            else:
                self._placing.failed(message.seq)
            self._inquiries.heard(message.rank)
            verdict = self._ledger.report(message.rank, message.seq, message.failure)
        if verdict is not None:
            self._relay.down(verdict)
            self._on_verdict(verdict)

    def _freed(self) -> None:
        """With the lock held: something was read, so what was held back may go."""
        self._notify()
        if self._calls.held:
            self._clock.wake()

    def _on_need(self, message: Need) -> None:
        try:
            code, room = self._encoder.code(message.ident)
        except (codec.CannotEncode, MemoryError) as exc:
            failure = self._performer.failure("encode", "a materializer's code could not be sent", exc)
            self._relay.down(Code(next(self._seqs), message.ident, failure=failure))
        else:
            self._relay.down(code, room)

    def _handle_gone(self, message: Gone) -> None:
        if message.failure.kind == "lost":
            self._end_with(message.failure)
            return
        # A rank that passed casts on takes those below it with it: nothing reaches them any more, or comes from them.
        cut_off = [message.rank, *self._topology.below(message.rank)]
        with self._lock:
            for rank in cut_off:
                self._inquiries.gone(rank)
            if self._end.failure is None:
                self._end.failure = message.failure  # later calls fail on every rank, naming who closed
            # After a loss ranks close because of it.
            failure = self._end.failure if self._end.failure.kind == "lost" else message.failure
            verdicts = [verdict for rank in cut_off for verdict in self._ledger.gone(rank, failure)]
            self._notify()
        self._clock.wake()
        for verdict in verdicts:
            self._relay.down(verdict)
            self._on_verdict(verdict)

    # Looking

    def _named(self, ask: Ask) -> Named | None:
        return super()._named(ask) or self._calls.of(ask)

    def _trace_heard(self, rank: int, kind: str, seq: int) -> None:
        """Note when a message of another clock came: with its sender's note it tells how far apart the two are."""
        tracer = self._tracer
        if tracer is not None and self._group.clock_of(rank) != self._group.clock_of(self._group.rank):
            tracer.happened("heard", None, rank=rank, kind=kind, seq=seq)

    def _group_stats(self, mine: Stats) -> GroupStats:
        return self._reported.group(mine)

    def _placement(self) -> tuple[str, str]:
        return self._placed

    def _standings(self) -> tuple[Standing, ...]:
        return self._placing.standings()

    def _inquire(self, ask: Ask) -> None:
        arrival = ask.arrival
        if arrival is None or arrival.local is not None or not arrival.begun:  # else we wait for ourselves
            self._inquiries.ask_myself(ask)

    def _busy(self) -> bool:
        return self._calls.pending or super()._busy()

    def _phase_before_arrival(self, ask: Ask) -> Phase:
        return self._inquiries.before_sending(ask)

    def _phase_of_own_part(self, arrival: Arrival) -> Phase:
        return "materializing here", (self._group.rank,), ()

    def _phase_of_agreement(self, ask: Ask, arrival: Arrival) -> Phase:
        return self._inquiries.agreement(arrival.message.seq)

    def _notes(self, ask: Ask) -> tuple[str, ...]:
        return (f"made at {ask.origin.site}",) if ask.origin is not None else ()

    def _dump_queue(self) -> list[str]:
        return self._calls.lines()

    def _dump_books(self) -> list[str]:
        return self._ledger.lines()

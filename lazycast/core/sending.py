"""The root's engine: begins the calls that have entered, encodes them, and sends them in order.

Guarantees:

* All of it runs on the engine thread, or in place of it in a caller's, one at a time and in the order of calls; but for
  materializers, and what takes payloads apart to be remembered, which run on workers.
* Only casts of one key (and those without one) wait for each other, and only while the root materializes.
* The root's own materializer starts after its payload has been encoded, since materializers may change their input.
* The queue waits for room, too: what is unread is at most `max_inflight_nbytes` bytes and one payload.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import msgspec

from lazycast.codec.fingerprint import approximate_nbytes, fingerprint
from lazycast.codec.pickling import CannotEncode
from lazycast.codec.trust import Policy
from lazycast.codec.untouched import mark
from lazycast.core.admission import Admission
from lazycast.core.arrival import Arrival, Own
from lazycast.core.asks import Asks
from lazycast.core.calls import Call, CallPhase
from lazycast.core.casts import Casts
from lazycast.core.dump import named
from lazycast.core.encoder import Encoded, Encoder
from lazycast.core.engine import Engine
from lazycast.core.failures import clip
from lazycast.core.lagging import Lagging
from lazycast.core.memo.book import Book
from lazycast.core.memo.items import items_to_plan
from lazycast.core.memo.store import Kept
from lazycast.core.neighbours import Neighbours
from lazycast.core.own_part import MAX_REASON
from lazycast.core.performer import Group, Result
from lazycast.core.placing import Placing, place_name
from lazycast.materialize.each import Each
from lazycast.materialize.materializers import Materializer
from lazycast.materialize.staged import Staged
from lazycast.missing import MISSING
from lazycast.net import wire
from lazycast.net.relay import Room
from lazycast.net.wire import Cast, Code, Cost, Drop, Failure, Verdict
from lazycast.options import HELPERS, OWNED, Options
from lazycast.tracebacks import describe

#: A payload up to this size is encoded before `auto` has the root materialize, in case that the value does not travel;
#: of a larger one a fingerprint is taken, once values of its kind have travelled (bytes).
_SPARE_NBYTES = 64 << 10


class Sending:
    """See the module's text. What comes back of a cast is for `RootLane`.

    Args:
        admission: whose calls are sent.
        casts: what becomes of them here.
        memos: what all ranks remember, if they do.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        policy: Policy,
        asks: Asks,
        casts: Casts,
        admission: Admission,
        near: Neighbours,
        memos: Book | None,
    ) -> None:
        self._engine, self._group, self._options = engine, group, options
        self._asks, self._casts, self._admission, self._relay, self._memos = asks, casts, admission, near.relay, memos
        self._lock, self._counters, self._performer = engine.lock, engine.counters, engine.performer
        self._thread, self._calls, self._ledger = engine.thread, admission.calls, admission.ledger
        self._recalled, self._dropped = admission.recalled, admission.dropped
        store = casts.keeping.store if casts.keeping is not None else None
        self.encoder = Encoder(
            near.relay, policy, admission.seqs, agree=options.agree, memo=options.memo, book=memos, store=store
        )
        self.placed = options.placement, "nothing has been cast"
        self.placing = Placing(group, near.topology, options, engine.has_helpers)
        self._lagging = Lagging(admission.ledger, options.warn_after_s)

    # In turn

    def work(self) -> float | None:
        """Engine thread: do what is queued; return when to come back at the latest."""
        while self.work_one():
            pass
        due_s = self._admission.inquiries.work()  # besides, a new call, a value or a read will wake us
        if not self._ledger.entries:
            return due_s
        lags_s = self._name_lagging(time.monotonic())
        return lags_s if due_s is None else min(due_s, lags_s)

    def _name_lagging(self, now_s: float) -> float:
        """Warn of ranks that have stopped asking; return when to look again."""
        if now_s < self._lagging.next_s:  # without the lock: the engine thread passes here at every turn
            return self._lagging.next_s
        with self._lock:
            news, next_s = self._lagging.turn(now_s), self._lagging.next_s
        for lag in news:
            oldest = f"#{lag.seq}{named(lag.key)}"
            self._engine.notices.lags(
                lag.rank, self._group.hosts[lag.rank], lag.casts, oldest, lag.for_s, lag.key, lag.seq
            )
        return next_s

    def work_one(self) -> bool:
        """Begin a call, and send it if it can be, or tell that one was taken back; return whether there may be more."""
        calls, ledger = self._calls, self._ledger
        with self._lock:
            new = calls.new.popleft() if calls.new else None
        if new is not None:
            try:
                self._begin_call(new)
            except BaseException as exc:  # MemoryError, and whatever a callable's own code raises
                self._spoil(new, exc)
        call = None
        if calls.sendable and not calls.new:  # all that have entered have begun, so that the first of them goes first
            with self._lock:
                end, most_nbytes = self._casts.end.failure, self._options.max_inflight_nbytes
                has_room = ledger.open_nbytes < most_nbytes or self._admission.window.has_room_for_bytes()
                call = calls.next_to_send(has_room=has_room or end is not None)
                if call is not None and call.failure is None and (end is not None or call.ask.taken):
                    call.failure = end or self._too_late(call)
        if call is not None:
            self._send(call)
        elif new is None and self._recalled:
            self._tell_recalled(*self._recalled[0])
        elif new is None and self._dropped:
            self._tell_dropped()
        elif new is None:
            return False
        return bool(calls.new or calls.sendable or self._recalled or self._dropped)

    def _too_late(self, call: Call) -> Failure:
        """With the lock held: return why a call that has ended here has no value."""
        if self._engine.closing:
            return self._casts.said("closed", "the root had closed its object when this call's turn came")
        text = f"the root's call had waited {call.ask.timeout_s:g} s when its turn came"
        return call.ask.late or self._casts.said("timeout", text)

    def _tell_recalled(self, arrival: Arrival, verdict: Verdict) -> None:
        """Tell the ranks of a cast that the root has taken back. It has gone out."""
        with self._lock:
            self.placing.failed(verdict.seq)  # before anybody reports that it has made nothing
            self._casts.agreeing.pop(verdict.seq, None)
            self._counters.aborted += 1
        if self._memos is not None:
            self._memos.decided(verdict.seq, good=False)
        self._relay.down(verdict)
        self._casts.conclude(arrival, Result(failure=verdict.failure))
        self._casts.give_up(arrival)
        with self._lock:
            self._recalled.popleft()
            self._admission.freed()

    def _tell_dropped(self) -> None:
        self._relay.down(Drop(self._dropped[0]))
        self._dropped.popleft()  # after it: whoever closes waits for what has not been told

    def _tell_all_recalled(self) -> None:
        while self._recalled:
            self._tell_recalled(*self._recalled[0])
        while self._dropped:
            self._tell_dropped()

    def tell_recalled(self, timeout_s: float) -> None:
        """Tell the ranks of all casts that were taken back, or dropped: who was told so here was told the truth."""
        if self._recalled or self._dropped:
            self._thread.work_at_last(self._tell_all_recalled, timeout_s)

    # Beginning

    def _fail_call(self, call: Call, what: str, exc: BaseException) -> None:
        """A call has no value, unless it was withdrawn or refused before: what was said first counts."""
        failure = self._performer.failure("encode", what, exc)
        with self._lock:
            if call.failure is None:
                call.failure, call.cause = failure, exc

    def _spoil(self, call: Call, exc: BaseException) -> None:
        """A call could not be begun: that is its failure, and nobody else's."""
        self._fail_call(call, "the call could not be begun", exc)
        with self._lock:
            self.placing.failed(call.seq)
            if call.phase < CallPhase.READY:
                self._calls.make_ready(call)

    def _begin_call(self, call: Call) -> None:
        fn, payload = call.materialize, call.payload
        chosen = fn is not None and self.placing.chooses
        nbytes = 0
        if chosen or self._options.replicated:
            call.name = place_name(fn) if fn is not None else ""  # it may run code of the callable's own
            nbytes = self._look_at(call)
        with self._lock:
            began_s, now_s = call.ask.since_s, time.monotonic()
            self._counters.noted.append(("queue", now_s - began_s))
            if (tracer := self._engine.tracer) is not None:
                tracer.took("queue", began_s, now_s, call)
            doubtful = False
            if call.failure is None:
                call.measured = chosen
                if chosen:
                    self.placed = self.placing.place(call, nbytes, len(self._asks.waits) - 1)
                    doubtful = self.placed[0] == "root" and self.placing.doubts(call)
                else:
                    self.placed = self.placing.given if fn is not None else self.placing.plain
                call.placement = self.placed[0]
                call.memo = self._memos is not None and call.placement != "root"
            # Of a call that has been given up only the failure is sent.
            given_up = call.failure is not None or call.ask.taken
            splits = call.memo and not given_up and self.encoder.splits(call)
            if given_up or fn is None or not (call.placement == "root" or splits):
                self._calls.make_ready(call)
                return
            self._calls.make(call)
        if splits:
            self._take_apart(call, fn, payload)
            return
        if doubtful or (call.measured and nbytes <= _SPARE_NBYTES):
            self._spare(call)
        elif call.measured:
            self._note_payload(call)
        call.payload = call.materialize = None
        part = functools.partial(self._prepare, call, fn, payload)
        self._performer.run(
            part,
            functools.partial(self._prepared, call, fn, payload),
            seq=call.seq,
            priority=call.priority,
            unwanted=functools.partial(self._given_up, call),
        )

    def _take_apart(self, call: Call, fn: Materializer, payload: Any) -> None:
        """Have a payload taken apart, so that its items can be remembered: others do not wait for that."""
        assert isinstance(fn, Each)

        def split() -> Result:
            return Result(None if self._given_up(call) else items_to_plan(fn, payload))

        def done(result: Result) -> None:
            with self._lock:
                if call.phase >= CallPhase.READY:  # it was withdrawn meanwhile
                    return
                call.items = result.value
                self._calls.make_ready(call)
            self._thread.wake()

        unwanted = functools.partial(self._given_up, call)
        self._performer.run(split, done, splits=True, seq=call.seq, priority=call.priority, unwanted=unwanted)

    @staticmethod
    def _given_up(call: Call) -> bool:
        """Whether a call was withdrawn, or its time is over."""
        return call.failure is not None or call.ask.taken

    def _prepare(self, call: Call, fn: Materializer, payload: Any) -> Result:
        """On a worker: make the value that is to be cast, or the hint."""
        if self._given_up(call):
            return Result()
        cpu_s = time.thread_time()
        first = fn.prepare if isinstance(fn, Staged) else fn
        result, materialize_s, held_s = self._casts.making.own_part.materialize(call, first, payload, watches=True)
        cpu_s = time.thread_time() - cpu_s
        with self._lock:
            self.placing.spent(call.seq, Cost(cpu_s, materialize_s, cpu_s, held_s=held_s))
        return result

    def _prepared(self, call: Call, fn: Materializer, payload: Any, result: Result) -> None:
        with self._lock:
            if call.phase >= CallPhase.READY:  # it was withdrawn meanwhile, and goes out without a value
                return
            if isinstance(fn, Staged):
                call.payload, call.materialize, call.hint = payload, fn, result.value
            else:
                call.payload = result.value
            call.prepared = True
            if result.failure is not None and call.failure is None:
                call.failure, call.cause = result.failure, result.cause
            self._calls.make_ready(call)
        self._thread.wake()

    def _look_at(self, call: Call) -> int:
        """Take the fingerprint of a replicated payload; return about how large a payload is, if that matters."""
        try:
            if call.failure is None and self._options.replicated:
                call.mark = fingerprint(call.payload)
        except Exception as exc:  # whatever the attributes of a payload do when they are looked at
            self._fail_call(call, "no fingerprint of the payload could be taken", exc)
        if call.failure is not None or call.materialize is None or not self.placing.chooses:
            return 0
        try:
            return approximate_nbytes(call.payload)
        except Exception:
            return 0  # the choice is made without it

    def _note_payload(self, call: Call) -> None:
        """Keep a payload, for a value that does not travel. It is large, or `_spare` would have encoded it."""
        if call.failure is None:
            with contextlib.suppress(Exception):  # of one that cannot be looked at: its value has to travel
                as_it_is = mark(call.payload)
                call.untouched = None if as_it_is is None else (as_it_is, call.payload, call.materialize)

    def _spare(self, call: Call) -> None:
        """Get ready for a value that does not pickle: then every rank is to make its own, from the payload as it is."""
        call.placement = "every"
        try:
            call.spare = self.encoder.encode(call)
        except BaseException as exc:  # the payload does not pickle either
            self._fail_call(call, "encoding failed", exc)
        call.placement = "root"

    # Sending

    def _send(self, call: Call) -> None:
        began_s, cpu_s = time.monotonic(), time.thread_time() if call.measured else 0.0
        if call.as_called is not None and not call.prepared:
            self._check_unchanged(call)
        drops: list[int] = []
        had: tuple[Cast, memoryview, Kept | None] | None = None
        if call.failure is None:
            try:
                if call.spare is None and call.untouched is None:
                    cast, room, codes = self.encoder.encode(call)
                    if cast.again:
                        had = self._casts.had_again(cast, memoryview(b""))
                    if had is not None and had[2] is None:
                        had = None
                        cast, room, codes = self._not_again(call, codes)
                else:
                    cast, room, codes = self._encoded(call)
                if self._memos is not None and (drops := self._memos.take_drops()):
                    cast = msgspec.structs.replace(cast, drop=drops)
                header = wire.encode(cast)
                said = [(code, place, wire.encode(code)) for code, place in codes] if codes else ()
            except BaseException as exc:  # MemoryError, and whatever a payload's own code raises
                call.failure, call.cause = self._performer.failure("encode", "encoding failed", exc), exc
            call.spare = call.untouched = None
        if call.failure is not None:
            if self._memos is not None:
                self._memos.put_back(drops)
                self._memos.decided(call.seq, good=False)
            self._send_failure(call, call.failure)
            return
        fn, own = call.materialize, Own(call.payload, True)  # what the root has for its own part
        if isinstance(fn, Staged):
            own.prepare, own.finish, own.hint = None if call.prepared else fn.prepare, fn.finish, call.hint
        else:
            own.prepare = fn
        call.payload = call.materialize = None
        # Helpers get what was encoded, as other ranks do.
        helped = self._engine.maker is not None and cast.placement == HELPERS and cast.ref is not None
        arrival = Arrival(cast, room.view if helped else None, ask=call.ask, own=own, had=call.had)
        call.had = ()
        if cast.drop and self._casts.keeping is not None:
            self._casts.keeping.drop(cast.drop)
        if had is not None:
            arrival.message, arrival.body, arrival.again = had
            arrival.own = None
        with self._lock:
            if cast.again:
                self.placing.failed(call.seq)  # it tells nothing about costs
            elif call.measured:
                sent_nbytes = cast.nbytes if call.prepared else 0
                self.placing.spent(call.seq, Cost(time.thread_time() - cpu_s, 0.0, shared_nbytes=sent_nbytes))
            if cast.placement in OWNED:
                self._casts.making.admit(arrival)
            self._ledger.sent(cast.seq, cast.key, cast.nbytes, agree=cast.agree, sent_s=cast.sent_s)
            if cast.agree:
                self._casts.agreeing[cast.seq] = arrival
            self._counters.noted += (("held", began_s - call.ready_s), ("encode", cast.sent_s - began_s))
            if (tracer := self._engine.tracer) is not None:
                tracer.took("held", call.ready_s, began_s, cast)
                tracer.took("encode", began_s, cast.sent_s, cast)
            self._book_sent(call, arrival)
        for code in said:
            self._relay.down(*code)
        if tracer is None:
            self._relay.down(cast, room, header)
        else:
            began_s = time.monotonic()
            self._relay.down(cast, room, header)
            tracer.took("send", began_s, time.monotonic(), cast)
        del room  # a slot is held as long as its writer has a hand on it
        if (spans := self._engine.spans) is not None:
            spans.took("encode", began_s, cast.sent_s, cast)
        if own.prepare is None and own.finish is None and not cast.again:  # the value is here
            self._casts.done(arrival, Result(own.payload))
        else:
            self._casts.making.advance(arrival)

    def _not_again(self, call: Call, codes: list[tuple[Code, Room]]) -> Encoded:
        """The root itself has lost what was to be had again: it is cast and made as if for the first time."""
        assert self._memos is not None
        self._memos.decided(call.seq, good=False, lost=True)
        cast, room, more = self.encoder.encode(call)
        return cast, room, [*codes, *more]

    def _check_unchanged(self, call: Call) -> None:
        """In debug mode: a payload that has changed since its call would go out half old, half new."""
        if call.failure is not None or mark(call.payload) == call.as_called:
            return
        where = f", made at {call.ask.origin.site}" if call.ask.origin is not None else ""
        text = f"the payload has changed since the call{where}: it must stay as it is until the future is done"
        call.failure = self._casts.said("encode", text)

    def _encoded(self, call: Call) -> Encoded:
        """Return what is to be sent of a value that may not travel: the payload in its place if it does not."""
        try:
            encoded = self.encoder.encode(call)
            self.encoder.check(*encoded[:2])
            return encoded
        except BaseException as exc:
            spare = call.spare if call.spare is not None else self._spare_again(call)
            if spare is None:
                raise
            cast, room, codes = spare
            self._unshared(call, exc)
            return msgspec.structs.replace(cast, sent_s=time.monotonic()), room, codes

    def _spare_again(self, call: Call) -> Encoded | None:
        """Encode the payload of a value that does not travel, if the materializer has left the payload as it was."""
        if call.untouched is None:
            return None
        value = call.payload, call.materialize, call.hint, call.prepared, call.placement
        before, call.payload, call.materialize = call.untouched
        if mark(call.payload) != before:
            raise CannotEncode(
                "the value does not travel, and the materializer has changed its payload, so no other can make it: "
                "let it leave its payload as it is, or use placement='every' or 'shard'"
            )
        call.hint, call.prepared, call.placement = MISSING, False, "every"
        try:
            return self.encoder.encode(call)
        finally:
            call.payload, call.materialize, call.hint, call.prepared, call.placement = value

    def _unshared(self, call: Call, exc: BaseException) -> None:
        """A value of the root does not pickle, though it was to be cast: the ranks make their own."""
        reason = clip(f"the root could not share its value: {describe(exc)}", MAX_REASON)
        with self._lock:
            self._counters.unshared += 1
            self._counters.unshared_reason = reason
            self.placing.spent(call.seq, Cost(0.0, 0.0, unshared=reason))
        call.placement = "every"

    def _send_failure(self, call: Call, failure: Failure) -> None:
        """Tell the ranks that a call has no value: it counts all the same."""
        trace = call.ask.traced.carrier if call.ask.traced is not None else None
        origin = call.ask.origin
        with self._lock:
            late = call.ask.late
            if late is not None and late.kind == "withdrawn":  # while it was encoded
                failure = late
            cast = Cast(call.seq, call.key, call.placement, False, None, failure=failure, origin=origin, trace=trace)
            arrival = Arrival(cast, None, ask=call.ask)
            call.payload = call.materialize = None
            self.placing.failed(call.seq)
            self._book_sent(call, arrival)
        self._relay.down(cast)
        self._casts.conclude(arrival, Result(failure=failure, cause=call.cause))

    def _book_sent(self, call: Call, arrival: Arrival) -> None:
        """With the lock held: a call goes out."""
        late = call.ask.late
        if not call.ask.taken:
            call.ask.arrival = arrival
        elif late is not None and late.kind == "withdrawn":
            self._admission.recall(arrival, late)
            self._thread.wake()
        elif arrival.message.agree:
            arrival.objection = late
        message = arrival.message
        if call.ask.traced is not None:
            call.ask.traced.cast = message
        self._counters.casts += 1
        if message.failure is None:
            self._counters.placements[message.placement] += 1
        else:
            self._counters.aborted += message.failure.kind == "withdrawn"
        self._calls.sent(call)
        if self._asks.gates.closed:
            self._asks.gates.open()

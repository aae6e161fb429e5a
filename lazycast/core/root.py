"""The lane of the root: on top of calls and their sending, what the ranks say of casts, and the verdicts.

Guarantees:

* A cast gets its verdict as soon as it follows from the reports; nothing is sent under the lock.
* What is read, reported or lost makes room for what was held back.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

from lazycast.arguments import usable_key
from lazycast.codec.trust import policy_of
from lazycast.core.admission import Admission
from lazycast.core.arrival import Arrival
from lazycast.core.asks import Asks
from lazycast.core.casts import Casts
from lazycast.core.coming import Coming
from lazycast.core.engine import Engine, Taken, nothing_comes
from lazycast.core.follower import FollowerLane
from lazycast.core.future import CastFuture
from lazycast.core.memo.book import Book
from lazycast.core.neighbours import Neighbours
from lazycast.core.performer import Group
from lazycast.core.seen import Counted, Rows, Seen
from lazycast.core.sending import Sending
from lazycast.core.situation import Phase, Situation
from lazycast.core.stats_reports import Reported
from lazycast.net.backend import Context
from lazycast.net.host.mesh import Mesh
from lazycast.net.members import unpacked
from lazycast.net.topology import Topology
from lazycast.net.wire import (
    AnyMessage,
    Code,
    Failure,
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
    Verdict,
    again_seq,
)
from lazycast.options import Options
from lazycast.watch.tracing.tracer import Named


class RootLane:
    """See the module's text.

    Args:
        engine: of an object whose other lanes are there; None: this is the only one.
    """

    on_turn = None

    def __init__(
        self,
        group: Group,
        options: Options,
        context: Context,
        topology: Topology,
        mesh: Mesh | None,
        engine: Engine | None = None,
    ) -> None:
        self.engine = engine = Engine(group, options) if engine is None else engine
        self._group, self._options, self._lock = group, options, engine.lock
        self.asks = Asks(engine, group, options, self)
        engine.lanes.append(self)
        self.near = Neighbours(engine, group, options, context, topology, mesh, self)
        self._relay = self.near.relay
        policy = policy_of(options, same_program=group.same_program)
        self.casts = Casts(
            engine,
            group,
            options,
            policy,
            self.asks,
            self.near,
            code_for=self._code_for,
            report=self._on_report,
            react=self._react_to,
        )
        self.admission = Admission(engine, group, options, policy, self.asks, self.casts, self._relay)
        self._memos = Book(options.kept_nbytes(group.size), range(group.size)) if options.memo is not None else None
        self.sending = Sending(
            engine, group, options, policy, self.asks, self.casts, self.admission, self.near, self._memos
        )
        self.admission.work_one = self.sending.work_one
        self._ledger, self._inquiries, self._placing = (
            self.admission.ledger,
            self.admission.inquiries,
            self.sending.placing,
        )
        self.call, self.has_room, self.when_room = (
            self.admission.call,
            self.admission.has_room,
            self.admission.when_room,
        )
        self.count_missed, self.cancel = self.admission.count_missed, self.admission.cancel  # as of every lane
        self._reported = Reported()
        self._without_code: deque[Failure] = deque(maxlen=100)

    def start(self, *, timeout_s: float) -> None:
        """Connect and begin. Collective."""
        self.near.start(timeout_s=timeout_s)

    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        usable, bad = usable_key(key)  # one that was interrupted may not have been looked at
        if bad is None and usable is not None:
            self.asks.cancel_key(usable)

    def _code_for(self, ident: str) -> bytes:
        return self.sending.encoder.shipper.code_for(ident)

    # What comes from other roots

    @functools.cached_property
    def _coming(self) -> Coming | None:
        others = [lane for lane in self.engine.lanes if isinstance(lane, FollowerLane)]
        return Coming(self.engine, others) if others else None

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        if self._coming is None:
            raise ValueError(nothing_comes(self._options.name))
        self._coming.next_call(taken, wait_s, timeout_s, keyed=keyed, looks=looks)

    def when_come(self, wake: Callable[[], None]) -> bool:
        return True if self._coming is None else self._coming.when_come(wake)

    # Messages

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        self.casts.neighbour_gone(peer, reason)

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        if isinstance(message, Report):
            self._on_report(message)
        elif isinstance(message, Read):
            if message.seqs and self.engine.tracer is not None:
                self._trace_heard(message.rank, "read", message.seqs[0])
            who = unpacked(message.who) if message.who else 1 << message.rank
            with self._lock:
                for seq in message.seqs:
                    self._ledger.read(who, seq)
                if self.asks.gates.closed or self.asks.held:
                    self.admission.freed()
        elif isinstance(message, (Value, Pass)):
            self.casts.making.hear(message, body)
        elif isinstance(message, Need):
            self._on_need(message)
        elif isinstance(message, Query):
            self._inquiries.ask(message)
        elif isinstance(message, Present):
            self._inquiries.present(message)
        elif isinstance(message, Figures):
            with self._lock:
                self._reported.note(message)
        elif isinstance(message, Gone):
            self.casts.gone(message)

    def _on_report(self, message: Report) -> None:
        if self.engine.tracer is not None:
            self._trace_heard(message.rank, "report", message.seq)
        who = self.near.topology.members(message.rank) if message.whole else 1 << message.rank
        read = message.read and message.rank != self._group.rank
        with self._lock:
            if self._placing.trials:
                if message.failure is None:
                    self._placing.reported(message.seq, who, message.rank, message.cost)
                else:
                    self._placing.failed(message.seq)
            if message.whole or message.rank in self._inquiries.far:
                self._inquiries.heard(message.rank, whole=message.whole)
            if self._memos is not None and message.failure is None:
                self._memos.reported(message.seq, who, message.kept)
            known = message.failure is not None and message.failure in self._without_code
            verdict = self._ledger.report(message.rank, message.seq, message.failure, known=known, who=who, read=read)
            if read and (self.asks.gates.closed or self.asks.held):
                self.admission.freed()
        if verdict is not None:
            self._relay.down(verdict)
            if self.asks.noted_ready is not None and verdict.failure is None:
                self._note_ready(verdict.seq)
            if self._memos is not None:
                self._settle_memo(self._memos, verdict)
            self.casts.obey(verdict)

    def _settle_memo(self, memos: Book, verdict: Verdict) -> None:
        """Every rank has been told of a verdict: know what all remember, before the caller may cast the same again."""
        sizes: dict[int, int] = {}
        lost = verdict.failure is not None and verdict.failure.kind == "decode"
        with self._lock:
            arrival = self.casts.agreeing.get(verdict.seq)
            lost |= arrival is not None and arrival.resent  # it is made, and kept, anew
            if arrival is not None and self.casts.keeping is not None:
                sizes = self.casts.keeping.settle(arrival, verdict)
        memos.decided(verdict.seq, good=verdict.failure is None, lost=lost, sizes=sizes)

    def _note_ready(self, seq: int) -> None:
        """Every rank has this cast, and is told so before anything that is sent from now on."""
        with self._lock:
            arrival = self.casts.agreeing.get(seq)
            if arrival is not None and arrival.message.key is not None and self.asks.noted_ready is not None:
                self.asks.noted_ready.append(arrival.message.key)

    def _on_need(self, message: Need) -> None:
        what = "a materializer's code could not be sent"
        try:
            seq = again_seq(message.ident)
            if seq is not None:
                what = f"what rank {message.rank} has lost, and was to have again, could not be sent"
                with self._lock:
                    arrival = self.casts.agreeing[seq]
                    kept, resent, arrival.resent = arrival.again, arrival.resent, True
                if arrival.had:  # a rank waits for it only once it has the results of all other items
                    code, room = self.sending.encoder.items_again(message.ident, arrival.had)
                elif resent:  # to all, and a rank that lacks it waits for it from when its cast has come, before that
                    return
                else:
                    assert kept is not None, "only what is had again is asked for"
                    code, room = self.sending.encoder.again(message.ident, kept)
            else:
                code, room = self.sending.encoder.code(message.ident)
        except Exception as exc:  # whatever a callable's own code raises: the rank that asks is not to blame
            failure = self.engine.performer.failure("encode", what, exc)
            self._without_code.append(failure)  # what the ranks that wait for it will report
            self._relay.down(Code(next(self.admission.seqs), message.ident, failure=failure))
        else:
            self._relay.down(code, room)

    def _react_to(self, message: Gone) -> None:
        if message.failure.kind == "lost":
            self.casts.end_with(message.failure)
            return
        # A rank that passed casts on takes those below it with it: nothing reaches them any more, or comes from them.
        cut_off = [message.rank, *self.near.topology.below(message.rank)]
        with self._lock:
            for rank in cut_off:
                self._inquiries.gone(rank)
            if self.casts.end.failure is None:
                self.casts.end.failure = message.failure  # later calls fail on every rank, naming who closed
            # After a loss ranks close because of it.
            failure = self.casts.end.failure if self.casts.end.failure.kind == "lost" else message.failure
            verdicts = [verdict for rank in cut_off for verdict in self._ledger.gone(rank, failure)]
            self.asks.gates.open()
        self.engine.thread.wake()
        for verdict in verdicts:
            self._relay.down(verdict)
            if self._memos is not None:
                self._settle_memo(self._memos, verdict)
            self.casts.obey(verdict)

    # Calls that wait

    def work(self) -> float | None:
        return self.near.beat_beside(self.sending.work())

    def inquire(self, ask: CastFuture[Any]) -> None:
        arrival = ask.arrival
        if arrival is None or arrival.local is not None or not arrival.begun:
            self._inquiries.ask_myself(ask)
        else:  # we wait for ourselves
            self._inquiries.hear_all()

    def is_decided(self, ask: CastFuture[Any]) -> bool:
        arrival = ask.arrival
        if arrival is None or not arrival.message.agree or arrival.verdict is not None:
            return False
        return not self._ledger.undecided(arrival.message.seq)

    def forget_inquiry(self, ask: CastFuture[Any]) -> None:
        self._inquiries.forget(ask)

    def tell_late(self, ask: CastFuture[Any], arrival: Arrival | None) -> None:
        self.casts.tell_late(ask, arrival)

    # The end

    def busy(self) -> bool:
        return self.admission.calls.pending or bool(self.admission.recalled)

    def engine_failed(self, exc: BaseException) -> None:
        self.casts.failed(exc)

    def follow(self, within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        self.casts.making.own_part.within = within

    def hear_losses(self) -> None:
        self.casts.hear_losses()

    def disconnect(self, timeout_s: float) -> None:
        self.sending.tell_recalled(timeout_s)
        self.casts.disconnect(timeout_s)

    def forget(self) -> None:
        self.casts.forget()

    def close_after_fork(self) -> None:
        self._relay.close_after_fork()

    # Looking

    def look(self, ask: CastFuture[Any]) -> Situation:
        arrival = ask.arrival
        phase, missing, answered = self._phase(ask, arrival)
        nbytes = arrival.message.nbytes if arrival is not None else None
        notes = (f"made at {ask.origin.site}",) if ask.origin is not None else ()
        return Situation(phase, missing, answered, self.near.silences(ask), nbytes=nbytes, notes=notes)

    def _phase(self, ask: CastFuture[Any], arrival: Arrival | None) -> Phase:
        if arrival is not None:
            return self.casts.phase(arrival) or self._inquiries.agreement(arrival.message.seq)
        phase, missing, answered = self._inquiries.before_sending(ask)
        call = self.admission.calls.of(ask)
        held = self.engine.performer.holders(call.seq) if call is not None else ""
        return f"{phase}; it waits for {held}" if held else phase, missing, answered

    def worded(self, situation: Situation) -> Situation:
        return self.near.worded(situation)

    def named(self, ask: CastFuture[Any]) -> Named | None:
        return ask.arrival.message if ask.arrival is not None else self.admission.calls.of(ask)

    def _trace_heard(self, rank: int, kind: str, seq: int) -> None:
        """Note when a message of another clock came: with its sender's note it tells how far apart the two are."""
        tracer = self.engine.tracer
        if tracer is not None and self._group.clock_of(rank) != self._group.clock_of(self._group.rank):
            tracer.happened("heard", None, rank=rank, kind=kind, seq=seq)

    def seen(self) -> Seen:
        return Seen(self.near.hosts, self.sending.placed, self.near.shared(), self.casts.remembered())

    def counted(self) -> Counted:
        standings = self._placing.standings()
        return Counted(0, self.casts.making.loaded, self.near.nbytes(), standings, self._reported.group)

    def rows(self) -> Rows:
        keeping = self.casts.keeping
        return Rows(
            self.sending.placed,
            self.near.nbytes(),
            self.casts.ended(),
            self.admission.calls.lines,
            self._ledger.lines,
            casts=self.casts.lines,
            leases=self._relay.leases,
            links=self.near.links,
            memo=None if keeping is None else lambda: [keeping.store.line()],
        )

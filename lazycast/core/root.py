"""The lane of the root: on top of calls and their sending, what the ranks say of casts, and the verdicts.

Guarantees:

* A cast gets its verdict as soon as it follows from the reports; nothing is sent under the lock.
* What is read, reported or lost makes room for what was held back.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable

from lazycast.core.arrival import Arrival
from lazycast.core.ask import Ask
from lazycast.core.coming import Coming
from lazycast.core.engine import Engine, Taken
from lazycast.core.figures import Reported
from lazycast.core.follower import FollowerLane
from lazycast.core.memo.book import Book
from lazycast.core.performer import Group
from lazycast.core.sending import Sending
from lazycast.core.situation import Phase
from lazycast.materialize.placement.chooser import Standing
from lazycast.net.backend import Context
from lazycast.net.host.mesh import Mesh
from lazycast.net.topology import Topology
from lazycast.net.wire import (
    AnyMessage,
    Code,
    Failure,
    Figures,
    Gone,
    Need,
    Pass,
    Present,
    Query,
    Read,
    Report,
    Value,
    Verdict,
)
from lazycast.options import Options
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import Stats
from lazycast.watch.tracing.tracer import Named


class RootLane(Sending):
    """See the module's text."""

    def __init__(
        self,
        group: Group,
        options: Options,
        context: Context,
        topology: Topology,
        mesh: Mesh | None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(group, options, context, topology, mesh, engine)
        self._reported = Reported()
        self._without_code: deque[Failure] = deque(maxlen=100)

    # What comes from other roots

    @functools.cached_property
    def _coming(self) -> Coming | None:
        others = [lane for lane in self.lanes if isinstance(lane, FollowerLane)]
        return Coming(self.engine, others) if others else None

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        if self._coming is None:
            super().next_call(taken, wait_s, timeout_s, keyed=keyed, looks=looks)
        else:
            self._coming.next_call(taken, wait_s, timeout_s, keyed=keyed, looks=looks)

    def when_come(self, wake: Callable[[], None]) -> bool:
        return True if self._coming is None else self._coming.when_come(wake)

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
            self._inquiries.present(message)
        elif isinstance(message, Figures):
            with self._lock:
                self._reported.note(message)
        elif isinstance(message, Gone):
            self._on_gone(message)

    def _on_report(self, message: Report) -> None:
        if self.engine.tracer is not None:
            self._trace_heard(message.rank, "report", message.seq)
        with self._lock:
            if message.read and message.rank != self._group.rank:
                self._ledger.read(message.rank, message.seq)
                if self._gates or self._held:
                    self._freed()
            if self._placing.trials:
                if message.failure is None:
                    self._placing.reported(message.seq, message.rank, message.cost)
                else:
                    self._placing.failed(message.seq)
            if message.rank in self._inquiries.far:
                self._inquiries.heard(message.rank)
            if self._memos is not None and message.failure is None:
                self._memos.reported(message.seq, message.rank, message.kept)
            known = message.failure is not None and message.failure in self._without_code
            verdict = self._ledger.report(message.rank, message.seq, message.failure, known=known)
        if verdict is not None:
            self._relay.down(verdict)
            if self._noted_ready is not None and verdict.failure is None:
                self._note_ready(verdict.seq)
            if self._memos is not None:
                self._settle_memo(self._memos, verdict)
            self._on_verdict(verdict)

    def _settle_memo(self, memos: Book, verdict: Verdict) -> None:
        """Every rank has been told of a verdict: know what all remember, before the caller may cast the same again."""
        with self._lock:
            arrival = self._agreeing.get(verdict.seq)
            if arrival is not None:
                self._settle_kept(arrival, verdict)
        failure = verdict.failure
        memos.decided(verdict.seq, good=failure is None, lost=failure is not None and failure.kind == "decode")

    def _note_ready(self, seq: int) -> None:
        """Every rank has this cast, and is told so before anything that is sent from now on."""
        with self._lock:
            arrival = self._agreeing.get(seq)
            if arrival is not None and arrival.message.key is not None and self._noted_ready is not None:
                self._noted_ready.append(arrival.message.key)

    def _on_need(self, message: Need) -> None:
        try:
            code, room = self._encoder.code(message.ident)
        except Exception as exc:  # whatever a callable's own code raises: the rank that asks is not to blame
            failure = self._performer.failure("encode", "a materializer's code could not be sent", exc)
            self._without_code.append(failure)  # what the ranks that wait for it will report
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
            if self._memos is not None:
                self._settle_memo(self._memos, verdict)
            self._on_verdict(verdict)

    def _code_for(self, ident: str) -> bytes:
        return self._encoder.shipper.code_for(ident)

    # Looking

    def _named(self, ask: Ask) -> Named | None:
        return super()._named(ask) or self._calls.of(ask)

    def _trace_heard(self, rank: int, kind: str, seq: int) -> None:
        """Note when a message of another clock came: with its sender's note it tells how far apart the two are."""
        tracer = self.engine.tracer
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

    def _is_decided(self, ask: Ask) -> bool:
        arrival = ask.arrival
        if arrival is None or not arrival.message.agree or arrival.verdict is not None:
            return False
        return not self._ledger.undecided(arrival.message.seq)

    def _busy(self) -> bool:
        return self._calls.pending or bool(self._recalled) or super()._busy()

    def _phase_before_arrival(self, ask: Ask) -> Phase:
        phase, missing, answered = self._inquiries.before_sending(ask)
        call = self._calls.of(ask)
        held = self._performer.holders(call.seq) if call is not None else ""
        return f"{phase}; it waits for {held}" if held else phase, missing, answered

    def _phase_of_own_part(self, arrival: Arrival) -> Phase:
        held = self._performer.holders(arrival.message.seq)
        return f"waits for {held}" if held else "materializing here", (self._group.rank,), ()

    def _phase_of_agreement(self, ask: Ask, arrival: Arrival) -> Phase:
        return self._inquiries.agreement(arrival.message.seq)

    def _notes(self, ask: Ask) -> tuple[str, ...]:
        return (f"made at {ask.origin.site}",) if ask.origin is not None else ()

    def _dump_queue(self) -> list[str]:
        return self._calls.lines()

    def _dump_books(self) -> list[str]:
        return self._ledger.lines()

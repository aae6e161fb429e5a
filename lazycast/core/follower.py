"""The lane of a rank that is not the root: what the root says of its casts, and what it is told.

Guarantees: the root learns what has been asked for at once when that may hold it back, or when it was told of nothing
for a while; else a little later, in batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lazycast.codec.trust import policy_of
from lazycast.core import failures, stats_reports
from lazycast.core.arrival import Arrival
from lazycast.core.asks import Asks
from lazycast.core.casts import SPENT, Casts
from lazycast.core.divergence import SHOWN_CALLS, made
from lazycast.core.dump import named
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.inquiry.asking import Queries
from lazycast.core.matching import Matching
from lazycast.core.neighbours import Neighbours
from lazycast.core.own_part import MAX_REASON
from lazycast.core.performer import Group, Result
from lazycast.core.reads import SEQS_PER_READ, Reads
from lazycast.core.seen import Counted, Rows, Seen
from lazycast.core.situation import Phase, Situation
from lazycast.net.backend import Context
from lazycast.net.host.mesh import Mesh
from lazycast.net.topology import Topology
from lazycast.net.wire import (
    AnyMessage,
    Cast,
    Code,
    Drop,
    Failure,
    Gone,
    Key,
    Pass,
    Present,
    Read,
    Relayed,
    RollCall,
    Status,
    Value,
    Verdict,
    again_seq,
)
from lazycast.options import OWNED, Options

logger = logging.getLogger("lazycast")

#: How long after a cast the root is told what this rank has counted. While nothing is cast nothing is told. In large
#: groups it is longer: the root gets that many of these messages in a second at most.
STATS_EVERY_S, _MOST_STATS_PER_S = 2.0, 32
_SHOWN_UNASKED = 8  # casts, in a message


def _sooner(one_s: float | None, other_s: float | None) -> float | None:
    if one_s is None or other_s is None:
        return other_s if one_s is None else one_s
    return min(one_s, other_s)


class FollowerLane:
    """See the module's text.

    Args:
        engine: of an object whose other lanes are there; None: this is the only one.
    """

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
        self._group, self._options = group, options
        self._lock, self._counters = engine.lock, engine.counters
        self.asks = asks = Asks(engine, group, options, self)
        engine.lanes.append(self)
        self.near = near = Neighbours(engine, group, options, context, topology, mesh, self)
        self._relay = near.relay
        policy = policy_of(options, same_program=group.same_program)
        self.casts = Casts(
            engine, group, options, policy, asks, near, code_for=None, report=self._relay.up, react=self._react_to
        )
        self._reads = Reads(options.max_inflight, options.max_inflight_nbytes)
        in_turn = self._relay.is_near(topology.parent)
        self.on_turn = self._tell_reads if self._relay.upwards is None else self._tell_all_reads
        self.matching = Matching(
            engine, group, options, asks, self.casts, self._reads, self._tell_reads, reads_in_turn=in_turn
        )
        self.call, self.next_call = self.matching.call, self.matching.next_call  # as of every lane
        self.when_come = self.matching.when_come
        self._placed: str | None = None
        self._has_root_clock = group.clock_of(group.rank) == group.clock_of(group.root)
        self._queries = Queries(group.rank, group.root)
        self._stats_every_s = max(STATS_EVERY_S, group.size / _MOST_STATS_PER_S)
        self._early_verdicts: dict[int, Verdict] = {}  # verdicts whose cast has not come
        self._stats_due_s: float | None = None  # when the root is to be told what has been counted

    def start(self, *, timeout_s: float) -> None:
        """Connect and begin. Collective."""
        self.near.start(timeout_s=timeout_s)

    # Calls

    def has_room(self) -> bool:
        return True

    def when_room(self, wake: Callable[[], None]) -> bool:
        return True

    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        if self.engine.handed.waiting:
            self.engine.handed.do()
        self.matching.give_up_next(key, counted)

    def count_missed(self, key: Key | None, exc: BaseException) -> None:
        self.matching.give_up_next(key)

    def cancel(self, ask: CastFuture[Any]) -> bool:
        with self._lock:
            if not self.asks.take(ask, cancelled=True):
                return ask.cancelled()
        ask.settle_cancelled()
        return True

    # Where every rank is a root

    @property
    def ended(self) -> Failure | None:
        """Why nothing more can come, once that is so. With the lock held."""
        return self.casts.end.failure

    def came_s(self, *, keyed: bool) -> float | None:
        """With the lock held: return when that came which `next` would take (monotonic seconds), if anything has."""
        return self.matching.came_s(keyed=keyed)

    # Messages

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        if isinstance(message, Cast):
            self._on_cast(message, body)
        elif isinstance(message, Verdict):
            if message.failure is None:
                self.casts.obey(message)
            else:
                self._on_failed(message, message.failure)
        elif isinstance(message, Drop):
            self._on_drop(message)
        elif isinstance(message, (Value, Pass)):
            self.casts.making.hear(message, body)
        elif isinstance(message, Code):
            self._on_code(message, body)
        elif isinstance(message, RollCall):
            self._relay.up(Present(self._group.rank, failures.clip(self.engine.performer.holders(), MAX_REASON)))
        elif isinstance(message, (Status, Relayed)):
            with self._lock:
                self._queries.answered(message)
        elif isinstance(message, Gone):
            self.casts.gone(message)

    def _on_failed(self, message: Verdict, failure: Failure) -> None:
        """A cast has failed, or was withdrawn."""
        if failure.kind == "withdrawn":  # it comes after its cast
            with self._lock:
                arrival = self.casts.agreeing.pop(message.seq, None) or self._unfinished(message.seq)
                self._counters.aborted += failure.rank == self._group.root  # else every rank has given it up
            if arrival is not None:
                self.casts.conclude(arrival, Result(failure=failure))
                self.casts.give_up(arrival)
            return
        with self._lock:
            end = self.casts.end.failure
            comes = end is None or end.kind != "lost"  # after a loss no cast is taken
            if message.seq not in self.casts.agreeing and comes:
                # The news that a rank has gone can overtake a cast on its way out.
                self._early_verdicts[message.seq] = message
        self.casts.obey(message)

    def _on_drop(self, message: Drop) -> None:
        """The root lets go of a cast. A part that has begun is done to its end, if only for others of this host."""
        with self._lock:
            arrival = next((one for one in self.matching.mailbox.arrivals() if one.message.seq == message.seq), None)
            if arrival is None or arrival.dropped:
                return  # it was asked for meanwhile: this rank keeps it
            arrival.dropped = True
            if arrival.final is None or arrival.final.failure is None:
                self._counters.aborted += 1
            idle = not arrival.begun and arrival.owner is None and not arrival.message.agree
            if arrival.final is not None or idle:
                arrival.begun, arrival.final = True, self.casts.dropped()
                arrival.drop()

    def _unfinished(self, seq: int) -> Arrival | None:
        """With the lock held: a cast without agreement that is not done. It looks at all of them."""
        asked = [ask.arrival for ask in self.asks.waits.live if ask.arrival is not None]
        found = (arrival for arrival in (*asked, *self.matching.mailbox.arrivals()) if arrival.message.seq == seq)
        return self.casts.making.owned.get(seq) or next(found, None)

    def _on_cast(self, message: Cast, body: memoryview) -> None:
        lost, had = False, self.casts.keeping.items_again(message) if message.items and self.casts.keeping else []
        if message.again or message.drop:
            message, body, kept = self.casts.had_again(message, body)
            lost = kept is None and message.again > 0
            if lost and self.casts.keeping is not None:
                self.casts.keeping.store.count(hits=1)  # the root sends it
        if had is None:
            lost, had = True, []
        result = Result(failure=message.failure) if message.failure is not None else None
        # Final before anybody can see it.
        arrival = Arrival(message, body, final=result, arrived_s=time.monotonic(), lost=lost, had=had)
        with self._lock:
            if self.casts.end.failure is not None and self.casts.end.failure.kind == "lost":
                return  # the call that it is for has failed, or will: it must not meet the next one with its key
            self._counters.casts += 1
            if message.failure is None:
                self._counters.placements[message.placement] += 1
                self._placed = message.placement
                if self._has_root_clock:
                    self._counters.noted.append(("transfer", arrival.arrived_s - message.sent_s))
                    if (tracer := self.engine.tracer) is not None:
                        tracer.took("transfer", message.sent_s, arrival.arrived_s, message)
            else:
                self._counters.aborted += message.failure.kind == "withdrawn"
            if self._stats_due_s is None:
                self._stats_due_s = arrival.arrived_s + self._stats_every_s
                self.engine.thread.wake()
            early = self._early_verdicts.pop(message.seq, None) if self._early_verdicts else None
            if message.placement in OWNED:
                self.casts.making.admit(arrival)
            if message.agree and early is None:
                self.casts.agreeing[message.seq] = arrival
            ask = self.matching.arrive(arrival)
            if ask is not None and result is not None:
                arrival.final = SPENT
        if early is None and result is None:
            self.casts.making.advance(arrival)
        else:
            self._begin_part(arrival, early, ask, result)
        if (tracer := self.engine.tracer) is not None:
            tracer.took("arrive", arrival.arrived_s, time.monotonic(), message)

    def _begin_part(
        self, arrival: Arrival, early: Verdict | None, ask: CastFuture[Any] | None, result: Result | None
    ) -> None:
        """A cast is on the books: do what can be done of it."""
        if early is not None and early.failure is not None:
            self.casts.conclude(arrival, Result(failure=early.failure))
            self.casts.give_up(arrival)
        elif result is not None:
            if ask is not None:
                self.asks.settle(ask, result)
        else:
            self.casts.making.advance(arrival)

    def _on_code(self, message: Code, body: memoryview) -> None:
        failure = message.failure
        if failure is None and body.nbytes != message.nbytes:
            short = self.casts.making.own_part.short(message.nbytes)
            what = "the code of a materializer, or a value that is had again, could not be taken"
            failure = self.engine.performer.failure("decode", what, short)
        if again_seq(message.ident) is not None:
            self.casts.making.have_again(message, body, failure)
        else:
            self.casts.making.learn(message.ident, bytes(body) if failure is None else None, failure)

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        self.casts.neighbour_gone(peer, reason)

    def _react_to(self, message: Gone) -> None:
        if message.failure.kind == "lost" or message.rank in self.near.topology.upstream:
            self.casts.end_with(message.failure)
            with self._lock:
                self.matching.mailbox.clear_asks()
                if message.failure.kind == "lost":
                    self._early_verdicts.clear()

    # Time

    def work(self) -> float | None:
        return self.near.beat_beside(_sooner(self.on_turn(), self._report_stats(time.monotonic())))

    def _report_stats(self, now_s: float) -> float | None:
        with self._lock:
            if self._stats_due_s is None or self._stats_due_s > now_s:
                return self._stats_due_s
            self._stats_due_s = None
        self._relay.up(stats_reports.of(self.engine.looks.stats()))
        return None

    def _tell_all_reads(self) -> float | None:
        """Tell the root of those of the ranks below, too."""
        assert self._relay.upwards is not None
        return _sooner(self._tell_reads(), self._relay.upwards.tell_reads(time.monotonic()))

    def _tell_reads(self) -> float | None:
        if self._reads.due_s is None:
            return None
        with self._lock:
            reads, next_s = self._reads.take(time.monotonic()), self._reads.due_s
        for start in range(0, len(reads), SEQS_PER_READ):
            if self.engine.tracer is not None and self._relay.upwards is None:
                self.casts.trace_said("read", reads[start])
            self._relay.up(Read(self._group.rank, reads[start : start + SEQS_PER_READ]))
        return next_s

    def is_decided(self, ask: CastFuture[Any]) -> bool:
        return ask.arrival is not None and ask.arrival.declined

    def inquire(self, ask: CastFuture[Any]) -> None:
        arrival = ask.arrival
        if arrival is not None and arrival.local is None and arrival.begun:
            return  # we wait for ourselves
        with self._lock:
            if ask.taken:
                return
            query = self._queries.open(ask, time.monotonic())
        self._relay.up(query)

    def forget_inquiry(self, ask: CastFuture[Any]) -> None:
        self._queries.forget(ask)

    def tell_late(self, ask: CastFuture[Any], arrival: Arrival | None) -> None:
        self.casts.tell_late(ask, arrival)

    # The end

    def busy(self) -> bool:
        return False

    def engine_failed(self, exc: BaseException) -> None:
        self.casts.failed(exc)

    def follow(self, within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        self.casts.making.own_part.within = within

    def hear_losses(self) -> None:
        self.casts.hear_losses()

    def disconnect(self, timeout_s: float) -> None:
        if self._options.debug:
            self._tell_unasked()
        if self._counters.casts:
            self._relay.up(stats_reports.of(self.engine.looks.stats()))  # the last word on this rank's casts
        self.casts.disconnect(timeout_s)

    def _tell_unasked(self) -> None:
        """In debug mode: calls of the root that nobody here has made are a sign that the ranks are out of step."""
        with self._lock:
            left = [arrival.message for arrival in self.matching.mailbox.arrivals()]
        if left:
            said = ", ".join(made(m.seq, m.key, m.origin) for m in left[:SHOWN_CALLS])
            text = "lazycast %r: rank %d closes with %d casts that it has not asked for: %s"
            logger.warning(text, self._options.name, self._group.rank, len(left), said)

    def forget(self) -> None:
        self.casts.forget()
        with self._lock:
            self.matching.forget()

    def close_after_fork(self) -> None:
        self._relay.close_after_fork()

    # Looking

    def look(self, ask: CastFuture[Any]) -> Situation:
        arrival = ask.arrival
        phase, missing, answered = self._phase(ask, arrival)
        nbytes = arrival.message.nbytes if arrival is not None else None
        silences, notes = self.near.silences(ask), self._notes(ask)
        return Situation(phase, missing, answered, silences, nbytes=nbytes, notes=notes)

    def _phase(self, ask: CastFuture[Any], arrival: Arrival | None) -> Phase:
        if arrival is None:
            return self._queries.before_arrival(ask)
        return self.casts.phase(arrival) or self._queries.agreement(ask)

    def worded(self, situation: Situation) -> Situation:
        return self.near.worded(situation)

    def named(self, ask: CastFuture[Any]) -> Cast | None:
        return ask.arrival.message if ask.arrival is not None else None

    def _notes(self, ask: CastFuture[Any]) -> tuple[str, ...]:
        notes = self._queries.notes(ask)
        unasked = self.matching.unasked() if ask.arrival is None else []
        if not unasked:
            return notes
        names = [f"#{a.message.seq}{named(a.message.key)}" for a in unasked[:_SHOWN_UNASKED]]
        more = ", ..." if len(unasked) > len(names) else ""
        casts = "1 cast" if len(unasked) == 1 else f"{len(unasked)} casts"
        return (*notes, f"{casts} here that nobody has asked for: {', '.join(names)}{more}")

    def _placement(self) -> tuple[str, str]:
        if self._options.placement != "auto":
            return self._options.placement, "asked for"
        return self._placed or "auto", "chosen by the root" if self._placed else "nothing has been cast"

    def seen(self) -> Seen:
        return Seen(self.near.hosts, self._placement(), self.near.shared(), self.casts.remembered())

    def counted(self) -> Counted:
        return Counted(len(self.matching.unasked()), self.casts.making.loaded, self.near.nbytes())

    def rows(self) -> Rows:
        keeping = self.casts.keeping
        return Rows(
            self._placement(),
            self.near.nbytes(),
            self.casts.ended(),
            mailbox=self._mailbox_lines,
            casts=self.casts.lines,
            leases=self._relay.leases,
            links=self.near.links,
            memo=None if keeping is None else lambda: [keeping.store.line()],
        )

    def _mailbox_lines(self) -> list[str]:
        mailbox = self.matching.mailbox
        arrived = [
            f"#{a.message.seq}{named(a.message.key)}: {a.message.nbytes} bytes, nobody has asked for it"
            for a in mailbox.arrivals()
        ]
        return arrived + [f"a call{named(ask.key)}: its cast has not come" for ask in mailbox.asks()]

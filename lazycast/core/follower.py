"""The lane of a rank that is not the root: matches what arrives with what is asked for.

Guarantees:

* Every call counts: the n-th call with a key gets the root's n-th cast with it, also if one of the two was refused,
  cancelled or timed out.
* An interrupt of the caller leaves nothing half done: a call that counts has its place in line, and what it sets off
  here is reported.
* The root learns what has been asked for in batches: at once when they may hold it back, else a little later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from lazycast.arguments import usable_key
from lazycast.codec.fingerprint import fingerprint
from lazycast.core import failures, figures
from lazycast.core.arrival import Arrival, Own
from lazycast.core.ask import Ask
from lazycast.core.divergence import SHOWN_CALLS, Pairings, made
from lazycast.core.dump import named
from lazycast.core.engine import Engine, Taken
from lazycast.core.future import CastFuture
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.lane import SPENT, Lane
from lazycast.core.mailbox import Mailbox
from lazycast.core.parts import MAX_REASON
from lazycast.core.performer import Group, Result
from lazycast.core.queries import Queries
from lazycast.core.reads import Reads, messages
from lazycast.core.situation import Phase
from lazycast.missing import MISSING
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
    Origin,
    Pass,
    Present,
    Read,
    Relayed,
    RollCall,
    Status,
    Value,
    Verdict,
)
from lazycast.options import OWNED, Options

logger = logging.getLogger("lazycast")

#: How long after a cast the root is told what this rank has counted. While nothing is cast nothing is told.
FIGURES_EVERY_S = 2.0
_SHOWN_UNASKED = 8  # casts, in a message


class FollowerLane(Lane):
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
        self._mailbox: Mailbox[Ask, Arrival] = Mailbox()
        self._reads = Reads(options.max_inflight, options.max_inflight_nbytes)
        self._tells_in_turn = self._relay.is_near(topology.parent)  # whether who takes casts tells of reads itself
        self._placed: str | None = None
        self._has_root_clock = group.clock_of(group.rank) == group.clock_of(group.root)
        self._queries = Queries(group.rank, group.root)
        self._pairings = Pairings()
        self._overdue: Failure | None = None  # a divergence that the others are told of with the next cast
        self._early_verdicts: dict[int, Verdict] = {}  # verdicts whose cast has not come
        self._figures_due_s: float | None = None  # when the root is to be told what has been counted

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
        if self.handed:
            self.do_handed()
        refused = refusal
        mark: bytes | Exception | None = None
        if here and self._options.replicated and payload is not MISSING:
            try:  # the caller is about to wait, most often for a cast that has not come yet
                mark = fingerprint(payload)
            except Exception as exc:  # whatever the attributes of a payload do when they are looked at
                mark = exc
        with Uninterrupted():  # what has begun must count, and a part that begins here must be reported
            with self._lock:
                if self.engine.closing:
                    self._refuse_if_closed()
                given = self._given_to(key) if self.engine.given_back and refused is None else None
                if given is not None:
                    if counted is not None:
                        counted.append(True)
                    return given
                ask = self._make_ask(key, timeout_s, time.monotonic(), "broadcast" if here else "broadcast_async")
                if refused is None and key is not None and key in self._pending:
                    refused = self._key_in_use(key)
                if refused is not None:
                    ask.taken = True
                else:
                    if self._options.replicated:
                        ask.payload, ask.mark = payload, mark
                    self._book(ask)
                if counted is not None:
                    counted.append(True)
                arrival, result = self._match(ask)
                hopeless = None
                if self._end.failure is not None and result is None and self._depends_on_end(arrival):
                    hopeless = self._end.failure
            if arrival is not None:
                self._after_match(ask, arrival, result)
            if hopeless is not None and refused is None:
                self._settle(ask, Result(failure=hopeless))
        if refused is not None:
            try:
                raise refused
            finally:
                del refused, refusal  # it leads to its traceback, and that to this frame: it would lead back to it
        return ask.future

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        if self._options.replicated:
            text = "with replicated=True each rank passes its own payload, and next() has none: ask by key"
            raise ValueError(f"lazycast {self._options.name!r}: {text}")
        if self.handed:
            self.do_handed()
        deadline_s = time.monotonic() + wait_s
        while True:
            left_s = deadline_s - time.monotonic()
            with Uninterrupted():  # as for a call
                gate = self._take_first(taken, timeout_s, keyed=keyed, wait=left_s > 0, looks=looks)
            if gate is None:
                return
            if not gate.acquire(timeout=left_s):
                with Uninterrupted(), self._lock:
                    self._unwatch(gate)

    def _take_first(
        self, taken: list[Taken], timeout_s: float, *, keyed: bool, wait: bool, looks: bool
    ) -> threading.Lock | None:
        """Put what came first into `taken`. If there is nothing, return what opens when something has changed."""
        with self._lock:
            self._refuse_if_closed()
            given_back = self._given_back(keyed=keyed) if self.engine.given_back else None
            if given_back is not None:
                self.engine.given_back.remove(given_back)
                taken.append(given_back)
                return None
            first, end = self._first(keyed=keyed), self._end.failure
            if first is None and end is not None and not (looks and end.kind == "closed"):
                label = f"lazycast {self._options.name!r}: next()"
                raise failures.to_exception(end, label=label, rank=self._group.rank)
            if first is None:
                return self._watch() if wait else None
            ask = self._make_ask(first.message.key, timeout_s, time.monotonic(), "next")
            ask.origin = None  # whatever comes is what this call was meant for
            self._book(ask)
            arrival, result = self._match(ask)
            hopeless = end if result is None and self._depends_on_end(arrival) else None
        self._after_match(ask, arrival, result)
        if hopeless is not None:
            self._settle(ask, Result(failure=hopeless))
        taken.append((ask.key, ask.future))
        return None

    def _given_to(self, key: Key | None) -> CastFuture[Any] | None:
        """With the lock held: the future that an interrupted `next` had of the cast that is a call's for `key`."""
        root = self._group.root
        given_back = (one for one in self.engine.given_back if one[1].root == root)
        mine = next((one for one in given_back if type(one[0]) is type(key) and one[0] == key), None)
        if mine is None:
            return None
        self.engine.given_back.remove(mine)
        return mine[1]

    def _given_back(self, *, keyed: bool) -> Taken | None:
        """With the lock held: what an interrupted `next` had of this root, if anything."""
        root = self._group.root
        mine = (one for one in self.engine.given_back if one[1].root == root and (one[0] is not None or not keyed))
        return next(mine, None)

    @property
    def ended(self) -> Failure | None:
        """Why nothing more can come, once that is so. With the lock held."""
        return self._end.failure

    def came_s(self, *, keyed: bool) -> float | None:
        """With the lock held: return when that came which `next` would take (monotonic seconds), if anything has."""
        if self.engine.given_back and self._given_back(keyed=keyed) is not None:
            return 0.0
        first = self._first(keyed=keyed)
        return None if first is None else first.arrived_s

    def _first(self, *, keyed: bool) -> Arrival | None:
        """With the lock held: return what came first of all that wait. What was dropped is passed over, and counts."""
        while (first := self._mailbox.first(keyed=keyed)) is not None and first.dropped:
            self._match(self._given_up_ask(first.message.key))
        return first

    def when_come(self, wake: Callable[[], None]) -> bool:
        with Uninterrupted(), self._lock:
            if self.came_s(keyed=False) is not None or self.engine.closing or self._end.failure is not None:
                return True
            self.wake_at_change(wake)
            return False

    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        if self.handed:
            self.do_handed()
        self._give_up_next(key, counted)

    def _count_missed(self, key: Key | None, exc: BaseException) -> None:
        self._give_up_next(key)

    def _give_up_next(self, key: Key | None, counted: list[bool] | None = None) -> None:
        """This rank does not want the next cast with this key, or without one."""
        key, bad = usable_key(key)  # what was interrupted may not have been looked at
        if bad is not None:
            return
        with Uninterrupted():  # as for a call
            with self._lock:
                self._refuse_if_closed()
                if counted is not None:
                    counted.append(True)
                given = self._given_to(key) if self.engine.given_back else None
                if given is None:
                    ask = self._given_up_ask(key)
                    arrival, result = self._match(ask)
            if given is not None:
                given.cancel()
            else:
                self._after_match(ask, arrival, result)

    def _given_up_ask(self, key: Key | None) -> Ask:
        """With the lock held: an ask that only consumes its arrival."""
        ask = self._make_ask(key, 1.0, time.monotonic(), "discard")
        ask.taken = True
        return ask

    def _depends_on_end(self, arrival: Arrival | None) -> bool:
        """With the lock held: whether this cast can come to nothing if the group has ended."""
        if self._end.failure is None:
            return False
        if arrival is None:
            return True
        return self._end.failure.kind == "lost" or arrival.message.agree

    def _match(self, ask: Ask) -> tuple[Arrival | None, Result | None]:
        """With the lock held: find what has arrived for an ask, and its result if there is one already.

        The result is taken here, once: whoever looks without the lock may see it handed over, or not yet there.
        `_after_match` follows without the lock.
        """
        ended = self._end.failure is not None  # then what has not come will not: nothing to remember
        arrival = self._mailbox.take(ask.key) if ended else self._mailbox.ask(ask.key, ask)
        if arrival is None:
            return None, None
        self._join(ask, arrival)
        result = arrival.final
        if result is not None:
            arrival.final = SPENT
        return arrival, result

    def _join(self, ask: Ask, arrival: Arrival, *, in_turn: bool = False) -> None:
        """With the lock held: an ask and its arrival have met; `in_turn`: on the thread that tells of reads itself."""
        arrival.ask = ask
        if ask.traced is not None:
            ask.traced.cast = arrival.message
        if arrival.objection is None and arrival.message.agree:
            arrival.objection = ask.late
        if ask.origin is not None and arrival.message.origin is not None:
            self._compare(ask.origin, arrival.message.origin, arrival)
        if not ask.taken:
            waited_s = arrival.arrived_s - ask.since_s
            self._counters.noted.append(("wait", waited_s) if waited_s >= 0 else ("unread", -waited_s))
            if (tracer := self.engine.tracer) is not None:
                if waited_s >= 0:
                    tracer.took("wait", ask.since_s, arrival.arrived_s, arrival.message)
                else:
                    tracer.took("unread", arrival.arrived_s, ask.since_s, arrival.message)
            ask.arrival = arrival
            if arrival.message.fingerprint is not None:
                arrival.own, ask.payload = Own(ask.payload, mark=ask.mark), MISSING
        reports_later = arrival.message.agree and arrival.local is None and arrival.final is None
        if not reports_later and not arrival.told_read and arrival.message.failure is None:
            arrival.told_read = True
            sooner = self._reads.add(arrival.message.seq, arrival.message.nbytes, time.monotonic())
            if sooner and not in_turn:
                self._clock.wake()

    def _compare(self, here: Origin, root: Origin, arrival: Arrival) -> None:
        """With the lock held, in debug mode: find out whether a call and a cast were meant for each other."""
        evidence = self._pairings.meet(root, here) if here.nth and root.nth else None
        if evidence is None:
            return
        rank, host = self._group.rank, self._group.hosts[self._group.rank]
        text = (
            f"rank {rank} ({host}) is out of step with the root: its call number {here.nth} without a key, at "
            f"{here.site}, met the root's call number {root.nth} without a key, at {root.site}; {evidence}"
        )
        arrival.objection = failure = Failure("diverged", rank, host, text)
        if arrival.local is not None or arrival.final is not None:  # this rank has said that it is well
            self._overdue = failure
        if arrival.local is not None and arrival.local.failure is None:
            arrival.local = Result(failure=failure)
        if arrival.final is not None and arrival.final.failure is None:
            arrival.final = Result(failure=failure)

    def _after_match(self, ask: Ask, arrival: Arrival | None, result: Result | None) -> None:
        if arrival is None:
            return
        if result is not None:
            self._settle(ask, result)
        else:
            self._advance(arrival)

    def _forget_inquiry(self, ask: Ask) -> None:
        self._queries.forget(ask)

    def _cancel(self, ask: Ask) -> bool:
        with self._lock:
            if not self._take(ask):
                return ask.future.cancelled()
            self._counters.cancelled += 1
        ask.future.settle_cancelled()
        return True

    # Messages

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        if isinstance(message, Cast):
            self._on_cast(message, body)
        elif isinstance(message, Verdict):
            self._on_any_verdict(message)
        elif isinstance(message, Drop):
            self._on_drop(message)
        elif isinstance(message, (Value, Pass)):
            self._on_host_message(message, body)
        elif isinstance(message, Code):
            self._on_code(message, body)
        elif isinstance(message, RollCall):
            self._relay.up(Present(self._group.rank, failures.clip(self._performer.holders(), MAX_REASON)))
        elif isinstance(message, (Status, Relayed)):
            with self._lock:
                self._queries.answered(message)
        elif isinstance(message, Gone):
            self._on_gone(message)

    def _on_any_verdict(self, message: Verdict) -> None:
        failure = message.failure
        if failure is not None and failure.kind == "withdrawn":  # it comes after its cast
            with self._lock:
                arrival = self._agreeing.pop(message.seq, None) or self._unfinished(message.seq)
                self._counters.aborted += failure.rank == self._group.root  # else every rank has given it up
            if arrival is not None:
                self._conclude(arrival, Result(failure=failure))
                self._give_up(arrival)
            return
        with self._lock:
            comes = self._end.failure is None or self._end.failure.kind != "lost"  # after a loss no cast is taken
            if message.seq not in self._agreeing and failure is not None and comes:
                # The news that a rank has gone can overtake a cast on its way out.
                self._early_verdicts[message.seq] = message
        self._on_verdict(message)

    def _on_drop(self, message: Drop) -> None:
        """The root lets go of a cast. A part that has begun is done to its end, if only for others of this host."""
        with self._lock:
            arrival = next((one for one in self._mailbox.arrivals() if one.message.seq == message.seq), None)
            if arrival is None or arrival.dropped:
                return  # it was asked for meanwhile: this rank keeps it
            arrival.dropped = True
            if arrival.final is None or arrival.final.failure is None:
                self._counters.aborted += 1
            idle = not arrival.begun and arrival.owner is None and not arrival.message.agree
            if arrival.final is not None or idle:
                arrival.begun, arrival.final = True, self._as_dropped()
                arrival.drop()

    def _unfinished(self, seq: int) -> Arrival | None:
        """With the lock held: a cast without agreement that is not done. It looks at all of them."""
        asked = [ask.arrival for ask in self._waits.live if ask.arrival is not None]
        found = (arrival for arrival in (*asked, *self._mailbox.arrivals()) if arrival.message.seq == seq)
        return self._owned.get(seq) or next(found, None)

    def _on_cast(self, message: Cast, body: memoryview) -> None:
        if message.again or message.drop:
            message, body = self._as_remembered(message, body)
        result = Result(failure=message.failure) if message.failure is not None else None
        arrival = Arrival(message, body, final=result, arrived_s=time.monotonic())  # final before anybody can see it
        with self._lock:
            if self._end.failure is not None and self._end.failure.kind == "lost":
                return  # the call that it is for has failed, or will: it must not meet the next one with its key
            if message.failure is None:
                self._counters.cast(message.placement)
                self._placed = message.placement
                if self._has_root_clock:
                    self._counters.noted.append(("transfer", arrival.arrived_s - message.sent_s))
                    if (tracer := self.engine.tracer) is not None:
                        tracer.took("transfer", message.sent_s, arrival.arrived_s, message)
            else:
                self._counters.cast(None)
                self._counters.aborted += message.failure.kind == "withdrawn"
            if self._figures_due_s is None:
                self._figures_due_s = arrival.arrived_s + FIGURES_EVERY_S
                self._clock.wake()
            early = self._early_verdicts.pop(message.seq, None) if self._early_verdicts else None
            if message.placement in OWNED:
                self._admit(arrival)
            if self._overdue is not None and message.agree:
                arrival.objection, self._overdue = self._overdue, None
            if message.agree and early is None:
                self._agreeing[message.seq] = arrival
            ask = self._mailbox.arrive(message.key, arrival)
            if ask is not None:
                self._join(ask, arrival, in_turn=self._tells_in_turn)
                if result is not None:
                    arrival.final = SPENT
            elif self._gates:
                self._notify()
        if early is None and result is None:
            self._advance(arrival)
        else:
            self._begin_part(arrival, early, ask, result)
        if (tracer := self.engine.tracer) is not None:
            tracer.took("arrive", arrival.arrived_s, time.monotonic(), message)

    def _begin_part(self, arrival: Arrival, early: Verdict | None, ask: Ask | None, result: Result | None) -> None:
        """A cast is on the books: do what can be done of it."""
        if early is not None and early.failure is not None:
            self._conclude(arrival, Result(failure=early.failure))
            self._give_up(arrival)
        elif result is not None:
            if ask is not None:
                self._settle(ask, result)
        else:
            self._advance(arrival)

    def _on_code(self, message: Code, body: memoryview) -> None:
        failure = message.failure
        if failure is None and body.nbytes != message.nbytes:
            short = self._parts.short(message.nbytes)
            failure = self._performer.failure("decode", "the code of a materializer could not be taken", short)
        if failure is None:
            self._parts.loader.learn(message.ident, bytes(body))
        with self._lock:
            parked = self._parked.pop(message.ident, [])
        for arrival in parked:
            if failure is None:
                self._advance(arrival)
            else:
                self._code_missing(arrival, failure)

    def _handle_gone(self, message: Gone) -> None:
        if message.failure.kind == "lost" or message.rank in self._topology.upstream:
            self._end_with(message.failure)
            with self._lock:
                self._mailbox.clear_asks()
                if message.failure.kind == "lost":
                    self._early_verdicts.clear()

    def _code_for(self, ident: str) -> bytes:
        return self._parts.loader.code(ident)

    # Time

    def on_turn(self) -> float | None:
        return self._tell_reads(time.monotonic()) if self._reads.due_s is not None else None

    def _do_queued(self) -> float | None:
        now_s = time.monotonic()
        due = [due_s for due_s in (self._tell_reads(now_s), self._tell_figures(now_s)) if due_s is not None]
        return min(due, default=None)

    def _tell_figures(self, now_s: float) -> float | None:
        with self._lock:
            if self._figures_due_s is None or self._figures_due_s > now_s:
                return self._figures_due_s
            self._figures_due_s = None
        self._relay.up(figures.of(self.stats()))
        return None

    def _tell_reads(self, now_s: float) -> float | None:
        with self._lock:
            reads, next_s = self._reads.take(now_s), self._reads.due_s
        for seqs in messages(reads):
            if self.engine.tracer is not None:
                self._trace_said("read", seqs[0])
            self._relay.up(Read(self._group.rank, seqs))
        return next_s

    def _is_decided(self, ask: Ask) -> bool:
        return ask.arrival is not None and ask.arrival.declined

    def _inquire(self, ask: Ask) -> None:
        arrival = ask.arrival
        if arrival is not None and arrival.local is None and arrival.begun:
            return  # we wait for ourselves
        with self._lock:
            if ask.taken:
                return
            query = self._queries.open(ask, time.monotonic())
        self._relay.up(query)

    def _phase_before_arrival(self, ask: Ask) -> Phase:
        return self._queries.before_arrival(ask)

    def _phase_of_agreement(self, ask: Ask, arrival: Arrival) -> Phase:
        return self._queries.agreement(ask)

    def _notes(self, ask: Ask) -> tuple[str, ...]:
        notes = self._queries.notes(ask)
        unasked = [one for one in self._mailbox.arrivals() if not one.dropped] if ask.arrival is None else []
        if not unasked:
            return notes
        names = [f"#{a.message.seq}{named(a.message.key)}" for a in unasked[:_SHOWN_UNASKED]]
        more = ", ..." if len(unasked) > len(names) else ""
        casts = "1 cast" if len(unasked) == 1 else f"{len(unasked)} casts"
        return (*notes, f"{casts} here that nobody has asked for: {', '.join(names)}{more}")

    def _forget(self) -> None:
        super()._forget()
        self._mailbox = Mailbox()
        self.engine.given_back.clear()

    def _placement(self) -> tuple[str, str]:
        if self._options.placement != "auto":
            return super()._placement()
        return self._placed or "auto", "chosen by the root" if self._placed else "nothing has been cast"

    def _unasked(self) -> int:
        return sum(not arrival.dropped for arrival in self._mailbox.arrivals())

    def _dump_mailbox(self) -> list[str]:
        arrived = [
            f"#{a.message.seq}{named(a.message.key)}: {a.message.nbytes} bytes, nobody has asked for it"
            for a in self._mailbox.arrivals()
        ]
        return arrived + [f"a call{named(ask.key)}: its cast has not come" for ask in self._mailbox.asks()]

    def disconnect(self, timeout_s: float) -> None:
        if self._options.debug:
            self._tell_unasked()
        if self._counters.casts:
            self._relay.up(figures.of(self.stats()))  # the last word on this rank's casts
        super().disconnect(timeout_s)

    def _tell_unasked(self) -> None:
        """In debug mode: calls of the root that nobody here has made are a sign that the ranks are out of step."""
        with self._lock:
            left = [arrival.message for arrival in self._mailbox.arrivals()]
        if left:
            said = ", ".join(made(m.seq, m.key, m.origin) for m in left[:SHOWN_CALLS])
            text = "lazycast %r: rank %d closes with %d casts that it has not asked for: %s"
            logger.warning(text, self._options.name, self._group.rank, len(left), said)

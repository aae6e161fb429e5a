"""What every rank does with a cast: perform its part, report, obey the verdict, and learn of those who are gone.

Guarantees:

* Receivers always listen: messages are handled on the link's threads as they come, whether or not anybody asks.
* User code runs on workers; only small payloads without a materializer are unpickled where they arrive.
* A rank that has been told of a cast always reports on it, unless it closes or dies.
* An owner sends its host exactly one `Value` for each cast, whatever becomes of it, unless it closes or dies.
* After `close` has returned nothing of the lane is left but the values it handed out.
"""

from __future__ import annotations

import functools
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lazycast.codec.pickling import Layout
from lazycast.core.arrival import Arrival
from lazycast.core.ask import Ask
from lazycast.core.awaited import Awaited
from lazycast.core.connected import Connected
from lazycast.core.engine import Engine
from lazycast.core.helpers.maker import HelpedValue, Maker
from lazycast.core.items.gathering import PARTS_PER_HELPER, Gathering
from lazycast.core.items.sharing import Sharing
from lazycast.core.memo.store import Kept, Store
from lazycast.core.parts import MAX_REASON, Parts, Stages
from lazycast.core.performer import Group, Result
from lazycast.core.succession import heir, sharers
from lazycast.core.workers import unforked
from lazycast.materialize.materializers import CodeMissing
from lazycast.net.backend import Context
from lazycast.net.host.hosts import leader
from lazycast.net.host.mesh import Mesh
from lazycast.net.topology import Topology
from lazycast.net.wire import Cast, Failure, Gone, Need, Pass, Report, Value, Verdict
from lazycast.options import HELPERS, OWNED, Options
from lazycast.tracebacks import describe

#: A pickle stream up to this size, of builtin types and arrays and without a materializer, is decoded where it arrives:
#: a worker would cost more. Anything else may run user code, or import a library, while other messages wait.
INLINE_NBYTES = 64 << 10

SPENT = Result()  # stands for a value that has been handed over: the future alone keeps it alive


@dataclass
class _End:
    """Why nothing more can come, once that is so."""

    failure: Failure | None = None
    gone: dict[int, Gone] = field(default_factory=dict)  # by rank


class Lane(Connected):
    """The engine of one object on one rank of a group of at least two."""

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
        self._parts = Parts(
            group.rank,
            self._performer,
            self._relay,
            self._policy,
            readonly=options.values == "readonly",
            took=self._took,
        )
        self._sharing = Sharing(
            group,
            topology.host,
            self._lock,
            self._performer,
            self._parts,
            by_helper=self._part_by_helper,
            began=self._began,
            ended=self._local_done,
            lacks=self._park,
            unshared=self._count_unshared,
        )
        self._agreeing: dict[int, Arrival] = {}  # by seq: casts whose verdict has not come
        self._parked: dict[str, list[Arrival]] = {}  # by materializer: casts that wait for its code
        self._awaited = Awaited(group.rank)
        #: By seq: casts without agreement that this rank makes for others too, whether or not it wants them itself.
        self._owned: weakref.WeakValueDictionary[int, Arrival] = weakref.WeakValueDictionary()
        self._end = _End()
        if options.memo is not None:
            self._store = Store(options.memo.nbytes, copy_all=options.values == "copy")
        if options.helpers is not None and group.rank == self._helping_rank and self.engine.maker is None:
            self.engine.maker = Maker(group, options)
            self._performer.use(self.engine.maker.pool, f"lazycast-{options.name}-work")

    def follow(self, within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """Have materializers called by way of `within`: see `Spans.within`."""
        for lane in self.lanes:
            if isinstance(lane, Lane):
                lane._parts.within = within

    @property
    def _helping_rank(self) -> int:
        """The rank of this host that has its helpers: its leader, or its lowest one where every rank is a root."""
        host = self._topology.host
        return host[0] if self._options.roots == "any" else leader(host, self._group.root)

    # This rank's part of a cast

    def _admit(self, arrival: Arrival) -> None:
        """With the lock held: find out who materializes a new cast for this host, and what has come of it already."""
        message = arrival.message
        if message.placement not in OWNED or message.ref is None or message.failure is not None:
            return
        if message.each and (makers := self._makers(message)):
            rank = self._group.rank
            arrival.items = Gathering(makers, rank)
            arrival.owner = rank if rank in makers else makers[0]
            if arrival.owner == rank and not message.agree:
                self._owned[message.seq] = arrival
            if arrival.items.awaits:
                self._awaited.admit(arrival)
            return
        arrival.owner = self._heir(message, ())
        if arrival.owner in (None, self._group.rank):
            if arrival.owner is not None and not message.agree:
                self._owned[message.seq] = arrival
            return  # alone on its host, or the owner: nobody sends it a value
        self._awaited.admit(arrival)

    def _makers(self, message: Cast) -> list[int]:
        """Return who makes each part of a cast; none where one rank makes all of it."""
        if message.placement == HELPERS:
            helpers = self._options.helpers
            return [self._helping_rank] * (helpers.count * PARTS_PER_HELPER if helpers is not None else 0)
        ranks = sharers(self._topology.host, self._options.owners, message.turn)
        return ranks if len(ranks) > 1 else []

    def _heir(self, message: Cast, passed: tuple[int, ...] | list[int]) -> int | None:
        host, owners = self._topology.host, self._options.owners
        if message.placement == HELPERS:
            owners = {self._helping_rank}
        return heir(host, owners, message.turn, passed) if len(host) > 1 else None

    def _is_helped(self, arrival: Arrival) -> bool:
        """Whether the helpers of this rank make the value of a cast."""
        message = arrival.message
        if (
            self.engine.maker is None
            or message.placement != HELPERS
            or message.ref is None
            or arrival.shared is not None
        ):
            return False
        return arrival.owner in (None, self._group.rank)

    @abstractmethod
    def _code_for(self, ident: str) -> bytes:
        """Return the code of a materializer that a helper lacks. Raises CodeMissing if the root must be asked."""

    def _part_by_helper(self, arrival: Arrival, body: memoryview, layout: Layout, part: tuple[int, int]) -> HelpedValue:
        maker, message = self.engine.maker, arrival.message
        assert maker is not None
        assert message.ref is not None
        unwanted = functools.partial(arrival.unwanted, self._group.rank)
        return maker.make(message.seq, message.ref, body, layout, self._relay, self._code_for, unwanted, part)

    def _made_by_helper(
        self, maker: Maker, arrival: Arrival, unwanted: Callable[[], bool], body: memoryview, layout: Layout
    ) -> HelpedValue:
        message = arrival.message
        assert message.ref is not None
        return maker.make(message.seq, message.ref, body, layout, self._relay, self._code_for, unwanted)

    def _on_host_message(self, message: Value | Pass, body: memoryview) -> None:
        began_s = time.monotonic()
        with self._lock:
            # The root books a cast before it sends it: nothing that is said of it can be early there.
            keep = self._end.failure is None and self._group.rank != self._group.root
            arrival, again = self._awaited.hear(message, body, keep=keep)
        if (tracer := self.engine.tracer) is not None and isinstance(message, Value):
            cast = arrival.message if arrival is not None else None
            tracer.took("arrive value", began_s, time.monotonic(), cast, seq=message.seq, owner=message.rank)
        if arrival is None:
            return
        if again:
            self._pass_on(arrival)
        self._advance(arrival)

    def _advance(self, arrival: Arrival) -> None:
        """Start this rank's part of a cast, once, as soon as there is what it needs."""
        if arrival.items is not None:
            self._sharing.advance(arrival, arrival.items)
            return
        with self._lock:
            if not arrival.ready(self._group.rank):
                return
            arrival.begun = True
            takes = arrival.shared is not None and arrival.shared[0].unshared is None
            helped = self.engine.maker is not None and self._is_helped(arrival)
        if (spans := self.engine.spans) is not None:
            spans.began(arrival.message)
        quick = self._is_quick(arrival)
        if quick and arrival.plain:
            self._local_done(arrival, self._plain_part(arrival))
        elif quick:  # no user code runs: neither marks nor workers are needed
            self._part_done(arrival, self._part(arrival))
        else:
            self._performer.run(
                functools.partial(self._part, arrival),  # no closures: a frame's `clear` leaves them what they hold
                functools.partial(self._part_done, arrival),
                light=takes,
                helped=helped,
                seq=arrival.message.seq,
                priority=arrival.message.priority,
                unwanted=functools.partial(arrival.unwanted, self._group.rank),
            )

    def _began(self, arrival: Arrival) -> None:
        if (spans := self.engine.spans) is not None:
            spans.began(arrival.message)

    def _is_quick(self, arrival: Arrival) -> bool:
        """Whether a part is done where it became possible: arrays of any size are only looked at, not copied."""
        message, shared, ask = arrival.message, arrival.shared, arrival.ask
        if ask is not None and ask.taken and arrival.owner is None:
            return True
        if message.keep:  # it is encoded, and copied
            return False
        if message.finish is not None or (shared is None and message.ref is not None):
            return False
        if message.fingerprint is not None:
            return False
        body: memoryview | None
        if shared is not None:
            head, body = shared
            layout = Layout(head.stream_nbytes, head.frames)
            if head.unshared is not None:
                return False
        else:
            body, layout = arrival.body, Layout(message.stream_nbytes, message.frames)
        return layout.stream_nbytes <= INLINE_NBYTES and (not body or self._policy.codec.is_plain(body, layout))

    def _plain_part(self, arrival: Arrival) -> Result:
        """The part of a cast whose value is what was sent: of most casts that are small, so the shortest way."""
        message = arrival.message
        with self._lock:
            body, arrival.body = arrival.body, None
            ask = arrival.ask
        # The verdict was a failure and came first, or nobody will look.
        if body is None or (ask is not None and ask.taken):
            return Result()
        return self._parts.decode(message, body, message.nbytes, Layout(message.stream_nbytes, message.frames))

    def _part(self, arrival: Arrival) -> Result:
        message = arrival.message
        owner = arrival.owner == self._group.rank
        if arrival.over:
            if owner:
                self._decline(arrival)
            return Result()
        if not arrival.wanted:  # nobody here will look at it: nothing to object
            if not owner:
                return Result()
            if message.fingerprint is not None:  # and there is no payload to work on either
                self._pass_on(arrival)
                return Result()
        maker = self.engine.maker
        try:
            if maker is not None and self._is_helped(arrival):
                unwanted = functools.partial(arrival.unwanted, self._group.rank)
                made_by = functools.partial(self._made_by_helper, maker, arrival, unwanted)
                stages = Stages(None, self._parts.finish(arrival), made_by)
            else:
                stages = self._parts.stages(arrival)
        except CodeMissing as exc:
            return Result(cause=exc)
        except BaseException as exc:
            name = next(ref.name for ref in (message.ref, message.finish) if ref is not None)
            result = self._parts.failed("decode", f"materializer {name!r} could not be loaded", exc)
            if owner:
                self._parts.tell(self._value(arrival, result.failure))
            return result
        with self._lock:
            material = arrival.take()
        try:
            result, cost = self._parts.run(message, material, stages, self._value(arrival) if owner else None)
        except CodeMissing as exc:  # of a helper
            with self._lock:
                arrival.put_back(material)
            return Result(cause=exc)
        if stages != (None, None, None):
            arrival.cost = cost
        if cost.unshared is not None:
            self._count_unshared(cost.unshared)
        return result

    def _count_unshared(self, reason: str) -> None:
        with self._lock:
            self._counters.unshared += 1
            self._counters.unshared_reason = reason

    def _value(self, arrival: Arrival, failure: Failure | None = None) -> Value:
        """What this rank, as the owner, has to say about a cast."""
        return Value(self._group.rank, arrival.message.seq, len(arrival.passed), failure=failure)

    def _decline(self, arrival: Arrival) -> None:
        """This rank, the owner, makes nothing of a cast that has failed: those who count on it are told so."""
        rank = self._group.rank
        text = "the cast had failed before its owner began"
        self._parts.tell(self._value(arrival, Failure("refused", rank, self._group.hosts[rank], text)))

    def _pass_on(self, arrival: Arrival) -> None:
        """This rank was to materialize what it has no payload for: the next one of its host does."""
        seq, rank = arrival.message.seq, self._group.rank
        to = self._heir(arrival.message, [*arrival.passed, rank])
        if to is None:  # nobody wants it; those who wait for news of it need not
            self._parts.tell(self._value(arrival, Failure("withdrawn", rank, "", "no rank of this host wants it")))
            return
        with self._lock:
            self._awaited.pass_on(arrival, to)
            passed = arrival.passed
        self._relay.share(Pass(rank, seq, to, passed))

    def _part_done(self, arrival: Arrival, result: Result) -> None:
        if isinstance(result.cause, CodeMissing):
            self._park(arrival, result.cause.ident)
        else:
            self._local_done(arrival, result)

    def _park(self, arrival: Arrival, ident: str) -> None:
        """The code of this cast's materializer is not here: ask for it, and go on when it comes."""
        with self._lock:
            end = self._end.failure
            waiting = self._parked.setdefault(ident, [])
            if end is None:
                waiting.append(arrival)
            first = len(waiting) == 1
            arrival.begun = False
            failed = arrival.final is not None  # meanwhile
        if end is not None:
            self._conclude(arrival, Result(failure=end))
        elif first:
            self._relay.up(Need(self._group.rank, ident))
        if failed:
            self._give_up(arrival)

    def _code_missing(self, arrival: Arrival, failure: Failure) -> None:
        """The root cannot send the code that this cast waits for."""
        if arrival.items is not None:
            if self._sharing.spoil(arrival, arrival.items, failure):
                self._local_done(arrival, Result(failure=failure))
            return
        with self._lock:
            if arrival.begun:
                return
            arrival.begun = True
        if arrival.owner == self._group.rank:
            self._parts.tell(self._value(arrival, failure))
        self._local_done(arrival, Result(failure=failure))

    def _local_done(self, arrival: Arrival, result: Result) -> None:
        """This rank's part is done: report it, or settle if nobody waits for reports."""
        message = arrival.message
        if (spans := self.engine.spans) is not None:
            spans.ended(message, result)
        if not message.agree:
            self._conclude(arrival, result)
            if self._options.placement == "auto" and (message.ref is not None or message.finish is not None):
                self._relay.up(Report(self._group.rank, message.seq, False, result.failure, arrival.cost))
            return
        kept = self._put_down(arrival, result) if message.keep else None
        with self._lock:
            arrival.body = arrival.own = arrival.shared = None
            if arrival.items is not None:
                arrival.items.let_go()
            arrival.kept = kept
            if arrival.objection is not None:
                result = arrival.judged(result)
            if arrival.final is None:
                arrival.local = result
            verdict = arrival.verdict
            arrival.reported_s = time.monotonic()
            read = arrival.ask is not None
            arrival.told_read |= read
        if self.engine.tracer is not None:
            self._trace_said("report", message.seq)
        kept_nbytes = kept.taken_nbytes if kept is not None else 0
        self._relay.up(Report(self._group.rank, message.seq, read, result.failure, arrival.cost, kept_nbytes))
        if verdict is not None:
            self._conclude(arrival, Result(failure=verdict, cause=result.cause if result.failure is not None else None))

    def _put_down(self, arrival: Arrival, result: Result) -> Kept | None:
        """Write down a value that is to be remembered, before anybody can change it."""
        if self._store is None or result.failure is not None or not arrival.wanted or arrival.over:
            return None
        try:
            with unforked():
                encoded = self._policy.codec.encode(result.value)
            return self._store.put(encoded)
        except Exception as exc:  # whatever a value's own code raises; it is made again the next time
            self._store.unkept = describe(exc)[:MAX_REASON]
            return None

    def _settle_kept(self, arrival: Arrival, verdict: Verdict) -> None:
        """With the lock held: keep what was written down of a cast, if every rank has it, or let go of it."""
        kept, arrival.kept = arrival.kept, None
        if kept is not None and verdict.failure is None and self._store is not None:
            self._store.keep(arrival.message.keep, kept)

    def _as_remembered(self, message: Cast, body: memoryview) -> tuple[Cast, memoryview]:
        """Do what the root says of what this rank remembers; return a cast as if it had come with what it has again."""
        store = self._store
        if store is None:
            return message, body
        found = None
        try:
            if message.again:
                kept = store.get(message.again)
                found = kept.body(), kept
        except (KeyError, MemoryError) as exc:
            store.unkept = describe(exc)[:MAX_REASON]
        for number in message.drop:
            store.drop(number)
        if not message.again:
            return message, body
        if found is None:  # it counts as a body that could not be taken
            return msgspec.structs.replace(message, nbytes=1), memoryview(b"")
        body, kept = found
        layout = kept.layout
        return (
            msgspec.structs.replace(
                message, nbytes=kept.nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames
            ),
            body,
        )

    def _tell_late(self, ask: Ask, arrival: Arrival | None) -> None:
        # Without an arrival there is nothing to report on yet: whoever brings it finds `ask.late`.
        if arrival is not None and arrival.message.agree and ask.late is not None:
            self._relay.up(Report(self._group.rank, arrival.message.seq, False, ask.late))

    def _trace_said(self, kind: str, seq: int) -> None:
        """Note when a message goes to the root, if its clock is another one: see `RootLane._trace_heard`."""
        tracer, (rank, _, root) = self.engine.tracer, self._group[:3]
        if tracer is not None and self._group.clock_of(rank) != self._group.clock_of(root):
            tracer.happened("said", None, rank=rank, kind=kind, seq=seq)

    def _on_verdict(self, verdict: Verdict) -> None:
        with self._lock:
            arrival = self._agreeing.pop(verdict.seq, None)
            if arrival is None:
                return
            local = arrival.local
            if arrival.kept is not None:
                self._settle_kept(arrival, verdict)
            if local is not None:
                now_s = time.monotonic()
                self._counters.noted.append(("agree", now_s - arrival.reported_s))
                if (tracer := self.engine.tracer) is not None:
                    tracer.took("agree", arrival.reported_s, now_s, arrival.message)
            elif verdict.failure is not None and verdict.failure.rank == self._group.rank and arrival.begun:
                arrival.verdict = verdict.failure  # it is about to be found here, with its cause: a peer was quicker
                return
        if verdict.failure is None:
            assert local is not None, "the root has all reports, so also ours"
            self._conclude(arrival, local)
        else:
            mine = local is not None and local.failure is not None and verdict.failure.rank == self._group.rank
            self._conclude(arrival, Result(failure=verdict.failure, cause=local.cause if local and mine else None))
            self._give_up(arrival)

    def _give_up(self, arrival: Arrival) -> None:
        """A cast has failed. If this rank's part has not begun, it never will; those who count on it are told so."""
        items = arrival.items
        if items is not None:
            if not self._sharing.give_up(arrival, items):
                return
            if (spans := self.engine.spans) is not None:
                spans.ended(arrival.message, Result())
        with self._lock:
            if arrival.begun and items is None:
                return
            arrival.begun = True
            read = arrival.ask is not None
            arrival.told_read |= read
        if arrival.owner == self._group.rank and items is None:
            self._decline(arrival)
        self._relay.up(Report(self._group.rank, arrival.message.seq, read))

    def _conclude(self, arrival: Arrival, result: Result) -> None:
        with self._lock:
            if arrival.final is not None:
                return
            arrival.local = None
            arrival.body = arrival.own = arrival.shared = None
            if arrival.items is not None:
                arrival.items.let_go()
            ask = arrival.ask
            if arrival.objection is not None:
                result = arrival.judged(result)
            if arrival.dropped:
                result = self._as_dropped()
            # Once it is handed over, the future alone keeps a value alive.
            arrival.final = result if ask is None else SPENT
        if ask is not None:
            self._settle(ask, result)

    def _as_dropped(self) -> Result:
        """What a call gets for a cast that the root had let go of."""
        root = self._group.root
        return Result(failure=Failure("withdrawn", root, self._group.hosts[root], "the root dropped this cast"))

    # Messages

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        failure = self._end_of(peer, reason)
        # All ranks of a host hear of its ends by themselves. Only those whose messages come by way of this rank are
        # passed on from here: by another way the news could overtake a report that the rank has sent.
        topology = self._topology
        if peer in topology.host:
            self._owner_gone(peer, failure)
        self._on_gone(Gone(peer, failure), flood=peer == topology.parent or peer in topology.children)

    def _owner_gone(self, owner: int, failure: Failure) -> None:
        """A rank of this host sends no more; what it has sent has come. What it was to materialize fails."""
        with self._lock:
            waiting = self._awaited.gone(owner, failure)
            for arrival in waiting:
                arrival.begun |= arrival.items is None
        for arrival in waiting:
            if arrival.items is not None:
                self._advance(arrival)
            else:
                self._local_done(arrival, Result(failure=failure))

    def _on_gone(self, message: Gone, *, flood: bool = True) -> None:
        with self._lock:
            known, lost = self._end.gone.get(message.rank), message.failure.kind == "lost"
            # Who is told that it counts as lost, and closes, may be heard first by some.
            if known is not None and (known.failure.kind == "lost" or not lost):
                return
            self._end.gone[message.rank] = message
            first = lost and message.rank not in self.engine.lost  # that all lanes of this rank hear of
            if first:
                self.engine.lost[message.rank] = message
                self._counters.lost += 1
            if lost and (self._end.failure is None or self._end.failure.kind == "closed"):
                # Before anybody else hears of it: whoever does may close, and that is not why casts fail.
                self._end.failure = message.failure
        if (tracer := self.engine.tracer) is not None:
            tracer.happened(message.failure.kind, None, rank=message.rank, text=message.failure.message)
        if flood:
            self._relay.flood(message)
        if first:
            self.notices.lost(message.rank, message.failure.message)
        self._handle_gone(message)

    @abstractmethod
    def _handle_gone(self, message: Gone) -> None:
        """React to the news that a rank closed or was lost."""

    def _end_with(self, failure: Failure) -> None:
        """Nothing more can come: fail what depends on it, and, after a loss, all that is not done."""
        with self._lock:
            if self._end.failure is None or (failure.kind == "lost" and self._end.failure.kind == "closed"):
                self._end.failure = failure
            failure = self._end.failure  # a loss outranks what ends because of it
            asks = self._waits.waiting()
            parked = [arrival for waiting in self._parked.values() for arrival in waiting]
            if failure.kind == "closed":  # what has arrived and needs nobody's word still gets done
                asks = [ask for ask in asks if ask.arrival is None or ask.arrival.message.agree]
            for arrival in self._agreeing.values():
                arrival.lapsed = True
            self._agreeing.clear()
            self._parked.clear()
            if failure.kind == "lost":
                self._awaited.clear()
            self._notify()
        for arrival in parked:  # the code they wait for will not come
            self._conclude(arrival, Result(failure=failure))
        for ask in asks:
            self._settle(ask, Result(failure=failure))

    # The end

    def _engine_failed(self, exc: BaseException) -> None:
        self._on_gone(Gone(self._group.rank, self._performer.failure("lost", "the engine failed", exc)))

    def disconnect(self, timeout_s: float) -> None:
        rank = self._group.rank
        host = self._group.hosts[rank]
        # Others may hear of our end before they notice the loss that brought it about: tell them that first.
        with self._lock:
            losses = [self._end.gone.get(gone.rank, gone) for gone in self.engine.lost.values()]
        for loss in losses:
            self._relay.flood(loss)
        self._relay.flood(Gone(rank, Failure("closed", rank, host, f"rank {rank} ({host}) has closed its object")))
        self._relay.close(timeout_s=timeout_s)
        self._context.close()

    def hear_losses(self) -> None:
        with self._lock:
            news = [gone for gone in self.engine.lost.values() if gone.rank not in self._end.gone]
        for gone in news:  # where it has come from another root's tree, this rank is who says so in this one
            loss = gone.failure.loss
            said = loss and msgspec.structs.replace(loss, by=self._group.rank)
            failure = msgspec.structs.replace(gone.failure, loss=said)
            self._on_gone(msgspec.structs.replace(gone, failure=failure), flood=False)

    def forget(self) -> None:
        super().forget()
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        """With the lock held: let go of all casts, and so of the slots that they lie in."""
        for table in (self._agreeing, self._parked, self._awaited):
            table.clear()

    # Looking

    def _dump_ended(self) -> str | None:
        return self._end.failure.message if self._end.failure is not None else None

    def _materializers(self) -> tuple[int, int]:
        return self._parts.loader.hits, self._parts.loader.loads

    def _dump_casts(self) -> list[str]:
        """What is under way here, beside what somebody has asked for."""
        agreeing = [f"#{seq}: agreeing" for seq in sorted(self._agreeing)]
        parked = [
            f"#{arrival.message.seq}: waits for the code of {ident}"
            for ident, waiting in list(self._parked.items())
            for arrival in list(waiting)
        ]
        return [*agreeing, *parked, *self._awaited.lines()]

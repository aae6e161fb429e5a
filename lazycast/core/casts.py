"""What every rank does with a cast: report on its part, obey the verdict, and learn of those who are gone.

Guarantees:

* Receivers always listen: messages are handled on the link's threads as they come, whether or not anybody asks.
* A rank that has been told of a cast always reports on it, unless it closes or dies.
* After `close` has returned nothing is left but the values that were handed out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from lazycast.codec.trust import Policy
from lazycast.core.arrival import Arrival
from lazycast.core.asks import Asks
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.making import End, Making
from lazycast.core.memo.keeping import Keeping
from lazycast.core.memo.store import NOTHING, Kept, Remembered, Store
from lazycast.core.neighbours import Neighbours
from lazycast.core.performer import Group, Result
from lazycast.core.situation import Phase
from lazycast.net.wire import Cast, Failure, FailureKind, Gone, Report, Verdict
from lazycast.options import Options

SPENT = Result()  # stands for a value that has been handed over: the future alone keeps it alive


class Casts:
    """See the module's text. Thread-safe.

    Args:
        code_for: see `Making`.
        report: takes what this rank says of its part.
        react: to the news that a rank closed or was lost. Without the lock.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        policy: Policy,
        asks: Asks,
        near: Neighbours,
        *,
        code_for: Callable[[str], bytes] | None,
        report: Callable[[Report], None],
        react: Callable[[Gone], None],
    ) -> None:
        self._engine, self._group, self._options, self._asks, self._near = engine, group, options, asks, near
        self._lock, self._counters, self._relay, self._react = engine.lock, engine.counters, near.relay, react
        self._report = report
        self.end = End()
        self.keeping: Keeping | None = None  # where values are remembered
        if options.memo is not None:
            self.keeping = Keeping(
                Store(options.kept_nbytes(group.size), copy_all=options.values == "copy"), policy.codec
            )
        self.making = Making(engine, group, options, policy, near, self, self.end, code_for, self.keeping)
        self._flooded: set[int] = set()  # whose loss this rank has passed on
        self.agreeing: dict[int, Arrival] = {}  # by seq: casts whose verdict has not come
        if self._relay.upwards is not None:
            self._relay.upwards.said = self.trace_said

    def said(self, kind: FailureKind, text: str) -> Failure:
        """Return what this rank says of a cast that comes to nothing."""
        rank = self._group.rank
        return Failure(kind, rank, self._group.hosts[rank], text)

    def had_again(self, message: Cast, body: memoryview) -> tuple[Cast, memoryview, Kept | None]:
        """Do what the root says of what is remembered; return a cast as if what is had again had come with it."""
        return (message, body, None) if self.keeping is None else self.keeping.had_again(message, body)

    # Reports and verdicts

    def done(self, arrival: Arrival, result: Result) -> None:
        """This rank's part is done: report it, or settle if nobody waits for reports."""
        message = arrival.message
        if (spans := self._engine.spans) is not None:
            spans.ended(message, result)
        if not message.agree:
            self.conclude(arrival, result)
            if self._options.placement == "auto" and (message.ref is not None or message.finish is not None):
                self._report(Report(self._group.rank, message.seq, False, result.failure, arrival.cost))
            return
        if message.keep and self.keeping is not None:
            self.keeping.put_down(arrival, result)
        with self._lock:
            arrival.body = arrival.own = arrival.shared = None
            if arrival.items is not None:
                arrival.items.let_go()
            if arrival.objection is not None:
                result = arrival.judged(result)
            if arrival.final is None:
                arrival.local = result
            verdict = arrival.verdict
            arrival.reported_s = time.monotonic()
            read = arrival.ask is not None
            arrival.told_read |= read
            kept_nbytes = sum([one.taken_nbytes for _, one in arrival.kept]) if arrival.kept else 0
        if self._engine.tracer is not None and self._relay.upwards is None:
            self.trace_said("report", message.seq)
        self._report(Report(self._group.rank, message.seq, read, result.failure, arrival.cost, kept_nbytes))
        if verdict is not None:
            self.conclude(arrival, Result(failure=verdict, cause=result.cause if result.failure is not None else None))

    def obey(self, verdict: Verdict) -> None:
        """The root has given its verdict on a cast."""
        with self._lock:
            arrival = self.agreeing.pop(verdict.seq, None)
            if arrival is None:
                return
            local = arrival.local
            if arrival.kept and self.keeping is not None:
                self.keeping.settle(arrival, verdict)
            if local is not None:
                now_s = time.monotonic()
                self._counters.noted.append(("agree", now_s - arrival.reported_s))
                if (tracer := self._engine.tracer) is not None:
                    tracer.took("agree", arrival.reported_s, now_s, arrival.message)
            elif verdict.failure is not None and verdict.failure.rank == self._group.rank and arrival.begun:
                arrival.verdict = verdict.failure  # it is about to be found here, with its cause: a peer was quicker
                return
        if verdict.failure is None:
            assert local is not None, "the root has all reports, so also ours"
            self.conclude(arrival, local)
        else:
            mine = local is not None and local.failure is not None and verdict.failure.rank == self._group.rank
            self.conclude(arrival, Result(failure=verdict.failure, cause=local.cause if local and mine else None))
            self.give_up(arrival)

    def give_up(self, arrival: Arrival) -> None:
        """A cast has failed. If this rank's part has not begun, it never will; those who count on it are told so."""
        if not self.making.give_up(arrival):
            return
        with self._lock:
            read = arrival.ask is not None
            arrival.told_read |= read
        self._report(Report(self._group.rank, arrival.message.seq, read))

    def conclude(self, arrival: Arrival, result: Result) -> None:
        """This is what a cast comes to."""
        with self._lock:
            if arrival.final is not None:
                return
            arrival.local = None
            arrival.body = arrival.own = arrival.shared = None
            if arrival.items is not None:
                arrival.items.let_go()
            arrival.had, arrival.had_instead = (), None
            ask = arrival.ask
            if arrival.objection is not None:
                result = arrival.judged(result)
            if arrival.dropped:
                result = self.dropped()
            # Once it is handed over, the future alone keeps a value alive.
            arrival.final = result if ask is None else SPENT
            if ask is None:
                return
            settles = result.failure is None and self._asks.take(ask)
        if result.failure is not None:
            self._asks.settle(ask, result)
        elif settles:
            ask.settle(result.value)

    def dropped(self) -> Result:
        """Return what a call gets for a cast that the root had let go of."""
        root = self._group.root
        return Result(failure=Failure("withdrawn", root, self._group.hosts[root], "the root dropped this cast"))

    def tell_late(self, ask: CastFuture[Any], arrival: Arrival | None) -> None:
        """The time of a call is over here: if its cast is to be everybody's or nobody's, it will be nobody's."""
        # Without an arrival there is nothing to report on yet: whoever brings it finds `ask.late`.
        if arrival is not None and arrival.message.agree and ask.late is not None:
            self._report(Report(self._group.rank, arrival.message.seq, False, ask.late))

    def trace_said(self, kind: str, seq: int) -> None:
        """Note when a message goes to the root, if its clock is another one: see `RootLane._trace_heard`."""
        tracer, (rank, _, root) = self._engine.tracer, self._group[:3]
        if tracer is not None and self._group.clock_of(rank) != self._group.clock_of(root):
            tracer.happened("said", None, rank=rank, kind=kind, seq=seq)

    # Those who are gone

    def neighbour_gone(self, peer: int, reason: str | None) -> None:
        """A neighbour sends no more: closed (None) or lost (why)."""
        failure = self._near.end_of(peer, reason)
        # All ranks of a host hear of its ends by themselves. Only those whose messages come by way of this rank are
        # passed on from here: by another way the news could overtake a report that the rank has sent.
        topology = self._near.topology
        if peer in topology.host:
            self.making.owner_gone(peer, failure)
        self.gone(Gone(peer, failure), flood=peer == topology.parent or peer in topology.children)

    def gone(self, message: Gone, *, flood: bool = True) -> None:
        """A rank has closed, or was lost."""
        end = self.end
        with self._lock:
            known, lost = end.gone.get(message.rank), message.failure.kind == "lost"
            # Who is told that it counts as lost, and closes, may be heard first by some.
            repeated = known is not None and (known.failure.kind == "lost" or not lost)
            # What another lane had heard was not passed on in this tree, where whoever said it may close next.
            flood = flood and (not repeated or (lost and message.rank not in self._flooded))
            if flood and lost:
                self._flooded.add(message.rank)
            if not repeated:
                end.gone[message.rank] = message
            first = lost and not repeated and message.rank not in self._engine.lost  # that all lanes here hear of
            if first:
                self._engine.lost[message.rank] = message
                self._counters.lost += 1
            if lost and not repeated and (end.failure is None or end.failure.kind == "closed"):
                # Before anybody else hears of it: whoever does may close, and that is not why casts fail.
                end.failure = message.failure
        if repeated:
            if flood:
                self._relay.flood(message)
            return
        if (tracer := self._engine.tracer) is not None:
            tracer.happened(message.failure.kind, None, rank=message.rank, text=message.failure.message)
        if self._relay.upwards is not None:
            self._relay.upwards.stop()
        if flood:
            self._relay.flood(message)
        if first:
            self._engine.notices.lost(message.rank, message.failure.message)
        self._react(message)

    def end_with(self, failure: Failure) -> None:
        """Nothing more can come: fail what depends on it, and, after a loss, all that is not done."""
        with self._lock:
            if self.end.failure is None or (failure.kind == "lost" and self.end.failure.kind == "closed"):
                self.end.failure = failure
            failure = self.end.failure  # a loss outranks what ends because of it
            # What a cast came to may be handed over just now, by another thread: that call has its value.
            asks = [ask for ask in self._asks.waits.waiting() if ask.arrival is None or ask.arrival.final is None]
            parked = self.making.unpark()
            if failure.kind == "closed":  # what has arrived and needs nobody's word still gets done
                asks = [ask for ask in asks if ask.arrival is None or ask.arrival.message.agree]
            for arrival in self.agreeing.values():
                arrival.lapsed = True
            self.agreeing.clear()
            if failure.kind == "lost":
                self.making.awaited.clear()
            self._asks.gates.open()
        for arrival in parked:  # the code they wait for will not come
            self.conclude(arrival, Result(failure=failure))
        for ask in asks:
            self._asks.settle(ask, Result(failure=failure))

    def failed(self, exc: BaseException) -> None:
        """The engine of this rank has failed: nobody is to wait for it any more."""
        self.gone(Gone(self._group.rank, self._engine.performer.failure("lost", "the engine failed", exc)))

    def hear_losses(self) -> None:
        """Learn of the ranks that another lane knows to be lost."""
        with self._lock:
            news = [gone for gone in self._engine.lost.values() if gone.rank not in self.end.gone]
        for gone in news:  # where it has come from another root's tree, this rank is who says so in this one
            loss = gone.failure.loss
            said = loss and msgspec.structs.replace(loss, by=self._group.rank)
            failure = msgspec.structs.replace(gone.failure, loss=said)
            self.gone(msgspec.structs.replace(gone, failure=failure), flood=False)
        with self._lock:
            end = self.end.failure
        if end is not None and end.kind == "lost":  # another thread may have heard, and not have failed its calls yet
            self.end_with(end)

    def disconnect(self, timeout_s: float) -> None:
        """Say farewell to the other ranks."""
        rank = self._group.rank
        host = self._group.hosts[rank]
        # Others may hear of our end before they notice the loss that brought it about: tell them that first.
        with self._lock:
            losses = [self.end.gone.get(gone.rank, gone) for gone in self._engine.lost.values()]
        for loss in losses:
            self._relay.flood(loss)
        self._relay.flood(Gone(rank, Failure("closed", rank, host, f"rank {rank} ({host}) has closed its object")))
        self._near.close(timeout_s)

    def forget(self) -> None:
        """Let go of all casts, and so of the slots that they lie in: nothing more can come."""
        if self.keeping is not None:
            self.keeping.store.close()
        with self._lock:
            self.agreeing.clear()
            self.making.clear()

    # Looking

    def phase(self, arrival: Arrival) -> Phase | None:
        """With the lock held: return how far a cast has come that waits for this host. None: it is done here."""
        owner, rank, root = arrival.owner, self._group.rank, self._group.root
        if arrival.declined and not arrival.begun:
            return "it has failed elsewhere, and the verdict is on its way", (root,), ()
        if arrival.items is not None and arrival.local is None and (others := arrival.items.waits_for):
            if len(others) == 1:
                return f"rank {others[0]} makes items of it for this host", others, ()
            return f"ranks {', '.join(map(str, others))} make items of it for this host", others, ()
        if not arrival.begun and owner is not None and owner != rank:
            unasked = " or has not asked for it" if arrival.message.fingerprint is not None else ""
            return f"rank {owner} materializes it for this host and is not done{unasked}", (owner,), ()
        if arrival.local is not None:
            return None
        if not arrival.begun and rank != root:
            return "its code has not come from the root", (root,), ()
        held = self._engine.performer.holders(arrival.message.seq)
        doing = "materializing here" if rank == root else "decoding or materializing here"
        return f"waits for {held}" if held else doing, (rank,), ()

    def remembered(self) -> Remembered:
        """Return what is remembered here, and what that was good for."""
        return self.keeping.store.figures() if self.keeping is not None else NOTHING

    def lines(self) -> list[str]:
        """Lines of a dump: what is under way here, beside what somebody has asked for."""
        return [*(f"#{seq}: agreeing" for seq in sorted(self.agreeing)), *self.making.lines()]

    def ended(self) -> str | None:
        """Return why nothing more can come, once that is so."""
        return self.end.failure.message if self.end.failure is not None else None

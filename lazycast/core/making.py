"""Who makes a cast's value for a rank, when that can begin, and this rank's own part of it.

Guarantees:

* User code runs on workers; only small payloads without a materializer are unpickled where they arrive.
* An owner sends its host exactly one `Value` for each cast, whatever becomes of it, unless it closes or dies.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from typing import Protocol

import msgspec

from lazycast.codec.pickling import Layout, allocate, copy
from lazycast.codec.trust import Policy
from lazycast.core.arrival import Arrival
from lazycast.core.awaited import Awaited
from lazycast.core.engine import Engine
from lazycast.core.helpers.maker import HelpedValue, Maker
from lazycast.core.items.gathering import PARTS_PER_HELPER, Gathering
from lazycast.core.items.sharing import Sharing
from lazycast.core.memo.items import numbers_of_new
from lazycast.core.memo.keeping import Keeping
from lazycast.core.neighbours import Neighbours
from lazycast.core.own_part import OwnPart, Stages
from lazycast.core.performer import Group, Result
from lazycast.core.succession import heir, sharers
from lazycast.materialize.materializers import CodeMissing
from lazycast.net.host.hosts import leader
from lazycast.net.wire import Cast, Code, Failure, Gone, Need, Pass, Value, again_ident
from lazycast.options import HELPERS, OWNED, Options

#: A pickle stream up to this size, of builtin types and arrays and without a materializer, is decoded where it arrives:
#: a worker would cost more. Anything else may run user code, or import a library, while other messages wait.
INLINE_NBYTES = 64 << 10


class End:
    """Why nothing more can come, once that is so. Guarded by the engine's lock."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.gone: dict[int, Gone] = {}  # by rank


class Outcome(Protocol):
    """Takes what has come of this rank's part."""

    def done(self, arrival: Arrival, result: Result) -> None:
        """This rank's part is done: report it, or settle if nobody waits for reports."""

    def conclude(self, arrival: Arrival, result: Result) -> None:
        """This is what a cast comes to."""

    def give_up(self, arrival: Arrival) -> None:
        """A cast has failed: if this rank's part has not begun, it never will."""


class Making:
    """See the module's text. Thread-safe.

    Args:
        policy: by which codec objects travel, and which materializers may be loaded.
        end: of the group, as this rank knows it.
        code_for: returns the code of a materializer that a helper lacks; raises CodeMissing if the root must be asked.
            None: what has been loaded here.
        keeping: where values are remembered, if they are.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        policy: Policy,
        near: Neighbours,
        outcome: Outcome,
        end: End,
        code_for: Callable[[str], bytes] | None,
        keeping: Keeping | None,
    ) -> None:
        self._engine, self._group, self._options, self._policy = engine, group, options, policy
        self._lock, self._performer, self._relay = engine.lock, engine.performer, near.relay
        self._topology, self._outcome, self._end = near.topology, outcome, end
        self.own_part = OwnPart(
            group.rank,
            engine.performer,
            near.relay,
            policy,
            readonly=options.values == "readonly",
            chosen=options.placement == "auto",
            watches=options.placement == "auto" and options.helpers is not None,
            took=engine.took,
        )
        self._sharing = Sharing(
            group,
            near.topology.host,
            engine.lock,
            engine.performer,
            self.own_part,
            by_helper=self._part_by_helper,
            began=self._began,
            ended=outcome.done,
            lacks=self._park,
            unshared=self._count_unshared,
            keeping=keeping,
        )
        self._code_for = code_for if code_for is not None else self.own_part.loader.code
        self._parked: dict[str, list[Arrival]] = {}  # by materializer: casts that wait for its code
        self.awaited = Awaited(group.rank)
        #: By seq: casts without agreement that this rank makes for others too, whether or not it wants them itself.
        self.owned: weakref.WeakValueDictionary[int, Arrival] = weakref.WeakValueDictionary()
        if options.helpers is not None and group.rank == self._helping_rank and engine.maker is None:
            engine.maker = Maker(group, options)
            engine.performer.use(engine.maker.pool, f"lazycast-{options.name}-work")

    @property
    def _helping_rank(self) -> int:
        """The rank of this host that has its helpers: its leader, or its lowest one where every rank is a root."""
        host = self._topology.host
        return host[0] if self._options.roots == "any" else leader(host, self._group.root)

    # Who makes it

    def admit(self, arrival: Arrival) -> None:
        """With the lock held: find out who materializes a new cast for this host, and what has come of it already."""
        message = arrival.message
        if message.placement not in OWNED or message.ref is None or message.failure is not None:
            return
        if message.each and ((makers := self._makers(message)) or message.items):
            rank = self._group.rank
            arrival.items = Gathering(makers, rank)
            arrival.owner = rank if rank in makers else next(iter(makers), None)
            if arrival.owner == rank and not message.agree:
                self.owned[message.seq] = arrival
            if arrival.items.awaits:
                self.awaited.admit(arrival)
            return
        arrival.owner = self._heir(message, ())
        if arrival.owner in (None, self._group.rank):
            if arrival.owner is not None and not message.agree:
                self.owned[message.seq] = arrival
            return  # alone on its host, or the owner: nobody sends it a value
        self.awaited.admit(arrival)

    def _makers(self, message: Cast) -> list[int]:
        """Return who makes each part of a cast; none where one rank makes all of it, or there is nothing to make."""
        helpers = self._options.helpers
        if message.placement == HELPERS:
            ranks = [self._helping_rank] * (helpers.count * PARTS_PER_HELPER if helpers is not None else 0)
        else:
            ranks = sharers(self._topology.host, self._options.owners, message.turn)
        if message.items:
            return ranks[: len(numbers_of_new(message.items))]
        return ranks if message.placement == HELPERS or len(ranks) > 1 else []

    def _heir(self, message: Cast, passed: tuple[int, ...] | list[int]) -> int | None:
        host, owners = self._topology.host, self._options.owners
        if message.placement == HELPERS:
            owners = {self._helping_rank}
        return heir(host, owners, message.turn, passed) if len(host) > 1 else None

    def _is_helped(self, arrival: Arrival) -> bool:
        """Whether the helpers of this rank make the value of a cast."""
        message = arrival.message
        if (
            self._engine.maker is None
            or message.placement != HELPERS
            or message.ref is None
            or arrival.shared is not None
        ):
            return False
        return arrival.owner in (None, self._group.rank)

    def _part_by_helper(self, arrival: Arrival, body: memoryview, layout: Layout, part: tuple[int, int]) -> HelpedValue:
        maker, message = self._engine.maker, arrival.message
        assert maker is not None
        assert message.ref is not None
        unwanted = functools.partial(arrival.unwanted, self._group.rank)
        numbers = numbers_of_new(message.items) if message.items else None
        return maker.make(message.seq, message.ref, body, layout, self._relay, self._code_for, unwanted, part, numbers)

    def _made_by_helper(
        self, maker: Maker, arrival: Arrival, unwanted: Callable[[], bool], body: memoryview, layout: Layout
    ) -> HelpedValue:
        message = arrival.message
        assert message.ref is not None
        return maker.make(message.seq, message.ref, body, layout, self._relay, self._code_for, unwanted)

    def hear(self, message: Value | Pass, body: memoryview) -> None:
        """Take what an owner of this host says of a cast."""
        began_s = time.monotonic()
        with self._lock:
            # The root books a cast before it sends it: nothing that is said of it can be early there.
            keep = self._end.failure is None and self._group.rank != self._group.root
            arrival, again = self.awaited.hear(message, body, keep=keep)
        if (tracer := self._engine.tracer) is not None and isinstance(message, Value):
            cast = arrival.message if arrival is not None else None
            tracer.took("arrive value", began_s, time.monotonic(), cast, seq=message.seq, owner=message.rank)
        if arrival is None:
            return
        if again:
            self._pass_on(arrival)
        self.advance(arrival)

    def owner_gone(self, owner: int, failure: Failure) -> None:
        """A rank of this host sends no more; what it has sent has come. What it was to materialize fails."""
        with self._lock:
            waiting = self.awaited.gone(owner, failure)
            for arrival in waiting:
                arrival.begun |= arrival.items is None
        for arrival in waiting:
            if arrival.items is not None:
                self.advance(arrival)
            else:
                self._outcome.done(arrival, Result(failure=failure))

    # This rank's part

    def advance(self, arrival: Arrival) -> None:
        """Start this rank's part of a cast, once, as soon as there is what it needs."""
        if arrival.items is not None:
            self._sharing.advance(arrival, arrival.items)
            return
        with self._lock:
            if not arrival.ready(self._group.rank):
                return
            arrival.begun = True
            takes = arrival.shared is not None and arrival.shared[0].unshared is None
            helped = self._engine.maker is not None and self._is_helped(arrival)
            lost = arrival.lost
        if lost:
            self._park(arrival, again_ident(arrival.message.seq))
            return
        if (spans := self._engine.spans) is not None:
            spans.began(arrival.message)
        quick, message = self._is_quick(arrival), arrival.message
        if quick and message.ref is None and message.finish is None and message.fingerprint is None:
            with self._lock:
                body, ask, arrival.body = arrival.body, arrival.ask, None
            # The verdict was a failure and came first, or nobody will look.
            if body is None or (ask is not None and ask.taken):
                result = Result()
            else:
                layout = Layout(message.stream_nbytes, message.frames)
                result = self.own_part.decode(message, body, message.nbytes, layout, plain=True)
            del body  # whoever gets the value is alone with its memory
            self._outcome.done(arrival, result)
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
        if (spans := self._engine.spans) is not None:
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

    def _part(self, arrival: Arrival) -> Result:
        message = arrival.message
        owner = arrival.owner == self._group.rank
        if arrival.over:
            if owner:
                self.decline(arrival)
            return Result()
        if (ask := arrival.ask) is not None and ask.taken:  # nobody here will look at it: nothing to object
            if not owner:
                return Result()
            if message.fingerprint is not None:  # and there is no payload to work on either
                self._pass_on(arrival)
                return Result()
        maker = self._engine.maker
        try:
            if maker is not None and self._is_helped(arrival):
                unwanted = functools.partial(arrival.unwanted, self._group.rank)
                made_by = functools.partial(self._made_by_helper, maker, arrival, unwanted)
                instead = (
                    functools.partial(self.own_part.first_stage, message, arrival.own) if self.own_part.chosen else None
                )
                stages = Stages(None, self.own_part.finish(arrival), made_by, instead)
            else:
                stages = self.own_part.stages(arrival)
        except CodeMissing as exc:
            return Result(cause=exc)
        except BaseException as exc:
            name = next(ref.name for ref in (message.ref, message.finish) if ref is not None)
            result = self.own_part.failed("decode", f"materializer {name!r} could not be loaded", exc)
            if owner:
                self.own_part.tell(self._value(arrival, result.failure))
            return result
        with self._lock:
            material = arrival.take()
        try:
            result, cost = self.own_part.run(message, material, stages, self._value(arrival) if owner else None)
        except CodeMissing as exc:  # of a helper
            with self._lock:
                arrival.put_back(material)
            return Result(cause=exc)
        if stages.prepare is not None or stages.finish is not None or stages.helped is not None:
            arrival.cost = cost
        if cost.unshared is not None:
            self._count_unshared(cost.unshared)
        return result

    def _count_unshared(self, reason: str) -> None:
        with self._lock:
            self._engine.counters.unshared += 1
            self._engine.counters.unshared_reason = reason

    def _part_done(self, arrival: Arrival, result: Result) -> None:
        if isinstance(result.cause, CodeMissing):
            self._park(arrival, result.cause.ident)
        else:
            self._outcome.done(arrival, result)

    # What an owner says

    def _value(self, arrival: Arrival, failure: Failure | None = None) -> Value:
        """What this rank, as the owner, has to say about a cast."""
        return Value(self._group.rank, arrival.message.seq, len(arrival.passed), failure=failure)

    def give_up(self, arrival: Arrival) -> bool:
        """Make nothing more of a cast that has failed. Returns whether this rank is still to say that it has ended."""
        if arrival.items is None:
            with self._lock:
                first, arrival.begun = not arrival.begun, True
            if first:
                self.decline(arrival)
            return first
        first = self._sharing.give_up(arrival, arrival.items)
        if first and (spans := self._engine.spans) is not None:
            spans.ended(arrival.message, Result())
        return first

    def decline(self, arrival: Arrival) -> None:
        """If this rank owns a cast that has failed, it makes nothing of it: those who count on it are told so."""
        rank = self._group.rank
        if arrival.owner == rank:
            text = "the cast had failed before its owner began"
            self.own_part.tell(self._value(arrival, Failure("refused", rank, self._group.hosts[rank], text)))

    def _pass_on(self, arrival: Arrival) -> None:
        """This rank was to materialize what it has no payload for: the next one of its host does."""
        seq, rank = arrival.message.seq, self._group.rank
        to = self._heir(arrival.message, [*arrival.passed, rank])
        if to is None:  # nobody wants it; those who wait for news of it need not
            self.own_part.tell(self._value(arrival, Failure("withdrawn", rank, "", "no rank of this host wants it")))
            return
        with self._lock:
            self.awaited.pass_on(arrival, to)
            passed = arrival.passed
        self._relay.share(Pass(rank, seq, to, passed))

    # Code that is not here

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
            self._outcome.conclude(arrival, Result(failure=end))
        elif first:
            self._relay.up(Need(self._group.rank, ident))
        if failed:
            self._outcome.give_up(arrival)

    def learn(self, ident: str, code: bytes | None, failure: Failure | None) -> None:
        """Code has come, or, with a failure, will not: casts that have waited for it go on, or fail."""
        if failure is None:
            assert code is not None
            self.own_part.loader.learn(ident, code)
        with self._lock:
            parked = self._parked.pop(ident, [])
        for arrival in parked:
            if failure is None:
                self.advance(arrival)
            else:
                self._code_missing(arrival, failure)

    def have_again(self, message: Code, body: memoryview, failure: Failure | None) -> None:
        """A value has come that this rank, or another one, had lost; or, with a failure, will not."""
        with self._lock:
            parked = self._parked.pop(message.ident, [])
        for arrival in parked:
            if failure is None:
                failure = self._give(arrival, message, body)
            if failure is None:
                self.advance(arrival)
            else:
                self._code_missing(arrival, failure)

    def _give(self, arrival: Arrival, message: Code, body: memoryview) -> Failure | None:
        with self._lock:
            if not arrival.lost or arrival.final is not None:  # it was asked for twice, or is over
                return None
        try:
            own = allocate(message.nbytes)
        except MemoryError as exc:
            return self._performer.failure("decode", "a value could not be had again", exc)
        copy(own, body)
        with self._lock:
            if arrival.items is not None:
                arrival.had_instead, arrival.lost = (own, Layout(message.stream_nbytes, message.frames)), False
                return None
            sizes = {"nbytes": message.nbytes, "stream_nbytes": message.stream_nbytes, "frames": message.frames}
            arrival.message = msgspec.structs.replace(arrival.message, **sizes)
            arrival.body, arrival.lost = own, False
        return None

    def _code_missing(self, arrival: Arrival, failure: Failure) -> None:
        """The root cannot send the code that this cast waits for."""
        if arrival.items is not None:
            if self._sharing.spoil(arrival, arrival.items, failure):
                self._outcome.done(arrival, Result(failure=failure))
            return
        with self._lock:
            if arrival.begun:
                return
            arrival.begun = True
        if arrival.owner == self._group.rank:
            self.own_part.tell(self._value(arrival, failure))
        self._outcome.done(arrival, Result(failure=failure))

    def unpark(self) -> list[Arrival]:
        """With the lock held: return the casts that wait for code, which will not come any more."""
        parked = [arrival for waiting in self._parked.values() for arrival in waiting]
        self._parked.clear()
        return parked

    def clear(self) -> None:
        """With the lock held: let go of all casts, and so of the slots that they lie in."""
        self._parked.clear()
        self.awaited.clear()

    # Looking

    @property
    def loaded(self) -> tuple[int, int]:
        """How often a materializer was loaded already, and how often it had to be."""
        return self.own_part.loader.hits, self.own_part.loader.loads

    def lines(self) -> list[str]:
        """Lines of a dump: what waits for code, or for an owner."""
        parked = [
            f"#{arrival.message.seq}: waits for the code of {ident}"
            for ident, waiting in list(self._parked.items())
            for arrival in list(waiting)
        ]
        return [*parked, *self.awaited.lines()]

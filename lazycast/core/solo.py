"""The lane of a group of one: the materializer is called directly; nothing is pickled, sent or agreed upon.

Guarantees: the API, the errors and the rules about keys are those of a larger group. `call` returns at once; the
materializer runs on a worker, or, with `here`, in the calling thread, if nothing is set there that it would see.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lazycast.arguments import usable_key
from lazycast.codec.fingerprint import approximate_nbytes
from lazycast.codec.pickling import allocate
from lazycast.codec.trust import policy_of
from lazycast.core.arrival import Arrival
from lazycast.core.asks import Asks
from lazycast.core.engine import Engine, Taken, nothing_comes
from lazycast.core.failures import clip
from lazycast.core.future import CastFuture
from lazycast.core.helpers.maker import Alone, Maker
from lazycast.core.helpers.process import Unmade
from lazycast.core.interrupts import Uninterrupted, of_handler
from lazycast.core.items.alone import Crew
from lazycast.core.items.gathering import PARTS_PER_HELPER
from lazycast.core.memo.alone import Memory
from lazycast.core.memo.items import Plan, items_to_plan, numbers_of_new
from lazycast.core.memo.store import NOTHING, Store
from lazycast.core.own_part import MAX_REASON
from lazycast.core.performer import Group, Result
from lazycast.core.placing import Placing, place_name
from lazycast.core.seen import Counted, Rows, Seen
from lazycast.core.situation import Situation
from lazycast.core.surroundings import nothing_set
from lazycast.core.workers import unforked
from lazycast.errors import ClosedError, TrustError
from lazycast.materialize.each import Each, Some, in_order
from lazycast.materialize.held import Watch, Watching
from lazycast.materialize.materializers import Shipper, name_of, objection
from lazycast.materialize.staged import Staged, each_of, unusable
from lazycast.missing import MISSING
from lazycast.net.topology import place
from lazycast.net.wire import Cost, Key
from lazycast.options import HELPERS, OWNED, Options
from lazycast.tracebacks import describe

_UNMADE = Result()  # nobody wanted it, and no helper has made it


class _Call(NamedTuple):
    """Says which cast is meant."""

    seq: int
    key: Key | None
    placement: str = "every"
    ask: CastFuture[Any] | None = None


class _Placed(NamedTuple):
    """What is placed."""

    seq: int
    name: str
    materialize: Callable[[Any], Any]


class SoloLane:
    """See the module's text."""

    def __init__(self, group: Group, options: Options) -> None:
        self.engine = engine = Engine(group, options)
        self._group, self._options = group, options
        self._lock, self._counters, self._performer = engine.lock, engine.counters, engine.performer
        self.asks = Asks(engine, group, options, self, inquires=False)
        engine.lanes.append(self)
        self._policy = policy_of(options, same_program=group.same_program)
        self._shipper = Shipper(self._policy)
        self._store: Store | None = None  # where values are remembered
        self._memory: Memory | None = None
        if options.memo is not None:
            self._store = Store(options.memo.nbytes, copy_all=options.values == "copy")
            self._memory = Memory(options.memo, self._store, self._policy.codec, group.rank)
        if options.helpers is not None:
            engine.maker = Maker(group, options)
            self._performer.use(engine.maker.pool, f"lazycast-{options.name}-work")
        #: Who makes a value, where there are helpers that need not.
        self._placing: Placing | None = None
        self._watching = Watching()
        if options.helpers is not None and options.placement == "auto":
            self._placing = Placing(group, place(group.rank, group.rank, ((group.rank,),)), options, engine.has_helpers)
        self._placed = ("every", "there is one rank") if engine.maker is None else (HELPERS, "asked for")
        if self._placing is not None:
            self._placed = "auto", "nothing has been cast"

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        name = self._options.name
        if self._options.roots == "one":
            raise ValueError(nothing_comes(name))
        with Uninterrupted(), self._lock:
            self.engine.refuse_if_closed()
        if not looks:
            raise ClosedError(f"lazycast {name!r}: next(): there is no other rank that could cast", rank=0)

    def start(self, *, timeout_s: float) -> None:
        """Begin."""
        self.engine.thread.start()

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
        if counted is not None:
            counted.append(False)  # there is nobody to be out of step with
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # it leads to its traceback, and that to this frame: it would lead back to it
        fn: Any = materialize if materialize is not None else self._options.materialize
        if payload is MISSING:
            raise TypeError(f"{self.asks.label(key, None)}: broadcast() needs a payload on the root")
        wrong = unusable(fn) if fn is not None else None
        if wrong is not None:
            raise TypeError(f"{self.asks.label(key, None)}: {wrong}")
        refused = objection(fn, self._policy) if fn is not None else None
        if refused is not None:
            raise TrustError(f"{self.asks.label(key, None)}: {refused}", rank=self._group.rank)
        with Uninterrupted():  # but for the materializer
            nbytes = self._size_of(payload) if self._placing is not None else 0
            with self._lock:
                self.engine.refuse_if_closed()
                if key is not None and key in self.asks.pending:
                    raise self.asks.key_in_use(key)
                operation = "broadcast" if here else "broadcast_async"
                ask = self.asks.make_call(key, timeout_s, time.monotonic(), operation)
                helped = self._place(ask, fn, nbytes)
                self._counters.casts += 1
                self._counters.placements[HELPERS if helped else "every"] += 1
            if fn is None:
                self._settle(ask, Result(payload))
            else:
                here = here and not helped and nothing_set()  # with more ranks: on another thread
                self._performer.run(
                    functools.partial(self._part, ask, fn, payload, priority, helped),
                    functools.partial(self._settle, ask),
                    here=here,
                    helped=helped,
                    seq=ask.number,
                    priority=priority,
                    unwanted=lambda: ask.taken,
                )
            # It is settled, or about to be by whoever was first: then without a cause.
            error = ask.exception() if here and ask.done() and not ask.cancelled() else None
            cause = error.__cause__ if error is not None else None
            if cause is not None and (isinstance(cause, KeyboardInterrupt) or of_handler(cause)):
                raise cause  # it was meant for the caller, in whose thread this ran
            del error, cause  # each leads to its traceback, and that to frames that lead back
        return ask

    @staticmethod
    def _size_of(payload: object) -> int:
        try:
            return approximate_nbytes(payload)
        except Exception:  # whatever the attributes of a payload do when they are looked at
            return 0

    def _place(self, ask: CastFuture[Any], fn: Callable[[Any], Any] | None, nbytes: int) -> bool:
        """With the lock held: decide who makes a value; return whether a helper does."""
        if fn is None or self.engine.maker is None:
            return False
        if self._placing is not None:
            call = _Placed(ask.number, place_name(fn), fn)
            self._placed = self._placing.place(call, nbytes, len(self.asks.waits) - 1)
        return self._placed[0] == HELPERS

    def _learn(self, ask: CastFuture[Any], result: Result, cost: Cost | None) -> Result:
        """Take into account what a value has cost."""
        if self._placing is not None:
            with self._lock:
                if cost is None or result.failure is not None:
                    self._placing.failed(ask.number)
                else:
                    self._placing.reported(ask.number, 1 << self._group.rank, self._group.rank, cost)
        return result

    def _part(
        self, ask: CastFuture[Any], fn: Callable[[Any], Any], payload: object, priority: int, helped: bool
    ) -> Result:
        if ask.taken:
            return self._learn(ask, Result(), None)
        if self._memory is None:
            return self._make(ask, fn, payload, priority, helped)
        readonly = self._options.values == "readonly"
        each = fn if isinstance(fn, Each) and self._options.placement in OWNED else None
        try:
            shipped = self._shipper.ship(fn)
            turns = self._shipper.turns(fn, shipped.ref, shipped.finish)
            if each is not None:
                plan = self._memory.planner.plan(shipped.ref, turns, items_to_plan(each, payload), ask.number)
                if plan is not None:
                    return self._part_of_items(self._memory, plan, ask, each, payload, priority, helped)
                if self._memory.by_key:  # a key is of an item
                    return self._make(ask, fn, payload, priority, helped)
            ident, value = self._memory.look(shipped, turns, payload, ask.number, readonly=readonly)
        except BaseException as exc:  # whatever the user's key, or a payload's own code, raises
            what = "what names the payload could not be had"
            result = Result(failure=self._performer.failure("encode", what, exc), cause=exc)
            return self._learn(ask, result, None)
        if value is not MISSING:
            return self._learn(ask, Result(value), None)
        began_s = time.monotonic()
        result = self._make(ask, fn, payload, priority, helped)
        if result is not _UNMADE and not ask.taken:  # what nobody wants may have been left half done
            self._memory.keep(ident, ask.number, result, time.monotonic() - began_s)
        return result

    def _part_of_items(
        self,
        memory: Memory,
        plan: Plan,
        ask: CastFuture[Any],
        fn: Each[Any, Any, Any, Any],
        payload: object,
        priority: int,
        helped: bool,
    ) -> Result:
        """Make the results of the items that are new; the others are remembered."""
        had = memory.had(plan, ask.number, readonly=self._options.values == "readonly")
        if had is None:
            return self._make(ask, fn, payload, priority, helped)
        new, began_s = Result([]), time.monotonic()
        if plan.new:
            numbers = numbers_of_new(plan.numbers)
            new = self._make(ask, fn, plan.new, priority, helped, numbers)
        made = new.value is not None and not ask.taken
        memory.keep_items(plan, ask.number, new.value if made else None, time.monotonic() - began_s)
        if not made:
            return new
        results, remembered = iter(new.value), iter(had)
        value = [next(results if number >= 0 else remembered) for number in plan.numbers]
        return Result(value) if fn.join is list else self._performer.materialize(fn.join, value)

    def _make(
        self,
        ask: CastFuture[Any],
        fn: Callable[[Any], Any],
        payload: object,
        priority: int,
        helped: bool,
        numbers: list[int] | None = None,
    ) -> Result:
        """Make a value; or, of a payload that is a list of items with these numbers, the results alone."""
        if helped and self.engine.maker is not None:
            return self._helped_part(self.engine.maker, ask, fn, payload, priority, numbers)
        if numbers is not None:
            assert isinstance(fn, Each)
            result = self._made_here(ask, Some(fn, numbers=numbers), payload)
            return result if result.value is None else Result(result.value[1])
        if self._placing is None:
            return self._made_here(ask, fn, payload)
        began_s, cpu_s, held_s = time.monotonic(), time.thread_time(), None
        if self._watching.due(name_of(fn)):
            with Watch() as watch:
                result = self._made_here(ask, fn, payload)
            held_s = watch.held_s
        else:
            result = self._made_here(ask, fn, payload)
        cpu_s = time.thread_time() - cpu_s
        return self._learn(ask, result, Cost(cpu_s, time.monotonic() - began_s, cpu_s, held_s=held_s))

    def _made_here(self, ask: CastFuture[Any], fn: Callable[[Any], Any], payload: object) -> Result:
        began_s = time.monotonic()
        if (spans := self.engine.spans) is not None and ask.traced is not None:
            ask.traced.cast = of = _Call(ask.number, ask.key, ask=ask)
            fn = spans.within(of, fn)
        result = self._performer.materialize(fn, payload)
        self.engine.took("materialize", began_s, _Call(ask.number, ask.key))
        return result

    def _helped_part(
        self,
        maker: Maker,
        ask: CastFuture[Any],
        fn: Callable[[Any], Any],
        payload: object,
        priority: int,
        numbers: list[int] | None = None,
    ) -> Result:
        """Have the value, or its first stage, made by a helper."""
        of, alone = _Call(ask.number, ask.key, HELPERS), Alone()
        codec, chosen, cost = self._policy.codec, self._placing is not None, Cost(0.0, 0.0)
        what = "the payload could not be given to a helper"
        try:
            shipped = self._shipper.ship(fn)
            assert shipped.ref is not None
            encoded = unforked(codec.encode)(payload)
            body = allocate(encoded.nbytes)
            encoded.write_into(body)
            ref, layout = shipped.ref, encoded.layout

            def make(unwanted: Callable[[], bool], part: tuple[int, int] | None = None) -> Any:
                made = maker.make(ask.number, ref, body, layout, alone, self._shipper.code_for, unwanted, part, numbers)
                nonlocal cost
                cost = Cost(made.cpu_s, made.seconds, made.cpu_s, made.nbytes)
                self.engine.took("materialize", made.ended_s - made.seconds, of, helper=made.helper)
                view = made.room.view
                view = view.toreadonly() if self._options.values == "readonly" else view
                return unforked(codec.decode)(view, made.layout)

            each = each_of(fn) if not chosen else None  # what is chosen is made by one
            what = "what helpers made could not be taken"
            value = make(lambda: ask.taken) if each is None else self._made_in_parts(ask, make, priority, numbers)
        except Unmade as exc:
            if exc.failure is not None and exc.of_helpers and chosen:
                return self._not_by_helper(ask, fn, payload, exc.failure.message)
            result = _UNMADE if exc.failure is None else Result(failure=exc.failure, cause=exc.cause)
            return self._learn(ask, result, None)
        except BaseException as exc:  # whatever a payload's own code raises
            if chosen:
                return self._not_by_helper(ask, fn, payload, f"{what}: {describe(exc)}")
            return Result(failure=self._performer.failure("encode", what, exc), cause=exc)
        result = Result(value)
        if each is not None and each.join is not list and numbers is None:
            result = self._performer.materialize(each.join, value)
        if isinstance(fn, Staged) and result.failure is None:
            began_s = time.monotonic()
            result = self._performer.materialize(fn.finish, payload, result.value)
            self.engine.took("materialize", began_s, of)
        return self._learn(ask, result, cost)

    def _not_by_helper(self, ask: CastFuture[Any], fn: Callable[[Any], Any], payload: object, why: str) -> Result:
        """A chosen placement does not work out: this rank makes the value itself."""
        reason = clip(why, MAX_REASON)
        with self._lock:
            self._counters.unshared += 1
            self._counters.unshared_reason = reason
        result = self._made_here(ask, fn, payload)
        return self._learn(ask, result, Cost(0.0, 0.0, unshared=reason))

    def _made_in_parts(
        self, ask: CastFuture[Any], make: Callable[..., Any], priority: int, numbers: list[int] | None
    ) -> list[Any]:
        """Have the results of an `Each` made by all helpers that are free. Raises what `make` raises."""
        assert self._options.helpers is not None
        parts = self._options.helpers.count * PARTS_PER_HELPER
        if numbers is not None:
            parts = min(parts, len(numbers))
        known: list[int] = []  # how many items there are, once a part was made

        def make_part(part: int, has_failed: Callable[[], bool]) -> Any:
            if known and part >= known[0]:  # there are fewer items than parts
                return 0, []
            made = make(lambda: ask.taken or has_failed(), (part, parts))
            known.append(made[0] if made is not None else parts)
            return made

        crew = Crew(parts, make_part)

        def helped() -> Result:
            crew.help()
            return Result()

        for _ in range(min(self._options.helpers.count, parts) - 1):
            self._performer.run(helped, lambda _: None, helped=True, seq=ask.number, priority=priority)
        return in_order(crew.work())

    def _settle(self, ask: CastFuture[Any], result: Result) -> None:
        if result.failure is None and ask.key is not None:
            with self._lock:
                if self.asks.noted_ready is not None and not ask.taken:
                    self.asks.noted_ready.append(ask.key)
        self.asks.settle(ask, result)

    def when_come(self, wake: Callable[[], None]) -> bool:
        return True

    def has_room(self) -> bool:
        return True

    def when_room(self, wake: Callable[[], None]) -> bool:
        return True

    def named(self, ask: CastFuture[Any]) -> _Call:
        return _Call(ask.number, ask.key)

    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        usable, bad = usable_key(key)  # one that was interrupted may not have been looked at
        if bad is None and usable is not None:
            self.asks.cancel_key(usable)

    def count_missed(self, key: Key | None, exc: BaseException) -> None:
        """There is nobody to be out of step with."""

    def cancel(self, ask: CastFuture[Any]) -> bool:
        with self._lock:
            if not self.asks.take(ask, cancelled=True):
                return ask.cancelled()
            self._counters.aborted += 1
        ask.settle_cancelled()
        return True

    def busy(self) -> bool:
        return False

    def work(self) -> float | None:
        return None

    def engine_failed(self, exc: BaseException) -> None:
        """Only the clock has stopped; casts go on."""

    def follow(self, within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """It looks at the engine's spans itself."""

    # There is nobody else

    def is_decided(self, ask: CastFuture[Any]) -> bool:
        return False

    def tell_late(self, ask: CastFuture[Any], arrival: Arrival | None) -> None:
        """There is nobody to tell."""

    def inquire(self, ask: CastFuture[Any]) -> None:
        """There is nobody to ask."""

    def forget_inquiry(self, ask: CastFuture[Any]) -> None:
        """Nobody was asked."""

    def hear_losses(self) -> None:
        """Nobody can be lost."""

    def disconnect(self, timeout_s: float) -> None:
        """There is nobody to say farewell to."""

    def close_after_fork(self) -> None:
        """Nothing is connected."""

    def forget(self) -> None:
        if self._store is not None:
            self._store.close()

    # Looking

    def look(self, ask: CastFuture[Any]) -> Situation:
        held = self._performer.holders(ask.number)
        return Situation(f"waits for {held}" if held else "materializing here", (0,))

    def worded(self, situation: Situation) -> Situation:
        return situation

    def seen(self) -> Seen:
        remembered = self._store.figures() if self._store is not None else NOTHING
        return Seen(((0,),), self._placed, remembered=remembered)

    def counted(self) -> Counted:
        return Counted(standings=self._placing.standings() if self._placing is not None else ())

    def rows(self) -> Rows:
        store = self._store
        return Rows(self._placed, memo=None if store is None else lambda: [store.line()])

"""The calls of one rank: who asked for what, until when, and how each call ends.

Guarantees:

* A future is settled exactly once, by whoever takes its ask off the books first (`take`).
* The engine thread keeps time: it warns, asks and gives up when an ask is due. It never runs a materializer.
* What is said of a call is looked up when it is said, under the lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

from lazycast.core import failures
from lazycast.core.arrival import Arrival
from lazycast.core.divergence import origin
from lazycast.core.dump import Row, named
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.gates import Gates
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.performer import Group, Result
from lazycast.core.situation import Situation
from lazycast.core.waits import Plan, Stage, Waits, plan
from lazycast.errors import CastTimeoutError, ClosedError, KeyInUseError, LazycastError
from lazycast.here import here
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key
from lazycast.options import Options
from lazycast.tracebacks import describe, log
from lazycast.watch.stats import FOLD_AT
from lazycast.watch.tracing.tracer import Named, Tracer

logger = logging.getLogger("lazycast")

#: A wait that ends so much too late was not looked at: this process was stopped, or did not get to run (seconds).
_FROZEN_S = 1.0
#: How long, and how often, a call whose time is over waits for a verdict that has been given (seconds).
_AGAIN_S, _MOST_PUT_OFF = 0.01, 200
_MOST_PLANS = 64


class Role(Protocol):
    """What asks need to know of the casts that they are for: the root and the other ranks differ in it."""

    def call(
        self,
        payload: object,
        materialize: Callable[[Any], Any] | None,
        key: Key | None,
        timeout_s: float,
        refusal: Exception | None = None,
        *,
        priority: int = 0,
    ) -> CastFuture[Any]:
        """Make a call: see `Lane.call`."""

    def cancel(self, ask: CastFuture[Any]) -> bool:
        """Take back a call; return whether it is cancelled. An interrupt waits for its end."""

    def busy(self) -> bool:
        """With the lock held: whether `close` has something to wait for beside calls."""

    def work(self) -> float | None:
        """Engine thread: do what is queued; return when to come back at the latest."""

    def engine_failed(self, exc: BaseException) -> None:
        """Make sure that nobody waits for this rank any more."""

    def look(self, ask: CastFuture[Any]) -> Situation:
        """With the lock held: say how far a call has come, and for whom it waits, with no words yet for the silent."""

    def worded(self, situation: Situation) -> Situation:
        """Put into words who is silent, and why. Without the lock: it may ask the kernel."""

    def named(self, ask: CastFuture[Any]) -> Named | None:
        """With the lock held: say which cast an ask is for, if that is known."""

    def is_decided(self, ask: CastFuture[Any]) -> bool:
        """With the lock held: whether a verdict on a call's cast has been given here that has not reached the call."""

    def tell_late(self, ask: CastFuture[Any], arrival: Arrival | None) -> None:
        """The time of a call is over here: if its cast is to be everybody's or nobody's, it will be nobody's."""

    def inquire(self, ask: CastFuture[Any]) -> None:
        """Find out from the root whom this ask waits for, and who does not answer."""

    def forget_inquiry(self, ask: CastFuture[Any]) -> None:
        """With the lock held: the root was asked about a call that has ended."""


class Asks:
    """The books on asks, and the time of each. Its attributes are looked at with the engine's lock held.

    Args:
        inquires: whether there is anybody to ask about a call that waits long.
    """

    def __init__(self, engine: Engine, group: Group, options: Options, role: Role, *, inquires: bool = True) -> None:
        self._engine, self._group, self._options, self.role = engine, group, options, role
        self._lock, self._counters, self._thread = engine.lock, engine.counters, engine.thread
        self._inquires = inquires
        self.forked = False  # this process is a child of the one that made it
        self.run_callback, self.guard_result = engine.run_callback, engine.guard_result
        self.root = group.root  # whose casts these are
        self.is_root = group.rank == group.root  # whether they are this rank's
        self.waits: Waits[CastFuture[Any]] = Waits()
        self.gates = Gates()
        self.pending: dict[Key, CastFuture[Any]] = {}  # asks with a key whose future is not done
        self.unkeyed = 0
        self.held: Collection[Any] = ()  # on the root, calls that are ready and not sent
        #: Keys of casts that every rank has, once somebody wants to know.
        self.noted_ready: list[Key] | None = None
        self._plans: dict[float, Plan] = {}  # by time limit
        self._thread.serve(self.waits, on_due=self.on_due, work=self._work_in_turn, on_failure=self._fail)

    # Naming things

    def label(self, key: Key | None, seq: int | None, nth: int | None = None, operation: str = "cast") -> str:
        """Name a call in an error."""
        which = f" #{seq}" if seq is not None else ""
        if key is not None:
            which += f" key {key!r}"
        elif nth is not None:
            which += f" (unkeyed call number {nth} here)"
        rank, size, root = self._group[:3]
        return f"lazycast {self._options.name!r}: {operation}{which} on rank {rank} of {size}, root {root}"

    def label_of(self, ask: CastFuture[Any]) -> str:
        """The same of an ask."""
        return self.label(ask.key, _seq_of(ask), ask.nth, ask.operation)

    def explain(self, ask: CastFuture[Any], exc: LazycastError, situation: Situation) -> LazycastError:
        """Note on an error what became of which call."""
        age_s = time.monotonic() - ask.since_s
        return situation.explain(exc, operation=ask.operation, key=ask.key, seq=_seq_of(ask), age_s=age_s)

    def _exception(self, ask: CastFuture[Any], result: Result) -> LazycastError:
        failure = result.failure
        assert failure is not None
        situation, more = Situation.of(failure), ""
        if failure.kind in ("lost", "closed"):
            situation = self.situation(ask)
            more = f"; this call had waited {time.monotonic() - ask.since_s:.1f} s"
        label, rank = self.label_of(ask), self._group.rank
        exc = failures.to_exception(failure, label=label, rank=rank, cause=result.cause, more=more)
        return self.explain(ask, exc, situation)

    def situation(self, ask: CastFuture[Any]) -> Situation:
        """Say in which phase an ask is, and for whom it waits. Without the lock."""
        with self._lock:
            situation = self.role.look(ask)
        return self.role.worded(situation)

    def key_in_use(self, key: Key) -> KeyInUseError:
        """Return the error for a call whose key another one has."""
        on_all = " on every rank" if self.is_root else " on this rank"
        return KeyInUseError(
            f"{self.label(key, None)}: a call with this key is still pending here; wait for its future, or use "
            f"another key (this call counts: it consumes a cast{on_all})",
            rank=self._group.rank,
        )

    def rows(self) -> list[Row]:
        """Lines of a dump: see `Rows`."""
        return [self._row(ask) for ask in self.waits.waiting()]

    def _row(self, ask: CastFuture[Any]) -> Row:
        seq = _seq_of(ask)
        which = named(ask.key) or f" (number {ask.nth} without a key)"
        waited = f"waiting {time.monotonic() - ask.since_s:.3f} s of {ask.timeout_s:g} s"
        said, situation = f"{ask.operation}{'' if seq is None else f' #{seq}'}{which}: {waited}", self.role.look(ask)
        return lambda: f"{said}: {self.role.worded(situation).text()}"

    # Asking

    def make_call(
        self, key: Key | None, timeout_s: float, began_s: float, operation: str, *, booked: bool = True
    ) -> CastFuture[Any]:
        """With the lock held: make a call. Every call counts, also one that is refused; that one is not `booked`."""
        engine, nth = self._engine, 0
        if key is None:
            self.unkeyed = nth = self.unkeyed + 1
        engine.asked += 1
        call: CastFuture[Any] = CastFuture(self, key, timeout_s, engine.asked, began_s, operation, nth)
        call.stages = stages = self._plans.get(timeout_s) or self._plan(timeout_s)
        call.next_s = began_s + stages[0][0]
        if self._options.debug:
            call.origin = origin(nth)
        if engine.spans is not None:
            call.traced = engine.spans.opened()
        if booked:
            if key is not None:
                self.pending[key] = call
            self._counters.asked += 1
            if self.waits.add(call):
                self._thread.wake()
        return call

    def _plan(self, timeout_s: float) -> Plan:
        """Return the stages of calls with this time limit. Most calls have the same."""
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        stages = self._plans[timeout_s] = plan(timeout_s, self._options.warn_after_s, ask=self._inquires)
        return stages

    def call_later(
        self,
        payload: object,
        materialize: Callable[[Any], Any] | None,
        key: Key | None,
        timeout_s: float,
        refusal: Exception | None,
        *,
        priority: int = 0,
    ) -> CastFuture[Any]:
        """Hand over a call, and return the future that it will have."""
        future: CastFuture[Any] = CastFuture(self, key)

        def call() -> None:
            try:
                made = self.role.call(payload, materialize, key, timeout_s, refusal, priority=priority)
            except Exception as exc:
                future.settle_error(exc)
            else:
                future.follow(made)

        self._engine.handed.put(call)
        return future

    def ready(self) -> list[Key]:
        """Return the keys of casts that every rank has, and were not returned before. The first call begins to note.

        Raises: ValueError if nobody here can know what every rank has.
        """
        name, rank, root = self._options.name, self._group.rank, self.root
        if rank != root:
            raise ValueError(f"lazycast {name!r}: only the root, rank {root}, knows; this is rank {rank}")
        if not self._options.agree or self._options.placement == "demand":
            raise ValueError(f"lazycast {name!r}: ready() needs agree=True, and another placement than 'demand'")
        with Uninterrupted(), self._lock:
            keys, self.noted_ready = self.noted_ready, []
        return keys or []

    def withdraw(self, ask: CastFuture[Any]) -> bool:
        """`CastFuture.cancel`: an ask that is taken off the books must be settled, or its future never is."""
        if here.depth:
            self._engine.handed.put(self.role.cancel, ask)
            return False
        with Uninterrupted():
            return self.role.cancel(ask)

    def cancel_key(self, key: Key) -> None:
        """Take back the call with this key, if there is one."""
        with Uninterrupted():
            with self._lock:
                self._engine.refuse_if_closed()
                ask = self.pending.get(key)
            if ask is not None:
                self.role.cancel(ask)

    # Settling

    def take(
        self, ask: CastFuture[Any], exc: BaseException | None = None, *, cancelled: bool = False, seq: int | None = None
    ) -> bool:
        """With the lock held: take an ask off the books, and count how it ends: with a value, an error, or `cancelled`.

        True for the one caller who may settle it.
        """
        if ask.taken:
            return False
        ask.taken = True
        now_s, counters = time.monotonic(), self._counters
        if (tracer := self._engine.tracer) is not None:
            self._trace_end(tracer, ask, now_s, exc)
        if cancelled:
            counters.cancelled += 1
        elif exc is not None:
            self._engine.count_failure(exc, ask.key, _seq_of(ask) if seq is None else seq)
        else:
            counters.resolved += 1
            counters.resolved_s.append(now_s)
            counters.noted.append(("total", now_s - ask.since_s))
        if len(counters.noted) > FOLD_AT:
            counters.fold()
        ask.arrival = None  # the two would keep each other, and the value, until the next collection
        ask.payload = MISSING
        self.waits.live.pop(ask, None)
        if ask.inquiry is not None:
            self.role.forget_inquiry(ask)
        if ask.key is not None and self.pending.get(ask.key) is ask:
            del self.pending[ask.key]
        if self.gates.closed:
            self.gates.open()
        if self.held:
            self._thread.wake()  # it may be one of these: now it goes out without its value
        return True

    def settle(self, ask: CastFuture[Any], result: Result) -> None:
        """A call has its value, or has come to nothing."""
        exc, withdrawn = None, False
        if result.failure is not None:
            withdrawn = result.failure.kind == "withdrawn"
            exc = None if withdrawn else self._exception(ask, result)
        with self._lock:
            if not self.take(ask, exc, cancelled=withdrawn):
                return
        if withdrawn:
            ask.settle_cancelled()
        elif exc is not None:
            ask.settle_error(exc)
        else:
            ask.settle(result.value)

    def settle_error(self, ask: CastFuture[Any], exc: LazycastError) -> None:
        """A call ends with an error, if it has not ended."""
        with self._lock:
            taken = self.take(ask, exc)
        if taken:
            ask.settle_error(exc)

    def _trace_end(self, tracer: Tracer, ask: CastFuture[Any], now_s: float, exc: BaseException | None) -> None:
        """With the lock held: note how a call ends."""
        of = self.role.named(ask)
        tracer.took("total", ask.since_s, now_s, of, call=ask.number)
        if exc is not None:
            text = str(exc) if isinstance(exc, LazycastError) else describe(exc)
            tracer.happened("failed", of, call=ask.number, error=type(exc).__name__, text=text)

    # Time

    def _work_in_turn(self) -> float | None:
        handed, notices = self._engine.handed, self._engine.notices
        if handed.waiting:
            handed.do()
        due_s = self.role.work()
        if notices.due_s is None:
            return due_s
        told_s = notices.tell(time.monotonic())
        return told_s if due_s is None else due_s if told_s is None else min(due_s, told_s)

    def _fail(self, exc: BaseException) -> None:
        if self is self._engine.lanes[0].asks:  # once, of all lanes
            log(logger, f"lazycast {self._options.name!r}: the engine failed", exc)
        self.role.engine_failed(exc)

    def on_due(self, stage: Stage, ask: CastFuture[Any]) -> None:
        """A call has waited so long."""
        if stage is Stage.ASK:
            self.role.inquire(ask)
            return
        situation = self.situation(ask)
        if stage is Stage.WARN:
            waited_s = time.monotonic() - ask.since_s
            text = situation.text()
            if (tracer := self._engine.tracer) is not None:
                tracer.happened("still waiting", None, call=ask.number, text=text)
            silent = [silence.rank for silence in situation.silences]
            self._engine.notices.waits(self.label_of(ask), waited_s, text, key=ask.key, seq=_seq_of(ask), silent=silent)
        else:
            self._give_up_late(ask, situation)

    def _give_up_late(self, ask: CastFuture[Any], situation: Situation) -> None:
        """The time of a call is over."""
        late_s = time.monotonic() - ask.since_s - ask.timeout_s
        late = f"; this rank itself did not run for {late_s:.1f} s of that or more" if late_s > _FROZEN_S else ""
        message = f"{self.label_of(ask)}: no value after {ask.timeout_s:g} s: {situation.text()}{late}"
        exc = self.explain(ask, CastTimeoutError(message, rank=self._group.rank), situation)
        failure = self.overdue(ask, situation)
        with self._lock:
            arrival = ask.arrival
            if ask.put_off < _MOST_PUT_OFF and self.role.is_decided(ask):  # somebody is about to settle it
                self._put_off(ask)
                return
            if not self.take(ask, exc):
                return
            ask.late = failure
        self.role.tell_late(ask, arrival)
        ask.settle_error(exc)

    def overdue(self, ask: CastFuture[Any], situation: Situation) -> Failure:
        """Return what the other ranks are told of a call whose time was over."""
        return situation.overdue(self._group.rank, self._group.hosts[self._group.rank], ask.timeout_s)

    def _put_off(self, ask: CastFuture[Any]) -> None:
        """With the lock held: let a call wait a little longer."""
        ask.put_off += 1
        ask.passed -= 1
        ask.next_s = time.monotonic() + _AGAIN_S
        self.waits.add(ask)

    # The end

    def idle_gate(self) -> threading.Lock | None:
        """Return what opens when something has changed, or None if `close` has nothing to wait for."""
        with Uninterrupted(), self._lock:
            return self.gates.watch() if len(self.waits) or self.role.busy() else None

    def fail_what_waits(self, timeout_s: float) -> None:
        """End all calls: this rank closes the object, after it has waited for so long."""
        with self._lock:
            left = self.waits.waiting()
        for ask in left:
            situation = self.situation(ask)
            text = f"{self.label_of(ask)}: this rank closed the object after waiting {timeout_s:g} s: "
            closed = ClosedError(text + situation.text(), rank=self._group.rank)
            self.settle_error(ask, self.explain(ask, closed, situation))


def _seq_of(ask: CastFuture[Any]) -> int | None:
    return ask.arrival.message.seq if ask.arrival is not None else None

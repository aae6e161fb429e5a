"""The calls of one rank: who asked for what, until when, and how each call ends.

Guarantees:

* One lock guards all state of an object on a rank. It is held for decisions only: nothing is sent, settled, decoded or
  run under it.
* A future is settled exactly once, by whoever takes its ask off the books first (`_take`).
* The engine thread keeps time: it warns, asks and gives up when an ask is due. It never runs a materializer.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lazycast.engine.arrival import Arrival
from lazycast.engine.ask import Ask
from lazycast.engine.clock import Clock
from lazycast.engine.divergence import origin
from lazycast.engine.interrupts import Uninterrupted
from lazycast.engine.performer import Group, Performer, Result
from lazycast.engine.records import Records
from lazycast.engine.situation import Situation
from lazycast.engine.waits import Stage, Wait, plan
from lazycast.engine.workers import Workers, inside, role_of
from lazycast.errors import CastTimeoutError, ClosedError, KeyInUseError, LazycastError, ReentrantCallError
from lazycast.future import CastFuture
from lazycast.here import call_out
from lazycast.missing import MISSING
from lazycast.options import Options
from lazycast.trust import policy_of
from lazycast.wire import Key

logger = logging.getLogger("lazycast")

#: A wait that ends so much too late was not looked at: this process was stopped, or did not get to run (seconds).
_FROZEN_S = 1.0
#: How long, and how often, a call whose time is over waits for a verdict that has been given (seconds).
_AGAIN_S, _MOST_PUT_OFF = 0.01, 200


class Desk(Records):
    """What all kinds of lanes share: the books on asks, and the clock."""

    _inquires = True  # whether there is anybody to ask about a call that waits long

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._policy = policy_of(options)
        self._changed = threading.Condition(self._lock)
        self._watching = 0  # how many threads wait for `_changed`: to notify nobody takes 2 µs, several times a cast
        self._pending: dict[Key, Ask] = {}  # asks with a key whose future is not done
        self._asked = self._unkeyed = 0
        self._performer = Performer(self, group, options.executor, f"lazycast-{options.name}-work")
        self._callbacks = Workers(1, f"lazycast-{options.name}-callback")
        self._clock: Clock[Ask] = Clock(
            self._waits,
            self._lock,
            on_due=self._on_due,
            work=self._work,
            on_failure=self._fail,
            name=f"lazycast-{options.name}-engine",
        )

    # Asking

    @abstractmethod
    def call(
        self,
        payload: object,
        materialize: Callable[[Any], Any] | None,
        key: Key | None,
        timeout_s: float,
        refusal: Exception | None = None,
        *,
        here: bool = False,
    ) -> CastFuture[Any]:
        """Cast (root) or ask (elsewhere). With `refusal` the call only counts, and raises it.

        With `here` the caller is about to wait for the future, so its thread may do some of the work.
        """

    @abstractmethod
    def discard(self, key: Key) -> None:
        """This rank will not ask for the next cast with this key."""

    def has_room(self) -> bool:
        """Whether `call` would not be held back now."""
        return True

    def guard(self, what: str) -> None:
        """Refuse a call that would wait for itself, or for threads that a fork has left behind."""
        self.refuse_after_fork()
        reentrant = self.reentrant(what)
        if reentrant is not None:
            raise reentrant

    def _guard_result(self) -> None:
        self.guard("result()")

    def reentrant(self, what: str) -> ReentrantCallError | None:
        role = role_of(self)
        if role is None:
            return None
        return ReentrantCallError(
            f"{what} would block inside a {role} of the same lazycast object {self._options.name!r}, which may be what "
            "it waits for; use broadcast_async and callbacks there"
        )

    def _wait_changed(self, timeout_s: float) -> None:
        """With the lock held: wait until something has changed."""
        self._watching += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._watching -= 1

    def _notify(self) -> None:
        """With the lock held: something has changed."""
        if self._watching:
            self._changed.notify_all()

    def _refuse_if_closed(self) -> None:
        """With the lock held."""
        if self._closing:
            raise ClosedError(f"lazycast {self._options.name!r} is closed on this rank", rank=self._group.rank)

    def _make_ask(self, key: Key | None, timeout_s: float, began_s: float, operation: str) -> Ask:
        """With the lock held: make an ask; every call counts, also one that is refused."""
        self._asked += 1
        nth = 0
        if key is None:
            nth = self._unkeyed = self._unkeyed + 1
        future: CastFuture[Any] = CastFuture(
            label=functools.partial(self._label, key, None, nth),  # only if somebody looks
            withdraw=lambda: self._withdraw(ask),
            run_callback=self._run_callback,
            guard=self._guard_result,
        )
        ask = Ask(key, timeout_s, future, self._asked, began_s, operation, nth)
        if self._options.debug:
            ask.origin = origin(nth)
        ask.wait = Wait(ask, began_s, plan(began_s, timeout_s, self._options.warn_after_s, ask=self._inquires))
        return ask

    def _book(self, ask: Ask) -> None:
        """With the lock held: put an ask on the books."""
        if ask.key is not None:
            self._pending[ask.key] = ask
        self._counters.asked += 1
        if self._waits.add(ask.wait):
            self._clock.wake()

    def _key_in_use(self, key: Key) -> KeyInUseError:
        on_all = " on every rank" if self._group.rank == self._group.root else " on this rank"
        return KeyInUseError(
            f"{self._label(key, None)}: a call with this key is still pending here; wait for its future, or use "
            f"another key (this call counts: it consumes a cast{on_all})",
            rank=self._group.rank,
        )

    def _run_callback(self, fn: Callable[[], None]) -> None:
        def task() -> None:
            with inside(self, "callback"):
                call_out(fn)

        self._callbacks.submit(task)

    def _withdraw(self, ask: Ask) -> bool:
        """`CastFuture.cancel`: an ask that is taken off the books must be settled, or its future never is."""
        with Uninterrupted():
            return self._cancel(ask)

    @abstractmethod
    def _cancel(self, ask: Ask) -> bool:
        """The same; an interrupt waits for its end."""

    # Settling

    def _take(self, ask: Ask) -> bool:
        """With the lock held: take an ask off the books. True for the one caller who may settle its future."""
        if ask.taken:
            return False
        ask.taken = True
        ask.arrival = None  # the two would keep each other, and the value, until the next collection
        ask.payload = MISSING
        self._waits.end(ask.wait)
        if ask.key is not None and self._pending.get(ask.key) is ask:
            del self._pending[ask.key]
        self._notify()
        return True

    def _settle(self, ask: Ask, result: Result) -> None:
        if result.failure is not None and result.failure.kind == "withdrawn":
            exc: LazycastError | None = None
        elif result.failure is not None:
            exc = self._exception(ask, result)
        else:
            exc = None
        with self._lock:
            if (tracer := self._tracer) is not None and not ask.taken:
                self._trace_end(tracer, ask, exc)
            if not self._take(ask):
                return
            if result.failure is None:
                now_s = time.monotonic()
                self._counters.resolve(now_s, now_s - ask.since_s)
            elif exc is None:
                self._counters.cancelled += 1
            else:
                self._counters.count_failure(exc)
        if result.failure is None:
            ask.future.settle(result.value)
        elif exc is None:
            ask.future.settle_cancelled()
        else:
            ask.future.settle_error(exc)

    def _settle_error(self, ask: Ask, exc: LazycastError) -> None:
        with self._lock:
            taken = self._take_failed(ask, exc)
        if taken:
            ask.future.settle_error(exc)

    def _take_failed(self, ask: Ask, exc: LazycastError) -> bool:
        """With the lock held: take an ask off the books that ends with an error."""
        if (tracer := self._tracer) is not None and not ask.taken:
            self._trace_end(tracer, ask, exc)
        if not self._take(ask):
            return False
        self._counters.count_failure(exc)
        return True

    # Time

    def _fail(self, exc: BaseException) -> None:
        logger.error("lazycast %r: the engine failed", self._options.name, exc_info=exc)
        self._engine_failed(exc)

    @abstractmethod
    def _engine_failed(self, exc: BaseException) -> None:
        """Make sure that nobody waits for this rank any more."""

    @abstractmethod
    def _work(self) -> float | None:
        """Engine thread: do what is queued; return when to come back at the latest."""

    def _on_due(self, stage: Stage, ask: Ask) -> None:
        if stage is Stage.ASK:
            self._inquire(ask)
            return
        situation = self._situation(ask)
        if stage is Stage.WARN:
            waited_s = time.monotonic() - ask.since_s
            text = situation.text()
            if (tracer := self._tracer) is not None:
                tracer.happened("still waiting", None, call=ask.number, text=text)
            logger.warning("%s: still waiting after %.1f s: %s", self._ask_label(ask), waited_s, text)
        else:
            self._give_up_late(ask, situation)

    def _give_up_late(self, ask: Ask, situation: Situation) -> None:
        """The time of a call is over."""
        late_s = time.monotonic() - ask.wait.deadline_s
        late = f"; this rank itself did not run for {late_s:.1f} s of that or more" if late_s > _FROZEN_S else ""
        message = f"{self._ask_label(ask)}: no value after {ask.timeout_s:g} s: {situation.text()}{late}"
        exc = self._explain(ask, CastTimeoutError(message, rank=self._group.rank), situation)
        failure = situation.overdue(self._group.rank, self._group.hosts[self._group.rank], ask.timeout_s)
        with self._lock:
            arrival = ask.arrival
            if ask.put_off < _MOST_PUT_OFF and self._is_decided(ask):  # somebody is about to settle it
                self._put_off(ask)
                return
            if not self._take_failed(ask, exc):
                return
            ask.late = failure
        self._tell_late(ask, arrival)
        ask.future.settle_error(exc)

    def _is_decided(self, ask: Ask) -> bool:
        """With the lock held: whether a verdict on a call's cast has been given here that has not reached the call."""
        return False

    def _put_off(self, ask: Ask) -> None:
        """With the lock held: let a call wait a little longer."""
        ask.put_off += 1
        self._waits.end(ask.wait)
        ask.wait = Wait(ask, ask.since_s, ((time.monotonic() + _AGAIN_S, Stage.GIVE_UP),))
        self._waits.add(ask.wait)

    @abstractmethod
    def _tell_late(self, ask: Ask, arrival: Arrival | None) -> None:
        """The time of a call is over here: if its cast is to be everybody's or nobody's, it will be nobody's."""

    @abstractmethod
    def _inquire(self, ask: Ask) -> None:
        """Find out from the root whom this ask waits for, and who does not answer."""

    # The end

    def close(self, timeout_s: float) -> None:
        """Wait for pending calls up to `timeout_s`, fail the rest, say farewell, stop. Idempotent."""
        if self._forked:
            return
        with self._lock:
            first, self._closing = not self._closing, True
            self._notify()
        if not first:
            self._closed.wait(timeout_s)
            return
        deadline_s = time.monotonic() + timeout_s
        try:
            with self._lock:
                while self._busy() and (left_s := deadline_s - time.monotonic()) > 0:
                    self._wait_changed(left_s)
        finally:  # an interrupt of the waiting must not leave the object half closed
            self._finish(timeout_s, deadline_s)

    def _finish(self, timeout_s: float, deadline_s: float) -> None:
        with self._lock:
            left = self._waits.waiting()
        for ask in left:
            situation = self._situation(ask)
            text = f"{self._ask_label(ask)}: this rank closed the object after waiting {timeout_s:g} s: "
            closed = ClosedError(text + situation.text(), rank=self._group.rank)
            self._settle_error(ask, self._explain(ask, closed, situation))
        try:
            self._disconnect(max(1.0, deadline_s - time.monotonic()))
        finally:
            self._clock.stop()
            self._performer.stop()
            self._callbacks.stop()
            if (tracer := self._tracer) is not None:
                tracer.stop()
            self._closed.set()

    @abstractmethod
    def _disconnect(self, timeout_s: float) -> None:
        """Say farewell to the other ranks."""

    def _busy(self) -> bool:
        """With the lock held: whether `close` has something to wait for."""
        return len(self._waits) > 0

    def after_fork_in_child(self) -> None:
        """Only the forking thread is alive, and any lock may be held: touch none."""
        self._forked = True
        self._tracer = None  # it closes its file itself

"""The calls of one rank: who asked for what, until when, and how each call ends.

Guarantees:

* A future is settled exactly once, by whoever takes its ask off the books first (`_take`).
* What comes in the middle of lazycast's own work in the same thread, from a finalizer that the collector runs there,
  may look: the lock lets it in. What would change something is handed over (`hand_over`), and done as soon as somebody
  is between two pieces of work: whoever calls next, or the engine thread.
* The engine thread keeps time: it warns, asks and gives up when an ask is due. It never runs a materializer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Protocol, cast

from lazycast.codec.trust import policy_of
from lazycast.core.arrival import Arrival
from lazycast.core.ask import Ask
from lazycast.core.divergence import origin
from lazycast.core.engine import Engine, Taken
from lazycast.core.future import CastFuture
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.performer import Group, Result
from lazycast.core.records import Records
from lazycast.core.situation import Situation
from lazycast.core.waits import Plan, Stage, plan
from lazycast.core.workers import inside, role_of, unforked
from lazycast.errors import CastTimeoutError, ClosedError, KeyInUseError, LazycastError, ReentrantCallError
from lazycast.here import call_out, here
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key
from lazycast.options import Options, shown
from lazycast.tracebacks import log

logger = logging.getLogger("lazycast")

#: A wait that ends so much too late was not looked at: this process was stopped, or did not get to run (seconds).
_FROZEN_S = 1.0
#: How long, and how often, a call whose time is over waits for a verdict that has been given (seconds).
_AGAIN_S, _MOST_PUT_OFF = 0.01, 200
_MOST_PLANS = 64


class Gate(Protocol):
    """What is opened when something has changed: a lock, or what wakes somebody else. With the lane's lock held."""

    def release(self) -> object: ...


class Waker:
    """A gate that wakes somebody who does not stand at one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.release = wake


class Desk(Records):
    """What all kinds of lanes share: the books on asks, and the clock."""

    _inquires = True  # whether there is anybody to ask about a call that waits long

    def __init__(self, group: Group, options: Options, engine: Engine | None = None) -> None:
        super().__init__(group, options, engine)
        self._policy = policy_of(options, same_program=group.same_program)
        self._gates: list[Gate] = []  # of who waits for a change, each opened once
        self.handed, self._handing = self.engine.handed, self.engine.handing  # of all lanes, in one order
        self._pending: dict[Key, Ask] = {}  # asks with a key whose future is not done
        self._unkeyed = 0
        self._plans: dict[float, Plan] = {}  # by time limit
        self._noted_ready: list[Key] | None = None  # keys of casts that every rank has, once somebody wants to know
        self._held: Collection[Any] = ()  # on the root, calls that are ready and not sent
        self.engine.lanes.append(self)
        self._clock.serve(self._waits, on_due=self._on_due, work=self._work_in_turn, on_failure=self._fail)

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
        block: bool = True,
        priority: int = 0,
        counted: list[bool] | None = None,
    ) -> CastFuture[Any]:
        """Cast (root) or ask (elsewhere). With `refusal` the call only counts, and raises it.

        With `here` the caller is about to wait for the future, so its thread may do some of the work. Without `block`
        a call that would have to wait for room raises WouldBlockError, and does not count. Of the casts that wait to be
        made, those with the highest `priority` come first. `counted` gets something in it as soon as the call counts,
        or is not to.
        """

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        """Ask for what came first of all that nobody here has asked for, and put it into `taken`.

        That stays empty if nothing comes within `wait_s`, and, with `looks`, once the root has closed and nothing more
        can come, which raises else. With `keyed` what came without a key is left. `timeout_s` is the call's own limit.
        """
        raise ValueError(f"lazycast {self._options.name!r}: next() is for the other ranks; the root has its futures")

    @property
    def root(self) -> int:
        """Whose casts these are."""
        return self._group.root

    @property
    def is_root(self) -> bool:
        """Whether they are this rank's."""
        return self._group.rank == self._group.root

    def of(self, root: int | None) -> Desk:
        """Return the lane of a root's casts; without one, this rank's own.

        Raises: ValueError if that rank is no root, or there is no such rank.
        """
        if root is None:
            return self
        given: object = root
        if not isinstance(given, bool):
            with contextlib.suppress(TypeError):
                given = operator.index(root)
        if len(self.lanes) > 1 or self._options.roots == "any":
            if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < self._group.size:
                last = self._group.size - 1
                raise ValueError(f"lazycast {self._options.name!r}: root={shown(given)} is no rank: 0 to {last}")
            return cast(Desk, self.lanes[given])
        if given != self._group.root or isinstance(given, bool):
            raise ValueError(
                f"lazycast {self._options.name!r}: the root is rank {self._group.root}, not {shown(given)}; "
                "LazyBroadcast(roots='any') lets every rank cast"
            )
        return self

    def when_come(self, wake: Callable[[], None]) -> bool:
        """Whether `next_call` would return, or raise, now; else `wake` is called, from any thread, when it may."""
        return True

    def ready(self) -> list[Key]:
        """Return the keys of casts that every rank has, and were not returned before. The first call begins to note."""
        self._check_ready()
        with Uninterrupted(), self._lock:
            keys, self._noted_ready = self._noted_ready, []
        return keys or []

    def _check_ready(self) -> None:
        """Raise if nobody here can know what every rank has."""
        name, rank, root = self._options.name, self._group.rank, self._group.root
        if rank != root:
            raise ValueError(f"lazycast {name!r}: only the root, rank {root}, knows; this is rank {rank}")
        if not self._options.agree or self._options.placement == "demand":
            raise ValueError(f"lazycast {name!r}: ready() needs agree=True, and another placement than 'demand'")

    @abstractmethod
    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        """This rank will not ask for the next cast with this key."""

    def discard_of(self, root: int | None, key: Key) -> None:
        """The same of a root's cast. Handed over, by a call that was interrupted."""
        with contextlib.suppress(ValueError):  # there is no such root: nothing was to be given up
            self.of(root).discard(key)

    def count_missed(self, key: Key | None, exc: BaseException, root: int | None = None) -> None:
        """Count a call that `exc` ended before it did. Handed over: whoever makes calls may be interrupted again."""
        with contextlib.suppress(ValueError):  # there is no such root: the call was no good
            self.of(root)._count_missed(key, exc)

    @abstractmethod
    def _count_missed(self, key: Key | None, exc: BaseException) -> None:
        """The same, of this lane's root."""

    def has_room(self) -> bool:
        """Whether `call` would not be held back now."""
        return True

    def when_room(self, wake: Callable[[], None]) -> bool:
        """Whether `call` would not be held back now; else `wake` is called, from any thread, when that may change."""
        return True

    def guard(self, what: str) -> None:
        """Refuse a call that would wait for itself, or for threads that a fork has left behind."""
        self.refuse_after_fork()
        reentrant = self.reentrant(what)
        if reentrant is not None:
            raise reentrant

    def _guard_result(self) -> None:
        if not here.depth and not here.roles and not self.engine.forked:
            return
        in_the_middle = self.in_the_middle("result()")
        if in_the_middle is not None:
            raise in_the_middle
        self.guard("result()")

    def reentrant(self, what: str) -> ReentrantCallError | None:
        role = role_of(self.engine)
        if role is None:
            return None
        return self._reentrant(what, role)

    def in_the_middle(self, what: str) -> ReentrantCallError | None:
        """The same for a call that comes in the middle of our own work: made here it would wait for that."""
        if not here.depth:
            return None
        return ReentrantCallError(
            f"{what} would block inside a finalizer, or what else runs in the middle of lazycast's own work on this "
            "thread, be it another object's, which may be what it waits for; use broadcast_async and callbacks there, "
            "and close() elsewhere"
        )

    def _reentrant(self, what: str, role: str) -> ReentrantCallError:
        return ReentrantCallError(
            f"{what} would block inside a {role} of the same lazycast object {self._options.name!r}, which may be what "
            "it waits for; use broadcast_async and callbacks there"
        )

    def _watch(self) -> threading.Lock:
        """With the lock held: return a gate that opens as soon as something has changed.

        To be waited for without the lock: no interrupt of the waiting can then leave that locked, or half taken.
        """
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        return gate

    def _unwatch(self, gate: threading.Lock) -> None:
        """With the lock held: nobody stands at a gate any more."""
        if gate in self._gates:
            self._gates.remove(gate)

    def forget_waker(self, wake: Callable[[], None]) -> None:
        """Whoever was to be woken waits no more."""
        with Uninterrupted(), self._lock:
            for lane in cast("list[Desk]", self.lanes):
                lane._gates = [gate for gate in lane._gates if not (isinstance(gate, Waker) and gate.release is wake)]

    def wake_at_change(self, wake: Callable[[], None]) -> None:
        """With the lock held: have `wake` called, once, from any thread, when something has changed."""
        self._gates.append(Waker(wake))

    def tell_changed(self) -> None:
        """Something has changed that somebody may wait for, of this root or another."""
        with Uninterrupted(), self._lock:
            for lane in cast("list[Desk]", self.lanes):
                lane._notify()

    def _notify(self) -> None:
        """With the lock held: something has changed."""
        while self._gates:
            self._gates.pop().release()

    # What comes in the middle of our own work

    def wake(self) -> None:
        """Something was handed over."""
        self._clock.wake()

    def hand_over(self, fn: Callable[..., object], *args: object) -> None:
        """Have something done that cannot be done in the middle of what this thread is at."""
        self.handed.append((fn, args))
        self._clock.wake()
        if self.engine.closed.is_set():
            # Nobody else will, unless they are at it; and by now it can only fail. Not to be waited for: this thread is
            # in the middle of its work, and may hold what whoever is at it waits for.
            self.do_handed(wait=False)

    def do_handed(self, *, wait: bool = True) -> None:
        """Do what was handed over, in its order. Call it before anything that takes a place in line, without the lock.

        Without `wait`, what another thread is doing is left to that one, which looks again when it is done.
        """
        if role_of(self.engine) == "finalizer":
            return  # it is being done: what comes first is in the middle of its own call
        with Uninterrupted(), inside(self.engine, "finalizer"):
            while self.handed and self._handing.acquire(blocking=wait):
                try:
                    self._do_first()
                finally:
                    self._handing.release()

    def _do_first(self) -> None:
        """Do what was handed over first. It stays there meanwhile, so that other threads' calls come after it."""
        if not self.handed:  # another thread has done it
            return
        fn, args = self.handed[0]
        try:
            fn(*args)
        except ClosedError as exc:  # closed meanwhile; whoever asked for it has gone on
            logger.debug("lazycast: what was handed over came too late: %s", exc)
        finally:
            self.handed.popleft()

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
        future: CastFuture[Any] = CastFuture(
            label=functools.partial(self._label, key, None),
            withdraw=lambda: False,  # there is nothing yet
            run_callback=self._run_callback,
            guard=self._guard_result,
            root=self._group.root,
        )

        def call() -> None:
            try:
                made = self.call(payload, materialize, key, timeout_s, refusal, priority=priority)
            except Exception as exc:
                future.settle_error(exc)
            else:
                future.follow(made)

        self.hand_over(call)
        return future

    def _work_in_turn(self) -> float | None:
        if self.handed:
            self.do_handed()
        due_s = self._work()
        if self.notices.due_s is None:
            return due_s
        told_s = self.notices.tell(time.monotonic())
        return told_s if due_s is None else due_s if told_s is None else min(due_s, told_s)

    def _refuse_if_closed(self) -> None:
        """With the lock held."""
        if self.engine.closing:
            raise ClosedError(f"lazycast {self._options.name!r} is closed on this rank", rank=self._group.rank)

    def _make_ask(self, key: Key | None, timeout_s: float, began_s: float, operation: str) -> Ask:
        """With the lock held: make an ask; every call counts, also one that is refused."""
        nth = self._unkeyed + 1 if key is None else 0
        future: CastFuture[Any] = CastFuture(
            label=functools.partial(self._label, key, None, nth),  # only if somebody looks
            withdraw=lambda: self._withdraw(ask),
            run_callback=self._run_callback,
            guard=self._guard_result,
            root=self._group.root,
        )
        stages = self._plans.get(timeout_s) or self._plan(timeout_s)
        next_s = began_s + stages[0][0]
        ask = Ask(key, timeout_s, future, self.engine.asked + 1, began_s, operation, nth, stages, next_s=next_s)
        if self._options.debug:
            ask.origin = origin(nth)
        if self.engine.spans is not None:
            ask.traced = self.engine.spans.opened()
        self.engine.asked += 1
        self._unkeyed += key is None
        return ask

    def _plan(self, timeout_s: float) -> Plan:
        """Return the stages of calls with this time limit. Most calls have the same."""
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        stages = self._plans[timeout_s] = plan(timeout_s, self._options.warn_after_s, ask=self._inquires)
        return stages

    def _book(self, ask: Ask) -> None:
        """With the lock held: put an ask on the books."""
        if ask.key is not None:
            self._pending[ask.key] = ask
        self._counters.asked += 1
        if self._waits.add(ask):
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
            with inside(self.engine, "callback"), unforked():
                call_out(fn)

        self._callbacks.submit(task)

    def _withdraw(self, ask: Ask) -> bool:
        """`CastFuture.cancel`: an ask that is taken off the books must be settled, or its future never is."""
        if here.depth:
            self.hand_over(self._cancel, ask)
            return False
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
        self._waits.live.pop(ask, None)
        if ask.inquiry is not None:
            self._forget_inquiry(ask)
        if ask.key is not None and self._pending.get(ask.key) is ask:
            del self._pending[ask.key]
        if self._gates:
            self._notify()
        if self._held:
            self._clock.wake()  # it may be one of these: now it goes out without its value
        return True

    def _forget_inquiry(self, ask: Ask) -> None:
        """With the lock held: the root was asked about a call that has ended."""

    def _settle(self, ask: Ask, result: Result) -> None:
        exc: LazycastError | None = None
        if result.failure is not None and result.failure.kind != "withdrawn":
            exc = self._exception(ask, result)
        with self._lock:
            if (tracer := self.engine.tracer) is not None and not ask.taken:
                self._trace_end(tracer, ask, exc)
            if not self._take(ask):
                return
            if result.failure is None:
                now_s = time.monotonic()
                self._counters.resolve(now_s, now_s - ask.since_s)
            elif exc is None:
                self._counters.cancelled += 1
            else:
                self._count_failure(exc, ask.key, exc.seq)
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
        if (tracer := self.engine.tracer) is not None and not ask.taken:
            self._trace_end(tracer, ask, exc)
        if not self._take(ask):
            return False
        self._count_failure(exc, ask.key, exc.seq)
        return True

    def _count_failure(self, exc: BaseException, key: Key | None, seq: int | None) -> None:
        """With the lock held: count a call that failed, and have the engine's thread log it."""
        self._counters.count_failure(exc)
        self.notices.failed(exc, time.monotonic(), key=key, seq=seq)
        self._clock.wake()

    # Time

    def _fail(self, exc: BaseException) -> None:
        if self is self.lanes[0]:  # once, of all lanes
            log(logger, f"lazycast {self._options.name!r}: the engine failed", exc)
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
            if (tracer := self.engine.tracer) is not None:
                tracer.happened("still waiting", None, call=ask.number, text=text)
            silent = [silence.rank for silence in situation.silences]
            label, seq = self._ask_label(ask), self._seq_of(ask)
            self.notices.waits(label, waited_s, text, key=ask.key, seq=seq, silent=silent)
        else:
            self._give_up_late(ask, situation)

    def _give_up_late(self, ask: Ask, situation: Situation) -> None:
        """The time of a call is over."""
        late_s = time.monotonic() - ask.since_s - ask.timeout_s
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
        ask.passed -= 1
        ask.next_s = time.monotonic() + _AGAIN_S
        self._waits.add(ask)

    @abstractmethod
    def _tell_late(self, ask: Ask, arrival: Arrival | None) -> None:
        """The time of a call is over here: if its cast is to be everybody's or nobody's, it will be nobody's."""

    @abstractmethod
    def _inquire(self, ask: Ask) -> None:
        """Find out from the root whom this ask waits for, and who does not answer."""

    # The end

    def close(self, timeout_s: float) -> None:
        """Wait for pending calls up to `timeout_s`, fail the rest, say farewell, stop. Idempotent."""
        self.engine.close(timeout_s)

    def idle_gate(self) -> threading.Lock | None:
        """Return what opens when something has changed, or None if `close` has nothing to wait for."""
        with Uninterrupted(), self._lock:
            return self._watch() if self._busy() else None

    def fail_what_waits(self, timeout_s: float) -> None:
        """End all calls: this rank closes the object, after it has waited for so long."""
        with self._lock:
            left = self._waits.waiting()
        for ask in left:
            situation = self._situation(ask)
            text = f"{self._ask_label(ask)}: this rank closed the object after waiting {timeout_s:g} s: "
            closed = ClosedError(text + situation.text(), rank=self._group.rank)
            self._settle_error(ask, self._explain(ask, closed, situation))

    def hear_losses(self) -> None:
        """Learn of the ranks that another lane knows to be lost."""

    @abstractmethod
    def disconnect(self, timeout_s: float) -> None:
        """Say farewell to the other ranks."""

    def forget(self) -> None:
        """Let go of all casts: nothing more can come."""
        if self._store is not None:
            self._store.close()

    def _busy(self) -> bool:
        """With the lock held: whether `close` has something to wait for."""
        return len(self._waits) > 0

    def after_fork_in_child(self) -> None:
        """Only the forking thread is alive, and any lock may be held: touch none."""
        self.engine.after_fork_in_child()
        self._performer.close_after_fork()

    def begin_helpers(self, timeout_s: float) -> Failure | None:
        """Start the helpers of this rank, if it has any, in the background.

        With an `init`, wait until each has called it. Returns why one could not, or did not in time. Blocking: then.
        """
        maker = self.engine.maker
        if maker is None or self._options.helpers is None:
            return None
        maker.pool.start()
        return maker.pool.wait_ready(timeout_s) if self._options.helpers.init is not None else None

"""One call of one rank: the `concurrent.futures.Future` that its caller holds, also awaitable, and what is known of it.

Guarantees:

* What is known of a call is guarded by the lock of its rank's lane.
* It is settled once, by the engine alone: `cancel` asks it, and it decides under one lock who was first.
* Looking at one that is done takes no lock; what takes the base class's is not interrupted: a thread that left it
  locked would stop the engine.
* The base class's condition is made when somebody needs it (`concurrent.futures.wait`, a callback): most futures are
  only waited for, at a gate, and to make the condition and to notify nobody costs as much as all the rest.
* Callbacks never run on lazycast's own threads that move messages: they go to the object's callback thread, or run in
  the thread that adds them if the future is done.
* Cancelling a task that awaits it cancels the waiting only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lazycast.core.interrupts import Uninterrupted
from lazycast.core.waits import Plan
from lazycast.here import here
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key, Origin, Status
from lazycast.tracebacks import log

if TYPE_CHECKING:
    from lazycast.core.arrival import Arrival
    from lazycast.core.asks import Asks
    from lazycast.core.spans import Traced

V = TypeVar("V")

logger = logging.getLogger("lazycast")

# Names of the base class.
_PENDING, _FINISHED = "PENDING", "FINISHED"
_CANCELLED = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED"})
_SETTLED = _CANCELLED | {_FINISHED}

#: How often whoever waits looks whether it has missed the end (seconds).
_LOOK_AGAIN_S = 5.0
_UNUSED = threading.Condition()  # in the place of a condition that nobody has needed until the future was settled


def _call(fn: Callable[[Any], object], future: object) -> None:
    try:
        fn(future)
    except BaseException as exc:  # as above all in concurrent.futures, a callback harms nobody else
        log(logger, f"lazycast: a callback of {future!r} raised", exc)


class Inquiry(msgspec.Struct, eq=False):
    """A question to the root about a call that waits long."""

    asked_s: float
    status: Status | None = None  # its answer
    relayed: set[int] = msgspec.field(default_factory=set)  # the ranks that have passed it on


class CastFuture(concurrent.futures.Future[V]):
    """What `LazyBroadcast.broadcast_async` returns.

    Works with `concurrent.futures.wait`, `as_completed`, `add_done_callback`, `asyncio.wrap_future` and, in
    asyncio's loops and uvloop's, `await`.
    """

    # What the base class's constructor sets, but for the condition.
    _state = _PENDING
    _result: Any = None
    _exception: BaseException | None = None

    stages: Plan = ()  # what is to be done about it when it waits long
    passed = 0  # of these
    next_s = 0.0  # when the next one is due
    arrival: Arrival | None = None
    taken = False  # settled, or given up: what arrives for it is dropped
    late: Failure | None = None  # its time was over
    put_off = 0  # how often its end was put off, for a verdict that had been given
    origin: Origin | None = None  # where it was made, in debug mode
    inquiry: Inquiry | None = None  # what came of asking the root about it, the last time
    payload: Any = MISSING  # of this rank's own, where payloads are replicated
    mark: bytes | Exception | None = None  # its fingerprint, if that has been tried
    traced: Traced | None = None  # where calls are followed
    _follows: CastFuture[V] | None = None  # the call that was made for this one, which had been handed over

    def __init__(
        self,
        asks: Asks,
        key: Key | None = None,
        timeout_s: float = math.inf,
        number: int = 0,
        since_s: float = 0.0,
        operation: str = "cast",
        nth: int = 0,
    ) -> None:
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._asks = asks  # whose books it is on
        #: The rank whose cast it is.
        self.root = asks.root
        self.key, self.timeout_s, self.since_s, self.operation = key, timeout_s, since_s, operation
        self.number = number  # of this rank's calls, from 1; 0: it was handed over, and has not been made
        self.nth = nth  # of the calls without a key; 0 with one
        self._gate = threading.Lock()  # open once it is settled
        self._gate.acquire()

    if not TYPE_CHECKING:  # to whom it is an attribute, as of the base class

        @property
        def _condition(self) -> threading.Condition:
            condition = self.__dict__.setdefault("_made", threading.Condition())
            if condition is _UNUSED:  # it is settled, or in the next step: whoever then takes a lock finds it so
                while self._state not in _SETTLED:
                    time.sleep(0)
                return self.__dict__.setdefault("_late", threading.Condition())
            return condition

    def __repr__(self) -> str:
        return f"<CastFuture {self._asks.label(self.key, None, self.nth or None)} {self._state.lower()}>"

    def cancel(self) -> bool:
        """Give up this cast.

        On the root this withdraws it, also after it was sent: what has not begun to be made never is, what is being
        made can learn of it (`lazycast.cancelled`), and with `agree=True` everyone's future is cancelled, or nobody's.
        It returns False once the cast has its verdict: every rank has the value, or the error. Without agreement ranks
        that have their value keep it. On the other ranks it is a `discard`: this rank will not get the value.
        """
        if self._state in _SETTLED:
            return self.cancelled()
        if not self.number:
            return self._follows is not None and self._follows.cancel()
        return self._asks.withdraw(self)

    def done(self) -> bool:
        """Whether it has been settled.

        Without the base class's condition: an interrupt at the wrong moment would leave that locked for good.
        """
        return self._state in _SETTLED

    def result(self, timeout: float | None = None) -> V:
        """Return the value, waiting up to `timeout` seconds.

        Raises:
            concurrent.futures.TimeoutError: `timeout` has ended before the cast's own time limit.
            ReentrantCallError: called, before it is done, from a materializer or callback of the same object.
            LazycastError: the cast's own error.
        """
        if self._state not in _SETTLED:
            self._wait(timeout)
        if self._state == _FINISHED and self._exception is None:
            value: V = self._result
            return value
        exc = self._outcome()
        assert exc is not None
        try:
            raise exc
        finally:
            del exc, self  # the traceback leads here: the error, and the future, would live until the next collection

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the cast's error or None, waiting as `result` does."""
        if self._state not in _SETTLED:
            self._wait(timeout)
        return self._outcome()

    def _outcome(self) -> BaseException | None:
        if not self.done():
            raise concurrent.futures.TimeoutError
        if self.cancelled():
            raise concurrent.futures.CancelledError
        return self._exception

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state in _CANCELLED

    def running(self) -> bool:
        """Whether somebody is at work on it that cannot be stopped: never, as far as can be seen from here."""
        return False

    def _wait(self, timeout: float | None) -> None:
        # At a gate, not at the base class's condition: whoever wakes there needs a second lock, which the thread that
        # woke it still holds. That costs 10 µs and often another switch of threads, for each blocking call.
        asks = self._asks
        if here.depth or here.roles or asks.forked:
            asks.guard_result()
        end_s = math.inf if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            if self._gate.acquire(timeout=max(0.0, min(_LOOK_AGAIN_S, end_s - time.monotonic()))):
                self._gate.release()
                return
            # Whoever was interrupted between the two lines above has left it locked for all others.
            if self.done() or time.monotonic() >= end_s:
                return

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[V]], object]) -> None:
        """Call `fn(future)` when done: at once in this thread if it is, else on the object's callback thread.

        Raises: TypeError for what `asyncio.wait` adds, which works in the thread of its loop only and would never wake.
        """
        if getattr(fn, "__module__", None) == "asyncio.tasks":
            raise TypeError(
                f"asyncio.wait() takes tasks, and {self!r} is none: make it one with asyncio.ensure_future(future)"
            )
        if self.done():
            _call(fn, self)
        else:
            # The base class keeps callbacks for good: one that led back here would keep the value until a collection.
            run = self._asks.run_callback
            self._when_done(lambda future: run(lambda: _call(fn, future)))

    def _when_done(self, fn: Callable[[concurrent.futures.Future[V]], object]) -> None:
        """Call `fn`, which must be quick, wherever it is settled, or here if it is."""
        with Uninterrupted():
            super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, V]:
        # Not asyncio.wrap_future: that cancels this future when the waiting task is cancelled.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                f"{self!r} is awaited where no asyncio loop runs: `await trio.to_thread.run_sync(future.result)` does "
                "it under trio, and future.result() in a thread in any other loop"
            ) from None
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def notify(future: object) -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:  # the loop was closed while the cast went on; nobody waits any more
                logger.debug("lazycast: %r done after its event loop was closed", future)

        self._when_done(notify)
        yield from waiter
        try:
            return self.result(0)
        finally:
            del self  # as in `result`

    # What executors call, and nobody else: whoever did it here would settle one rank's future without the others.

    def set_result(self, result: V) -> None:
        """Refused: the cast settles it."""
        raise self._not_yours("set_result")

    def set_exception(self, exception: BaseException | None) -> None:
        """Refused: the cast settles it."""
        raise self._not_yours("set_exception")

    def set_running_or_notify_cancel(self) -> bool:
        """Refused: the cast settles it."""
        raise self._not_yours("set_running_or_notify_cancel")

    def _not_yours(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{self!r}: {what}() is for executors; a cast settles its future on every rank. To give it up use "
            "cancel(), for a future of your own concurrent.futures.Future"
        )

    # For the engine, which calls one of these once, having decided under its own lock that nobody else will.

    def settle(self, value: V) -> None:
        """Resolve."""
        if self._state != _PENDING:
            raise concurrent.futures.InvalidStateError(f"{self!r} is settled already")
        if self.__dict__.setdefault("_made", _UNUSED) is _UNUSED:  # from here on nobody gets one before the next line
            self._result, self._state = value, _FINISHED
        else:
            super().set_result(value)
        self._gate.release()

    def settle_error(self, exc: BaseException) -> None:
        """Fail."""
        super().set_exception(exc)
        self._gate.release()

    def settle_cancelled(self) -> None:
        """Cancel, and wake who waits."""
        super().cancel()
        # Without this, concurrent.futures.wait() never learns of a cancellation that no executor sees.
        super().set_running_or_notify_cancel()
        self._gate.release()

    def follow(self, made: CastFuture[V]) -> None:
        """End as another one does, and cancel that."""
        self._follows = made
        made._when_done(lambda _: self._end_as(made))

    def _end_as(self, made: CastFuture[V]) -> None:
        self._follows = None  # it leads back here: a value in such a circle would live until the next collection
        if made.cancelled():
            self.settle_cancelled()
        elif (exc := made._outcome()) is not None:
            self.settle_error(exc)
        else:
            self.settle(made._result)

"""The future of a cast: a `concurrent.futures.Future` that is also awaitable.

Guarantees:

* It is settled once: `cancel` asks the engine, which decides under one lock who was first.
* Callbacks never run on lazycast's own threads that move messages: they go to the object's callback thread, or run in
  the thread that adds them if the future is done.
* Cancelling a task that awaits it cancels the waiting only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

V = TypeVar("V")

logger = logging.getLogger("lazycast")

_SETTLED = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"})  # names of the base class


def _call(fn: Callable[[Any], object], future: object) -> None:
    try:
        fn(future)
    except BaseException:  # as above all in concurrent.futures, a callback harms nobody else
        logger.exception("lazycast: a callback of %r raised", future)


class CastFuture(concurrent.futures.Future[V]):
    """What `LazyBroadcast.broadcast_async` returns.

    Works with `concurrent.futures.wait`, `as_completed`, `add_done_callback`, `asyncio.wrap_future` and `await`.
    """

    def __init__(
        self,
        *,
        label: Callable[[], str],
        withdraw: Callable[[], bool],
        run_callback: Callable[[Callable[[], None]], None],
        guard: Callable[[], None],
    ) -> None:
        super().__init__()
        self._label = label
        self._withdraw: Callable[[], bool] | None = withdraw
        self._run_callback = run_callback
        self._guard = guard
        self._gate = threading.Lock()  # open once it is settled
        self._gate.acquire()

    def __repr__(self) -> str:
        return f"<CastFuture {self._label()} {self._state.lower()}>"

    def cancel(self) -> bool:
        """Give up this cast.

        On the root this withdraws a cast that has not been sent: everyone's future for it is cancelled; once it has
        been sent it returns False. On the other ranks it is a `discard`: this rank will not get the value.
        """
        withdraw = self._withdraw
        return self.cancelled() if withdraw is None else withdraw()

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
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the cast's error or None, waiting as `result` does."""
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        # At a gate, not at the base class's condition: whoever wakes there needs a second lock, which the thread that
        # woke it still holds. That costs 10 µs and often another switch of threads, for each blocking call.
        if not self.done():
            self._guard()
            if self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                self._gate.release()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[V]], object]) -> None:
        """Call `fn(future)` when done: at once in this thread if it is, else on the object's callback thread."""
        if self.done():
            super().add_done_callback(fn)
        else:
            # The base class keeps callbacks for good: one that led back here would keep the value until a collection.
            run = self._run_callback
            super().add_done_callback(lambda future: run(lambda: _call(fn, future)))

    def __await__(self) -> Generator[Any, None, V]:
        # Not asyncio.wrap_future: that cancels this future when the waiting task is cancelled.
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def notify(future: object) -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:  # the loop was closed while the cast went on; nobody waits any more
                logger.debug("lazycast: %r done after its event loop was closed", future)

        super().add_done_callback(notify)
        yield from waiter
        return super().result(0)

    # For the engine, which calls one of these once, having decided under its own lock that nobody else will.

    def settle(self, value: V) -> None:
        """Resolve."""
        self._withdraw = None  # it leads back here: a value in such a circle would live until the next collection
        self.set_result(value)
        self._gate.release()

    def settle_error(self, exc: BaseException) -> None:
        """Fail."""
        self._withdraw = None
        self.set_exception(exc)
        self._gate.release()

    def settle_cancelled(self) -> None:
        """Cancel, and wake who waits."""
        self._withdraw = None
        super().cancel()
        # Without this, concurrent.futures.wait() never learns of a cancellation that no executor sees.
        self.set_running_or_notify_cancel()
        self._gate.release()

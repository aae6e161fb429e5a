"""The future of a request's inputs: a cast's, with the errors that SGLang's callers catch.

Guarantees:

* It is settled once, by whoever comes first: the callback of its cast, who waits for it, or who gives it up.
* Waiting in a callback or a materializer of the same `SGLangBroadcast` raises, as with a `CastFuture`: the thread that
  would settle this one is the one that waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any

from lazycast.core.future import CastFuture


class InputsFuture(concurrent.futures.Future[Any]):
    """What `SGLangBroadcast.process_async` returns: a `concurrent.futures.Future` that is also awaitable.

    It is made before its cast, which it follows from `follow` on.

    Args:
        translated: makes of the cast's error the one to raise.
        sure: whether giving it up always succeeds: not on the entry rank, where every rank may have it already.
    """

    def __init__(
        self, translated: Callable[[BaseException], BaseException] | None = None, *, sure: bool = True
    ) -> None:
        super().__init__()
        self._translated, self._sure = translated, sure
        self._lock = threading.Lock()  # guards the next three; nothing is called while it is held
        self._cast: CastFuture[Any] | None = None
        self._given_up = False  # before there was a cast
        self._settling = False

    def follow(self, cast: CastFuture[Any]) -> None:
        """Take the outcome of `cast`. Called once, by whoever made this."""
        with self._lock:
            given_up, settled = self._given_up, self._settling
            self._cast = None if settled else cast
        if given_up:
            cast.cancel()
        if not settled:
            cast.add_done_callback(self._settle)

    def cancel(self) -> bool:
        """Give up the cast, as `CastFuture.cancel` does.

        Returns: whether this rank will not get the inputs. On the entry rank False also while the cast is only being
            made; it is given up then as soon as it is there, if that is still possible. After True it may be a moment
            until it is done, where another thread is about to settle it.
        Collective: no. Blocking: never. Threads: safe.
        """
        if self.done():  # also one that never had a cast
            return self.cancelled()
        with self._lock:
            cast = self._cast
            if cast is None and not self._settling:
                self._given_up = True
                self._settling = now = self._sure
            else:
                now = False
        if now:
            self._settle_cancelled()
        elif cast is not None and cast.cancel():
            self._settle(cast)
        else:
            return self.cancelled() or (self._given_up and self._sure)
        return True  # also while the callback thread settles it

    def result(self, timeout: float | None = None) -> Any:
        """Return the inputs, waiting up to `timeout` seconds.

        Raises:
            concurrent.futures.TimeoutError: `timeout` has ended first.
            ReentrantCallError: called, before it is done, from a materializer or callback of the same object.
            Exception: what `SGLangBroadcast.process` raises.
        """
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error or None, waiting as `result` does."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Wait for the cast, which knows where waiting is not allowed; return how long to wait after that."""
        cast = self._cast
        if cast is None or self.done():
            return timeout
        with contextlib.suppress(concurrent.futures.CancelledError):
            cast.exception(timeout)
        self._settle(cast)  # its callback may have to wait for this very thread
        return None  # now it is done, or another thread is about to make it so

    def _settle(self, cast: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            if self._settling:
                return
            self._settling = True
        if cast.cancelled():
            self._settle_cancelled()
        elif (exc := cast.exception()) is None:
            self.set_result(cast.result())
        else:
            self.set_exception(exc if self._translated is None else self._translated(exc))
        with self._lock:
            self._cast = None  # the two would keep each other until the next collection

    def _settle_cancelled(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()  # or concurrent.futures.wait() never learns of it

    def __await__(self) -> Generator[Any, None, Any]:
        # Shielded: cancelling a task that awaits ends the waiting only.
        return asyncio.shield(asyncio.wrap_future(self)).__await__()

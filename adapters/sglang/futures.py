"""The future of a request's inputs: a cast's, with the errors that SGLang's callers catch."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any

from lazycast.future import CastFuture


class InputsFuture(concurrent.futures.Future[Any]):
    """What `SGLangBroadcast.process_async` returns: a `concurrent.futures.Future` that is also awaitable.

    Args:
        cast: what it follows; None if it is done from the start.
        translated: makes of the cast's error the one to raise.
    """

    def __init__(
        self, cast: CastFuture[Any] | None = None, translated: Callable[[BaseException], BaseException] | None = None
    ) -> None:
        super().__init__()
        self._cast = cast
        self._translated = translated
        if cast is not None:
            cast.add_done_callback(self._follow)

    def cancel(self) -> bool:
        """Give up the cast, as `CastFuture.cancel` does. True if this rank will not get the inputs."""
        return self.cancelled() if self._cast is None else self._cast.cancel()

    def _follow(self, cast: concurrent.futures.Future[Any]) -> None:
        self._cast = None  # the two would keep each other until the next collection
        if cast.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        exc = cast.exception()
        if exc is None:
            self.set_result(cast.result())
        else:
            self.set_exception(exc if self._translated is None else self._translated(exc))

    def __await__(self) -> Generator[Any, None, Any]:
        # Shielded: cancelling a task that awaits ends the waiting only.
        return asyncio.shield(asyncio.wrap_future(self)).__await__()

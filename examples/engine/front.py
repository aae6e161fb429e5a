"""The engine's door on rank 0: an event loop's coroutines hand requests in and get tokens out.

Guarantees: nothing here blocks the event loop, nor the scheduler's loop. `generate` runs in the event loop, `deliver`
and `fail` in the scheduler's thread, casts in a thread of their own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator

from lazycast import LazycastError

from .engine import Inbox
from .inputs import Inputs, OverloadedError
from .requests import Arrived, Ended, Left, Refused, Reply, Request, Stop


class RequestFailedError(Exception):
    """A request came to nothing; the message says why."""


class Front:
    """Takes requests in one event loop.

    Args:
        max_open: how many requests may be under way; beyond it a client is told so at once.
    """

    def __init__(self, inputs: Inputs, inbox: Inbox, loop: asyncio.AbstractEventLoop, *, max_open: int) -> None:
        self._inputs, self._inbox, self._loop, self._max_open = inputs, inbox, loop, max_open
        self._streams: dict[str, asyncio.Queue[Reply]] = {}
        self._down: str | None = None
        # `broadcast_async` blocks under back-pressure. In one thread casts then queue up, in order, behind that one.
        self._caster = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="caster")

    async def generate(self, request: Request) -> AsyncIterator[int]:
        """Yield a request's tokens. To close this generator, or to cancel the task in it, aborts the request.

        Raises: OverloadedError, there is no room now; RequestFailedError.
        """
        if self._down is not None:
            raise RequestFailedError(self._down)
        if request.rid in self._streams:
            raise RequestFailedError(f"a request {request.rid!r} is under way already")
        if len(self._streams) >= self._max_open:
            raise OverloadedError(f"{self._max_open} requests are under way")
        stream = self._streams[request.rid] = asyncio.Queue()
        ended = False
        try:
            if request.payload is None:
                self._inbox.put(Arrived(request))
            else:
                await self._loop.run_in_executor(self._caster, self._cast, request)
            while not isinstance(reply := await stream.get(), Ended):
                yield reply
            ended = True
            if reply.status != "finished":
                raise RequestFailedError(reply.message)
        except (OverloadedError, RequestFailedError):
            ended = True
            raise
        finally:
            del self._streams[request.rid]
            if not ended:
                request.gone = True  # first: who learns of the request after this line sees that it has gone
                self._inbox.put(Left(request.rid))

    def _cast(self, request: Request) -> None:
        """In the caster's thread: the sooner photos are on their way, the less a request waits for the schedule."""
        if request.gone:
            return
        try:
            self._inputs.cast(request)
        except (OverloadedError, LazycastError) as exc:
            # Every call counts, also one that was refused: the other ranks must not keep a place for it.
            self._inbox.put(Refused(request.rid))
            if isinstance(exc, LazycastError):
                raise RequestFailedError(exc.message) from exc
            raise
        self._inbox.put(Arrived(request))

    def deliver(self, replies: list[tuple[str, Reply]]) -> None:
        """In the scheduler's thread: hand over what an iteration has brought, with one wake-up for all."""
        self._loop.call_soon_threadsafe(self._hand_out, replies)

    def _hand_out(self, replies: list[tuple[str, Reply]]) -> None:
        for rid, reply in replies:
            stream = self._streams.get(rid)
            if stream is not None:  # its client may have left meanwhile
                stream.put_nowait(reply)

    def fail(self, message: str) -> None:
        """In the scheduler's thread: the engine has broken down. Tell all clients, and those who still come."""

        def tell() -> None:
            self._down = message
            self._hand_out([(rid, Ended("failed", message)) for rid in self._streams])

        self._loop.call_soon_threadsafe(tell)

    def close(self) -> None:
        """Let the engine finish what it has, and end."""
        self._caster.shutdown()
        self._inbox.put(Stop())

"""Tasks of an asyncio loop that wait for room on the root: one after another, beside the loop's other tasks.

Guarantees: tasks of one loop get their turns in the order in which they came, so their calls keep it. Whose time is
over waits no longer, and one that is cancelled leaves nothing behind. A turn wakes one task, not all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from lazycast.errors import WouldBlockError

F = TypeVar("F")


When = Callable[[Callable[[], None]], bool]
Forget = Callable[[Callable[[], None]], None]


async def until(when: When, forget: Forget, timeout_s: float | None = None) -> None:
    """Wait, beside the loop's other tasks, until something may be so, or the time is over.

    Args:
        when: says whether it is so; if not, it calls what it is given once that may have changed, from any thread.
        forget: is told what need not be called any more.
    """
    loop = asyncio.get_running_loop()
    changed: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not changed.done():
            changed.set_result(None)

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(end)

    if when(wake):
        return
    try:
        await asyncio.wait([changed], timeout=timeout_s)
    finally:
        forget(wake)  # it may be known in several places


class _Line:
    """Who waits in one loop. Touched by that loop's thread alone."""

    def __init__(self) -> None:
        self.busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, timeout_s: float) -> bool:
        """Wait for a turn; return False if there was none in time. Whoever gets one `leave`s."""
        if not self.busy:
            self.busy = True
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait([turn], timeout=max(0.0, timeout_s))
        except asyncio.CancelledError:
            if turn.done():
                self.leave()
            else:
                self._waiting.remove(turn)
            raise
        if not turn.done():
            self._waiting.remove(turn)
        return turn.done()

    def leave(self) -> None:
        """Give the turn to the next one."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.busy = False


class Turns:
    """See the module's text. Thread-safe, as far as loops are.

    Args:
        when_room, forget: as for `until`: whether there is room for a call.
    """

    def __init__(self, when_room: When, forget: Forget) -> None:
        self._when_room, self._forget = when_room, forget
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = weakref.WeakKeyDictionary()

    async def take(self, call: Callable[[], F], late: Callable[[], F], limit_s: float) -> F:
        """Make a call when there is room for it; `late` in its place when its time is over. `call` may not wait.

        Returns: what the one of them returned that was made.
        """
        end_s, loop = time.monotonic() + limit_s, asyncio.get_running_loop()
        line = self._lines.setdefault(loop, _Line())
        if not await line.enter(limit_s):
            return late()
        try:
            while True:
                try:
                    return call()
                except WouldBlockError:
                    left_s = end_s - time.monotonic()
                    if left_s <= 0:
                        return late()
                await until(self._when_room, self._forget, left_s)
        finally:
            line.leave()

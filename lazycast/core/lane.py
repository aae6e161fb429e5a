"""What the casts of one root are on one rank, seen from outside: `RootLane`, `FollowerLane`, `SoloLane`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lazycast.core.asks import Asks
from lazycast.core.engine import Taken
from lazycast.core.future import CastFuture
from lazycast.core.seen import Counted, Rows, Seen
from lazycast.net.wire import Key


class Lane(Protocol):
    """See the module's text. An object has one lane, or, where every rank is a root, one for each."""

    asks: Asks

    # Calls

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
        Raises: ValueError on a rank to which nothing comes.
        """

    def when_come(self, wake: Callable[[], None]) -> bool:
        """Whether `next_call` would return, or raise, now; else `wake` is called, from any thread, when it may."""

    def has_room(self) -> bool:
        """Whether `call` would not be held back now."""

    def when_room(self, wake: Callable[[], None]) -> bool:
        """Whether `call` would not be held back now; else `wake` is called, from any thread, when that may change."""

    def discard(self, key: Key, counted: list[bool] | None = None) -> None:
        """This rank will not ask for the next cast with this key."""

    def count_missed(self, key: Key | None, exc: BaseException) -> None:
        """Count a call that `exc` ended before it did. Handed over: whoever makes calls may be interrupted again."""

    # For the engine

    def follow(self, within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """Have materializers called by way of `within`: see `Spans.within`."""

    def hear_losses(self) -> None:
        """Learn of the ranks that another lane knows to be lost."""

    def disconnect(self, timeout_s: float) -> None:
        """Say farewell to the other ranks."""

    def forget(self) -> None:
        """Let go of all casts: nothing more can come."""

    def close_after_fork(self) -> None:
        """In a forked child: what is connected is its parent's. Takes no lock."""

    # Looking

    def seen(self) -> Seen:
        """Say what is to be seen. Without the lock."""

    def counted(self) -> Counted:
        """The same, of what is counted with the lock held."""

    def rows(self) -> Rows:
        """Say what a dump shows. With the lock held if it can be had: see `Rows`."""

"""What a lane tells whoever follows calls and casts from outside: `lazycast.watch.otel`, or by default nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lazycast.core.future import CastFuture
    from lazycast.core.performer import Result


class Traced(Protocol):
    """A call that is followed."""

    #: What travels with its cast.
    carrier: dict[str, str] | None
    #: Its cast, or what is known of it: set by the lane.
    cast: Any


class Spans(Protocol):
    """Who follows. Called without the lane's lock, but for `opened`, which only looks."""

    def around(self, lane: Any) -> Callable[..., CastFuture[Any]]:
        """Return what makes a call as `lane.call` does."""

    def opened(self) -> Traced | None:
        """Return the call that this thread is about to make."""

    def began(self, cast: Any) -> None:
        """This rank's part of a cast begins."""

    def ended(self, cast: Any, result: Result) -> None:
        """And is done."""

    def took(self, what: str, began_s: float, ended_s: float, of: Any) -> None:
        """Something that this rank does for a cast took so long (monotonic seconds)."""

    def within(self, of: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls the materializer `fn` for a cast."""

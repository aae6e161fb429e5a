"""The root's choice of a placement for each cast: the one asked for, or what costs least."""

from __future__ import annotations

from lazycast.engine.calls import Call
from lazycast.options import Options
from lazycast.wire import Cost


class Placing:
    """See the module's text. Guarded by the lane's lock."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def place(self, call: Call) -> tuple[str, str]:
        """Return the placement of a cast, and why."""
        if self._options.placement != "auto":
            return self._options.placement, "asked for"
        return "every", "not chosen yet"

    def reported(self, seq: int, rank: int, cost: Cost | None) -> None:
        """Note what its part of a cast cost a rank."""

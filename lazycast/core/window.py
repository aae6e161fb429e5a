"""What holds the root back: the casts that ranks have not read yet, against the limits of the group.

Guarantees: every method is called with the lock of the lane held.
"""

from __future__ import annotations

from lazycast.core.calls import Calls
from lazycast.core.dump import named
from lazycast.core.ledger import Ledger
from lazycast.options import Options

_SHOWN = 8  # of a list, in a message


def _some(parts: list[str], comma: str = ", ") -> str:
    return comma.join(parts[:_SHOWN]) + (f"{comma}..." if len(parts) > _SHOWN else "")


class Window:
    """See the module's text."""

    def __init__(self, ledger: Ledger, calls: Calls, options: Options) -> None:
        self._ledger = ledger
        self._calls = calls
        self._options = options

    def has_room(self) -> bool:
        options, ledger, entered = self._options, self._ledger, self._calls.entered
        if len(ledger.entries) + entered < options.max_inflight and ledger.open_nbytes < options.max_inflight_nbytes:
            return True  # however much of it the slowest rank has not read
        casts, nbytes = ledger.unread()
        return casts + entered < options.max_inflight and nbytes < options.max_inflight_nbytes

    def has_room_for_bytes(self) -> bool:
        most_nbytes = self._options.max_inflight_nbytes
        return self._ledger.open_nbytes < most_nbytes or self._ledger.unread()[1] < most_nbytes

    def slowest(self) -> list[int]:
        """Return the ranks that hold the root back."""
        casts, nbytes = self._ledger.unread()
        return list(self._ledger.unread_by_rank(casts=max(1, casts), nbytes=max(1, nbytes)))

    def held_back(self) -> str:
        """Say who has not read what."""
        casts, nbytes = self._ledger.unread()
        by_rank = self._ledger.unread_by_rank(casts=max(1, casts), nbytes=max(1, nbytes))
        parts = [
            f"rank {rank} has not asked for {len(unread)} casts: "
            + _some([f"#{seq}{named(key)}" for seq, key in unread])
            for rank, unread in by_rank.items()
        ]
        said = _some(parts, "; ")
        limits = f"max_inflight={self._options.max_inflight}, max_inflight_nbytes={self._options.max_inflight_nbytes}"
        return f"held back by {limits}: {said or f'{self._calls.entered} calls are queued here'}"

"""What a rank has asked for since it last told the root: plain data, no threads, no clock.

Guarantees: the root is told at once when this may hold it back, or when it has not been told for a while; else a little
later, of many casts in one message.
"""

from __future__ import annotations

import math

#: How long after the root has been told reads are gathered before it is told again, unless a quarter of its window, in
#: casts or in bytes, is reached. Telling it of each small cast took a fifth of a follower's time.
DELAY_S = 0.02
SEQS_PER_READ = 2000  # in one message, of at most nine bytes each


class Reads:
    """See the module's text. Not thread-safe.

    Args: the root's window, in casts and in bytes.
    """

    def __init__(self, max_inflight: int, max_inflight_nbytes: int) -> None:
        self._many = max(1, max_inflight // 4)
        self._many_nbytes = max_inflight_nbytes // 4
        self._seqs: list[int] = []
        self._nbytes = 0
        self.told_s = -math.inf  # when it was told last
        self.due_s: float | None = None  # when the root is to be told

    def add(self, seq: int, nbytes: int) -> bool:
        """Note that a cast has been asked for. True if the root is now to be told sooner than before."""
        self._seqs.append(seq)
        self._nbytes += nbytes
        many = len(self._seqs) >= self._many or self._nbytes >= self._many_nbytes
        due_s = 0.0 if many else self.told_s + DELAY_S
        if self.due_s is not None and due_s >= self.due_s:
            return False
        self.due_s = due_s
        return True

    def take(self, now_s: float) -> list[int]:
        """Return and forget what is noted, if the root is to be told of it by now."""
        if self.due_s is None or self.due_s > now_s:
            return []
        seqs, self._seqs, self._nbytes, self.due_s, self.told_s = self._seqs, [], 0, None, now_s
        return seqs

    def __len__(self) -> int:
        return len(self._seqs)

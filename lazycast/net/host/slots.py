"""Where in an arena the next slot goes: plain data, no memory is touched.

Guarantees: slots never overlap; freed neighbours are joined; the lowest place that fits is taken, so what is used stays
together at the start and its pages stay warm.
"""

from __future__ import annotations

import bisect


class FreeSpace:
    """The free extents of a range of `nbytes` bytes. Not thread-safe."""

    def __init__(self, nbytes: int) -> None:
        self._starts = [0]
        self._ends = [nbytes]

    def take(self, nbytes: int) -> int | None:
        """Return the lowest offset with `nbytes` free bytes, which are then taken; None if there is none."""
        for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= nbytes:
                if end - start == nbytes:
                    del self._starts[index], self._ends[index]
                else:
                    self._starts[index] = start + nbytes
                return start
        return None

    def give(self, offset: int, nbytes: int) -> None:
        """Free an extent that was taken."""
        index = bisect.bisect(self._starts, offset)
        end = offset + nbytes
        joins_left = index > 0 and self._ends[index - 1] == offset
        joins_right = index < len(self._starts) and self._starts[index] == end
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = offset
        else:
            self._starts.insert(index, offset)
            self._ends.insert(index, end)

    def extents(self) -> list[tuple[int, int]]:
        """Return the free extents as (start, end), in order."""
        return list(zip(self._starts, self._ends, strict=True))

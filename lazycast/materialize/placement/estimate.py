"""Running estimates that follow a change within a few casts and shrug off a hiccup."""

from __future__ import annotations

from collections import deque
from typing import Final

_WEIGHT: Final = 1 / 8
_FAR: Final = 4.0
_AT_MOST: Final = 8.0
_STREAK: Final = 3
_KEPT: Final = 15
_FLOOR: Final = 1e-9


class RunningMean:
    """A mean in which a new value weighs an eighth.

    A mean, since what many casts cost is the sum of what each costs, however it varies. One value counts for at most
    eight times the mean, so that a hiccup passes; three in a row that are four times off on one side are a change, and
    the mean starts anew from them.
    """

    __slots__ = ("_off", "count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0
        self._off: list[float] = []

    def add(self, value: float) -> None:
        """Take one more value, at least 0, into account."""
        value = max(value, _FLOOR)
        self.count += 1
        if self.count == 1:
            self.value = value
            return
        mean = self.value
        if value > mean * _FAR or value * _FAR < mean:
            if self._off and (self._off[-1] > mean) != (value > mean):
                self._off.clear()
            self._off.append(value)
            if len(self._off) == _STREAK:
                self.value = sum(self._off) / _STREAK
                self._off.clear()
                return
        elif self._off:
            self._off.clear()
        self.value += (min(value, mean * _AT_MOST) - mean) * max(1 / self.count, _WEIGHT)


class RecentMedian:
    """The median of the last fifteen values, the lower one of an even number: what disturbs a cast prolongs it."""

    __slots__ = ("_recent", "value")

    def __init__(self) -> None:
        self.value = 1.0
        self._recent: deque[float] = deque(maxlen=_KEPT)

    @property
    def count(self) -> int:
        """How many values the median is of."""
        return len(self._recent)

    def add(self, value: float) -> None:
        """Take one more value into account."""
        self._recent.append(value)
        ordered = sorted(self._recent)
        self.value = ordered[(len(ordered) - 1) // 2]

    def clear(self) -> None:
        """Forget all; the value is 1."""
        self._recent.clear()
        self.value = 1.0

"""How far the clocks of two hosts are apart, told by the messages between them. Plain functions on plain numbers.

A message cannot come before it is sent. So each one from a to b bounds the difference of their clocks from one side,
and each one back from the other: the truth lies between the tightest bounds, and half their distance is the error. That
is what NTP does, with the fastest message each way instead of one that went there and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Offset(NamedTuple):
    """What to add to a rank's moments to get the root's, how wrong that may be (µs), and how it was found.

    `error_us` is None if nothing bounds it.
    """

    us: float
    error_us: float | None
    how: str


SAME = Offset(0.0, 0.0, "the same clock")


def estimate(down: Iterable[tuple[float, float]], up: Iterable[tuple[float, float]], *, wall_us: float) -> Offset:
    """Estimate the offset of a rank's clock.

    Args:
        down: messages of the root to the rank: (sent by the root's clock, arrived by the rank's), in µs.
        up: messages of the rank to the root: (sent by the rank's clock, arrived by the root's), in µs.
        wall_us: what the clocks of day say, for want of messages.
    """
    least = max((sent - arrived for sent, arrived in down), default=None)
    most = min((arrived - sent for sent, arrived in up), default=None)
    if least is not None and most is not None:
        if least > most:  # they drift apart, or one was set: no one number is right
            return Offset((least + most) / 2, (least - most) / 2, "messages that contradict each other: clocks drift")
        return Offset((least + most) / 2, (most - least) / 2, "messages both ways")
    if least is not None:
        return Offset(max(least, wall_us), None, "messages one way, and the clocks of day")
    if most is not None:
        return Offset(min(most, wall_us), None, "messages one way, and the clocks of day")
    return Offset(wall_us, None, "the clocks of day alone")

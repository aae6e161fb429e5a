"""Signs of life between hosts: when to give one, and who has given none for too long. Plain data, no threads, no clock.

Guarantees:

* Silence is a word, never a verdict: a link that is cut looks like a rank that is frozen, and that one comes back.
* A rank that was itself frozen accuses nobody of what it slept through.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

#: How often a leader says to the leaders next to it that it lives (seconds).
BEAT_S = 5.0
#: How many signs of life may be missed before a neighbour is said not to answer.
MISSED = 4


class News(NamedTuple):
    """What a turn has brought: whether to give a sign of life; who has fallen silent, and who is heard again."""

    beat: bool
    silent: list[tuple[int, float]]
    back: list[tuple[int, float]]


class Heartbeat:
    """The signs of life of one rank and its neighbours on other hosts. Not thread-safe."""

    def __init__(self, neighbours: Collection[int], now_s: float, interval_s: float | None = None) -> None:
        self._interval_s = BEAT_S if interval_s is None else interval_s
        self._neighbours = set(neighbours)
        self._awake_s = now_s  # nobody is silent since before
        self._silent_s: dict[int, float] = {}  # since when, by neighbour that is said not to answer
        self.next_s = now_s + self._interval_s

    def gone(self, rank: int) -> None:
        """A neighbour has ended."""
        self._neighbours.discard(rank)
        self._silent_s.pop(rank, None)

    def turn(self, now_s: float, heard_s: Mapping[int, float]) -> News:
        """Look around. `heard_s` says when something came from a neighbour last."""
        if now_s < self.next_s:
            return News(False, [], [])
        if now_s - self.next_s > self._interval_s:
            self._awake_s = now_s
        self.next_s = now_s + self._interval_s
        silent, back = [], []
        for rank in sorted(self._neighbours):
            last_s = heard_s.get(rank, self._awake_s)
            if last_s > self._silent_s.get(rank, last_s):
                back.append((rank, last_s - self._silent_s.pop(rank)))
            elif rank not in self._silent_s and now_s - max(last_s, self._awake_s) > MISSED * self._interval_s:
                self._silent_s[rank] = last_s
                silent.append((rank, now_s - last_s))
        return News(True, silent, back)

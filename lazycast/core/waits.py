"""When the calls that wait are to be warned about, asked about and given up. Plain data, no threads, no clock.

Guarantees: a wait comes due at each of its stages once, in time order, unless it has ended; ended waits cost memory
only until as many new ones have come.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

W = TypeVar("W")


class Stage(IntEnum):
    """What is to be done about a wait."""

    WARN = 0
    ASK = 1
    GIVE_UP = 2


@dataclass(eq=False, slots=True)
class Wait(Generic[W]):
    """One waiting call: when it began, and when each stage is due (seconds of one monotonic clock), in time order."""

    what: W | None
    since_s: float
    due_s: tuple[tuple[float, Stage], ...]
    live: bool = False
    passed: int = 0  # stages

    @property
    def deadline_s(self) -> float:
        return self.due_s[-1][0]

    @property
    def next_s(self) -> float:
        """When the next stage is due."""
        return self.due_s[min(self.passed, len(self.due_s) - 1)][0]


#: How long before it is reported or ended a wait asks the root whom everybody waits for: a fifth of its time, at most
#: this (seconds).
_ASK_BEFORE_S = 1.0


def plan(now_s: float, timeout_s: float, warn_after_s: float, *, ask: bool) -> tuple[tuple[float, Stage], ...]:
    """Return the stages of a wait that begins now, in time order."""
    end = (now_s + timeout_s, Stage.GIVE_UP)
    if not ask:
        return ((now_s + warn_after_s, Stage.WARN), end) if warn_after_s < timeout_s else (end,)
    last = (end[0] - min(_ASK_BEFORE_S, timeout_s / 5), Stage.ASK)
    if warn_after_s >= timeout_s:
        return last, end
    warn = (now_s + warn_after_s, Stage.WARN)
    first = (warn[0] - min(_ASK_BEFORE_S, warn_after_s / 5), Stage.ASK)
    return (first, warn, last, end) if warn <= last else (first, last, warn, end)


class Waits(Generic[W]):
    """All waits of one object. Not thread-safe."""

    def __init__(self) -> None:
        # One entry per wait, for its next stage: (due, number, wait).
        self._heap: list[tuple[float, int, Wait[W]]] = []
        self._numbers = itertools.count()
        self._live = 0

    def add(self, wait: Wait[W]) -> bool:
        """Begin to watch a wait. Returns whether it moves `next_s` forward."""
        self._live += 1
        wait.live = True
        self._push(wait)
        return self._heap[0][2] is wait

    def _push(self, wait: Wait[W]) -> None:
        heapq.heappush(self._heap, (wait.due_s[wait.passed][0], next(self._numbers), wait))

    def end(self, wait: Wait[W]) -> None:
        """Stop watching, and let go of what it is about. Idempotent; also for a wait that was never added."""
        wait.what = None
        if not wait.live:
            return
        wait.live = False
        self._live -= 1
        if len(self._heap) > 2 * self._live + 64:
            self._heap = [item for item in self._heap if item[2].live]
            heapq.heapify(self._heap)

    def next_s(self) -> float | None:
        """Return when to look again: when the next stage is due, be it of a wait that has ended, or None.

        If those that have ended did not count, whoever sleeps until then would be woken by the first call after each
        look, and a rank that reads one value after another would wake twice for each. So it wakes once in a while.
        """
        return self._heap[0][0] if self._heap else None

    def due(self, now_s: float) -> list[tuple[Stage, W]]:
        """Return and take off what has come due."""
        ready = []
        while self._heap and self._heap[0][0] <= now_s:
            _, _, wait = heapq.heappop(self._heap)
            if not wait.live:
                continue
            stage = wait.due_s[wait.passed][1]
            wait.passed += 1
            if wait.passed < len(wait.due_s):
                self._push(wait)
            if wait.what is not None:
                ready.append((stage, wait.what))
        return ready

    def waiting(self) -> list[W]:
        """Return what is waited for, oldest first."""
        live = [wait for _, _, wait in self._heap if wait.live]
        return [w.what for w in sorted(live, key=lambda w: w.since_s) if w.what is not None]

    def __len__(self) -> int:
        return self._live

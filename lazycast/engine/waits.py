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


@dataclass(eq=False)
class Wait(Generic[W]):
    """One waiting call: when it began, and when each stage is due (seconds of one monotonic clock)."""

    what: W | None
    since_s: float
    due_s: list[tuple[float, Stage]]
    live: bool = False

    @property
    def deadline_s(self) -> float:
        return self.due_s[-1][0]


#: How long before its end a wait asks the root whom everybody waits for: a tenth of its time, at most this.
_ASK_BEFORE_S = 1.0


def plan(now_s: float, timeout_s: float, warn_after_s: float, *, ask: bool) -> list[tuple[float, Stage]]:
    """Return the stages of a wait that begins now, in time order."""
    stages = [(now_s + timeout_s, Stage.GIVE_UP)]
    if ask:
        stages.append((now_s + timeout_s - min(_ASK_BEFORE_S, timeout_s / 10), Stage.ASK))
    if warn_after_s < timeout_s:
        stages.append((now_s + warn_after_s, Stage.WARN))
    return sorted(stages)


class Waits(Generic[W]):
    """All waits of one object. Not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Stage, Wait[W]]] = []
        self._numbers = itertools.count()
        self._live = 0

    def add(self, wait: Wait[W]) -> bool:
        """Begin to watch a wait. Returns whether it has moved the next due time forward."""
        before = self.next_s()
        self._live += 1
        wait.live = True
        for due_s, stage in wait.due_s:
            heapq.heappush(self._heap, (due_s, next(self._numbers), stage, wait))
        after = self.next_s()
        return before is None or (after is not None and after < before)

    def end(self, wait: Wait[W]) -> None:
        """Stop watching, and let go of what it is about. Idempotent; also for a wait that was never added."""
        wait.what = None
        if not wait.live:
            return
        wait.live = False
        self._live -= 1
        if len(self._heap) > 6 * self._live + 64:
            self._heap = [item for item in self._heap if item[3].live]
            heapq.heapify(self._heap)

    def next_s(self) -> float | None:
        """Return when the next stage of a live wait is due, or None."""
        while self._heap and not self._heap[0][3].live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_s: float) -> list[tuple[Stage, W]]:
        """Return and take off what has come due."""
        ready = []
        while (next_s := self.next_s()) is not None and next_s <= now_s:
            _, _, stage, wait = heapq.heappop(self._heap)
            if wait.what is not None:
                ready.append((stage, wait.what))
        return ready

    def waiting(self) -> list[W]:
        """Return what is waited for, oldest first."""
        live = {id(item[3]): item[3] for item in self._heap if item[3].live}
        return [w.what for w in sorted(live.values(), key=lambda w: w.since_s) if w.what is not None]

    def __len__(self) -> int:
        return self._live

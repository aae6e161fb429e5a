"""When the calls that wait are to be warned about, asked about and given up. Plain data, no threads, no clock.

Guarantees: a call comes due at each of its stages once, in time order, unless it has ended; one that has ended is
forgotten. Whoever sleeps until `next_s` misses nothing; it may be earlier than the next stage, since a call that ends
does not move it: nobody is woken for it, nor by the next call.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Stage(IntEnum):
    """What is to be done about a call."""

    WARN = 0
    ASK = 1
    GIVE_UP = 2


#: Stages in time order, each with the time after the call when it is due (seconds).
Plan = tuple[tuple[float, Stage], ...]


class Waiting(Protocol):
    """A call that waits: when it began (monotonic seconds), its stages, how many have passed, when the next is due."""

    since_s: float
    stages: Plan
    passed: int
    next_s: float


W = TypeVar("W", bound=Waiting)

#: How long before it is reported or ended a call asks the root whom everybody waits for: a fifth of its time, at most
#: this (seconds).
_ASK_BEFORE_S = 1.0
#: How long after it has looked `Waits` looks again at the earliest: with thousands of calls that end one after another
#: it would go through all of them for each (seconds).
_GRAIN_S = 0.002


def plan(timeout_s: float, warn_after_s: float, *, ask: bool) -> Plan:
    """Return the stages of a call."""
    end = (timeout_s, Stage.GIVE_UP)
    if not ask:
        return ((warn_after_s, Stage.WARN), end) if warn_after_s < timeout_s else (end,)
    last = (timeout_s - min(_ASK_BEFORE_S, timeout_s / 5), Stage.ASK)
    if warn_after_s >= timeout_s:
        return last, end
    warn = (warn_after_s, Stage.WARN)
    first = (warn_after_s - min(_ASK_BEFORE_S, warn_after_s / 5), Stage.ASK)
    return (first, warn, last, end) if warn <= last else (first, last, warn, end)


class Waits(Generic[W]):
    """All calls of one object that wait. Not thread-safe."""

    def __init__(self) -> None:
        self.live: dict[W, None] = {}  # in the order of calls
        self.next_s = math.inf  # when to look again

    def add(self, call: W) -> bool:
        """Begin to watch a call. Returns whether `next_s` is earlier for it."""
        self.live[call] = None
        if call.next_s >= self.next_s:
            return False
        self.next_s = call.next_s
        return True

    def end(self, call: W) -> None:
        """Stop watching. Idempotent; also for a call that was never added."""
        self.live.pop(call, None)

    def due(self, now_s: float) -> list[tuple[Stage, W]]:
        """Return and take off what has come due, in time order."""
        if now_s < self.next_s:
            return []
        ready: list[tuple[float, Stage, W]] = []
        next_s = math.inf
        for call in self.live:
            while call.next_s <= now_s:
                ready.append((call.next_s, call.stages[call.passed][1], call))
                call.passed += 1
                call.next_s = call.since_s + call.stages[call.passed][0] if call.passed < len(call.stages) else math.inf
            next_s = min(next_s, call.next_s)
        self.next_s = max(next_s, now_s + _GRAIN_S)
        ready.sort(key=lambda due: due[0])
        return [(stage, call) for _, stage, call in ready]

    def waiting(self) -> list[W]:
        """Return the calls that wait, oldest first."""
        return sorted(self.live, key=lambda call: call.since_s)

    def __len__(self) -> int:
        return len(self.live)

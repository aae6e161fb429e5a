"""The root's calls from their being made to their being sent: plain data, no threads.

Guarantees:

* Calls begin in the order they were made.
* Calls of one key (and those without one) are sent in the order they were made; calls of different keys as they become
  ready, so one that materializes slowly delays nobody else's.
* Every call that was added is sent, if only as a failure.
"""

from __future__ import annotations

import time
from collections import deque
from enum import IntEnum
from typing import Any

import msgspec

from lazycast.core.dump import named
from lazycast.core.future import CastFuture
from lazycast.materialize.materializers import Materializer
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key


class CallPhase(IntEnum):
    """How far a call of the root has come. What follows what, and nothing else does:

    NEW → HELD | QUEUED       it gets its place among the calls of its key; HELD: there is no room for it
    HELD → QUEUED             it has entered the queue, if only as a failure
    QUEUED → MAKING | READY   somebody has begun it; MAKING: its value, hint or items are being made on the root
    MAKING → READY            made, failed or withdrawn
    READY → SENDING           its turn has come: it is being encoded and sent
    """

    NEW = 0
    HELD = 1
    QUEUED = 2
    MAKING = 3
    READY = 4
    SENDING = 5

    @property
    def text(self) -> str:
        """What is said of a call in this phase."""
        return _TEXTS[self]


_TEXTS = {
    CallPhase.NEW: "queued on the root",
    CallPhase.HELD: "waiting for room on the root",
    CallPhase.QUEUED: "queued on the root",
    CallPhase.MAKING: "materializing on the root",
    CallPhase.READY: "waiting to be sent on the root",
    CallPhase.SENDING: "encoding on the root",
}


class Call(msgspec.Struct, eq=False, weakref=True):
    """One call of the root."""

    seq: int
    key: Key | None
    ask: CastFuture[Any]
    materialize: Materializer | None = None
    payload: Any = None
    priority: int = 0
    hint: Any = MISSING  # what the first of two stages made of it on the root
    name: str = ""  # of the materializer, for the choice of a placement
    prepared: bool = False  # the payload is the value already, or the hint is there
    placement: str = ""  # once it is decided
    items: Any = None  # what `split` has made of its payload, where items are remembered one by one
    had: Any = ()  # of the items of its payload, the results that all ranks have again, as `Kept`
    memo: bool = False  # its value may be remembered, or be remembered already
    measured: bool = False  # what it costs is to be known
    spare: Any = None  # the cast to send if its value does not pickle, as `Encoder.encode` returns it
    untouched: Any = None  # fingerprint, payload and materializer as they were, for the same
    mark: bytes | None = None  # the fingerprint of a replicated payload
    as_called: Any = None  # in debug mode, what the payload was recognised by when the call was made
    failure: Failure | None = None  # it was refused, or its value cannot be had: sent in place of it
    cause: BaseException | None = None
    ready_s: float = 0.0  # since when it is ready
    takes_room: bool = False  # a refused call does not: it may stand behind one that waits for room
    held_since_s: float | None = None  # there was no room for it
    phase: CallPhase = CallPhase.NEW


class Calls:
    """The calls that have not been sent. Not thread-safe."""

    def __init__(self) -> None:
        self.new: deque[Call] = deque()  # have entered, and nobody has begun them; oldest first
        self._lines: dict[Key | None, deque[Call]] = {}
        self.sendable: deque[Call] = deque()  # ready, and first of their line
        self._unsent: dict[int, Call] = {}  # by the ask's number
        #: How many calls with a value have entered and are not sent.
        self.entered = 0

    def hold(self, call: Call) -> None:
        """Give a new call its place among those of its key. There is no room for it."""
        assert call.phase is CallPhase.NEW, call.phase
        call.phase = CallPhase.HELD
        self._lines.setdefault(call.key, deque()).append(call)
        self._unsent[call.ask.number] = call

    def enter(self, call: Call) -> None:
        """Let a call begin, in the place that it was given when it was held, or is given now."""
        assert call.phase <= CallPhase.HELD, call.phase
        if call.phase is CallPhase.NEW:
            self._lines.setdefault(call.key, deque()).append(call)
            self._unsent[call.ask.number] = call
        call.phase = CallPhase.QUEUED
        self.new.append(call)
        call.takes_room = call.failure is None
        self.entered += call.takes_room

    def make(self, call: Call) -> None:
        """The value of a call that was begun, or its hint, is being made."""
        assert call.phase is CallPhase.QUEUED, call.phase
        call.phase = CallPhase.MAKING

    def make_ready(self, call: Call) -> None:
        """Mark a call that can be sent when its turn comes."""
        assert call.phase in (CallPhase.QUEUED, CallPhase.MAKING), call.phase
        call.phase, call.ready_s = CallPhase.READY, time.monotonic()
        if self._lines[call.key][0] is call:
            self.sendable.append(call)

    def next_to_send(self, *, has_room: bool) -> Call | None:
        """Take the call whose turn has come; without room only one that carries no value."""
        call = None
        for each in self.sendable:
            goes = has_room or each.failure is not None or each.ask.taken
            if goes and (call is None or (each.priority, -each.seq) > (call.priority, -call.seq)):
                call = each
        if call is None:
            return None
        self.sendable.remove(call)
        line = self._lines[call.key]
        line.popleft()
        if not line:
            del self._lines[call.key]
        elif line[0].phase is CallPhase.READY:
            self.sendable.append(line[0])
        call.phase = CallPhase.SENDING
        return call

    @property
    def pending(self) -> bool:
        """Whether any call has not been sent."""
        return bool(self._unsent)

    def sent(self, call: Call) -> None:
        """Forget a call."""
        del self._unsent[call.ask.number]
        self.entered -= call.takes_room

    def of(self, ask: CastFuture[Any]) -> Call | None:
        """Return the call of an ask, unless it has been sent."""
        return self._unsent.get(ask.number)

    def first(self, key: Key | None) -> Call | None:
        """Return the call with this key that is sent next."""
        line = self._lines.get(key)
        return line[0] if line is not None else None

    def lines(self) -> list[str]:
        """Return a line for each call that has not been sent."""
        return [f"#{call.seq}{named(call.key)}: {call.phase.text}" for call in list(self._unsent.values())]

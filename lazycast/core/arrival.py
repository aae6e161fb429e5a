"""One cast as one rank sees it: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lazycast.codec.pickling import Layout
from lazycast.core.future import CastFuture
from lazycast.core.items.gathering import Gathering
from lazycast.core.memo.store import Kept
from lazycast.core.performer import Result
from lazycast.materialize.materializers import Materializer
from lazycast.missing import MISSING
from lazycast.net.wire import Cast, Cost, Failure, Value


class Own(msgspec.Struct, eq=False):
    """What this rank has itself, so that it need not come with the cast: the root all of it, others a payload."""

    payload: Any
    of_root: bool = False
    prepare: Materializer | None = None
    finish: Any = None
    hint: Any = MISSING
    mark: bytes | Exception | None = None  # the payload's fingerprint, if that has been tried


class Material(msgspec.Struct, eq=False):
    """What a rank's part is made from. Whoever takes it off the arrival alone keeps its memory alive."""

    body: memoryview | None
    own: Own | None
    shared: tuple[Value, memoryview] | None  # what the owner made


class Arrival(msgspec.Struct, eq=False, weakref=True):
    """The state of one cast on this rank. Guarded by the lane's lock."""

    message: Cast
    body: memoryview | None
    ask: CastFuture[Any] | None = None
    own: Own | None = None
    owner: int | None = None  # who materializes for this host; None: every rank for itself
    passed: list[int] = msgspec.field(default_factory=list)  # owners that would not
    items: Gathering | None = None  # what several make of it
    passes: int = 0  # how often this rank has heard, or said, that one would not
    shared: tuple[Value, memoryview] | None = None
    begun: bool = False
    local: Result | None = None  # this rank's own part is done
    verdict: Failure | None = None  # came before that, and names this rank
    cost: Cost | None = None  # of that part
    kept: list[tuple[int, Kept]] = msgspec.field(default_factory=list)  # what is to be kept once everybody has it
    again: Kept | None = None  # on the root: the value that all have again, for ranks that have not
    had: Sequence[Kept] = ()  # the results of items that are had again
    had_instead: tuple[memoryview, Layout] | None = None  # a list of these, as the root has sent it
    resent: bool = False  # on the root: that value has gone out, to all who have not
    lost: bool = False  # this rank was to have its value again, and has to ask for it
    final: Result | None = None
    told_read: bool = False
    arrived_s: float = 0.0
    reported_s: float = 0.0
    lapsed: bool = False  # its verdict cannot come any more
    dropped: bool = False  # the root let go of it before this rank had asked
    declined: bool = False  # the owner says that the cast has failed: the root is about to say so too
    objection: Failure | None = None  # this rank cannot take it: its call was not meant for it, or is over

    @property
    def wanted(self) -> bool:
        """Whether anybody here may still want the value."""
        ask = self.ask
        return ask is None or not ask.taken

    @property
    def _differs(self) -> bool:
        """Whether this rank's own payload is known not to be the root's."""
        own = self.own
        if own is None or own.of_root or self.message.fingerprint is None:
            return False
        return own.payload is MISSING or (own.mark is not None and own.mark != self.message.fingerprint)

    @property
    def over(self) -> bool:
        """Whether the cast has failed, or must: nobody will see what is made of it."""
        objection = self.objection
        if self.final is not None or self.verdict is not None or self.lapsed:
            return True
        if self.items is not None and self.items.failure is not None:
            return True
        return objection is not None and (self.message.agree or objection.kind == "withdrawn")

    def unwanted(self, rank: int) -> bool:
        """Whether nobody wants what `rank`, this one, makes of it."""
        return self.over or (not self.wanted and self.owner != rank)

    def ready(self, rank: int) -> bool:
        """Whether `rank`, this one, can begin its part."""
        message, ask, owner = self.message, self.ask, self.owner
        if self.begun or self.final is not None:
            return False
        if ask is None and (message.placement == "demand" or message.fingerprint is not None):
            return False
        if owner is None or owner == rank or (ask is not None and ask.taken):
            return True
        return self.shared is not None or self._differs

    def judged(self, result: Result) -> Result:
        """Return what a result counts for: nothing, if the call that is to get it cannot."""
        if self.objection is None or result.failure is not None:
            return result
        return Result(failure=self.objection)

    def take(self) -> Material:
        """Hand over what the part is made from."""
        material = Material(self.body, self.own, self.shared)
        self.body = self.own = self.shared = None
        if self.items is not None:
            self.items.let_go()
        return material

    def put_back(self, material: Material) -> None:
        """Have again what was handed over: it could not be used yet."""
        self.body, self.own, self.shared = material.body, material.own, material.shared

    def drop(self) -> None:
        """Let go of memory that is not needed any more."""
        self.body = self.own = self.shared = None
        if self.items is not None:
            self.items.let_go()

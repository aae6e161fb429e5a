"""One call of one rank, and what has become of it: plain data, guarded by the lock of the rank's lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lazycast.core.future import CastFuture
from lazycast.core.waits import Wait
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key, Origin, Status

if TYPE_CHECKING:
    from lazycast.core.arrival import Arrival


@dataclass(eq=False)
class Inquiry:
    """A question to the root about a call that waits long."""

    asked_s: float
    status: Status | None = None  # its answer
    relayed: set[int] = field(default_factory=set)  # the ranks that have passed it on


@dataclass(eq=False)
class Ask:
    """One call of `broadcast` or `broadcast_async` on this rank."""

    key: Key | None
    timeout_s: float
    future: CastFuture[Any]
    number: int
    since_s: float
    operation: str
    nth: int  # of the calls without a key; 0 with one
    wait: Wait[Ask] = field(init=False)
    arrival: Arrival | None = None
    taken: bool = False  # settled, or given up: what arrives for it is dropped
    late: Failure | None = None  # its time was over
    put_off: int = 0  # how often its end was put off, for a verdict that had been given
    origin: Origin | None = None  # where it was made, in debug mode
    inquiry: Inquiry | None = None  # what came of asking the root about it, the last time
    payload: Any = MISSING  # of this rank's own, where payloads are replicated
    mark: bytes | Exception | None = None  # its fingerprint, if that has been tried

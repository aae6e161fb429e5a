"""One call of one rank, and what has become of it: plain data, guarded by the lock of the rank's lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from lazycast.core.future import CastFuture
from lazycast.core.waits import Plan
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key, Origin, Status

if TYPE_CHECKING:
    from lazycast.core.arrival import Arrival
    from lazycast.core.spans import Traced


class Inquiry(msgspec.Struct, eq=False):
    """A question to the root about a call that waits long."""

    asked_s: float
    status: Status | None = None  # its answer
    relayed: set[int] = msgspec.field(default_factory=set)  # the ranks that have passed it on


class Ask(msgspec.Struct, eq=False, weakref=True):  # a struct is made in a third of the time of a data class
    """One call of `broadcast` or `broadcast_async` on this rank."""

    key: Key | None
    timeout_s: float
    future: CastFuture[Any]
    number: int
    since_s: float
    operation: str
    nth: int  # of the calls without a key; 0 with one
    stages: Plan = ()  # what is to be done about it when it waits long
    passed: int = 0  # of these
    next_s: float = 0.0  # when the next one is due
    arrival: Arrival | None = None
    taken: bool = False  # settled, or given up: what arrives for it is dropped
    late: Failure | None = None  # its time was over
    put_off: int = 0  # how often its end was put off, for a verdict that had been given
    origin: Origin | None = None  # where it was made, in debug mode
    inquiry: Inquiry | None = None  # what came of asking the root about it, the last time
    payload: Any = MISSING  # of this rank's own, where payloads are replicated
    mark: bytes | Exception | None = None  # its fingerprint, if that has been tried
    traced: Traced | None = None  # where calls are followed

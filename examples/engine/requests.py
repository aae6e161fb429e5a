"""What the parts of the engine tell each other: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

Payload = dict[str, list[bytes]]


@dataclass(eq=False)
class Request:
    """A client's request, on rank 0 only."""

    rid: str
    prompt: str
    max_tokens: int
    payload: Payload | None = None  # raw photos, as they came in; None for text
    gone: bool = False  # its client has hung up. Set by the front, read by its own threads and by the scheduler


@dataclass(frozen=True)
class Announced:
    """A request as the schedule tells the ranks of it. The photos do not travel here, unless `raw` has them."""

    rid: str
    prompt: str
    max_tokens: int
    has_photos: bool
    raw: Payload | None = None  # only where every rank is to materialize by itself


@dataclass
class Decision:
    """What rank 0 has decided for one iteration. Every rank does exactly this, in this order, and decides nothing."""

    announced: list[Announced] = field(default_factory=list)  # new: the other ranks ask for their photos
    discarded: list[str] = field(default_factory=list)  # cast, but never announced: nobody will ask for these photos
    aborted: list[str] = field(default_factory=list)  # waiting or running, and the client has hung up
    failed: dict[str, str] = field(default_factory=dict)  # waiting; their photos came to nothing, and why
    admitted: list[str] = field(default_factory=list)  # waiting; their photos are there: they join the batch
    stop: bool = False

    def __bool__(self) -> bool:
        return bool(self.announced or self.discarded or self.aborted or self.failed or self.admitted or self.stop)


@dataclass
class Outcome:
    """How a request went on one rank. Must be equal on all of them."""

    status: str = "running"  # then "finished", "aborted" or "failed"
    message: str = ""
    pixels_crc: int = 0
    tokens: list[int] = field(default_factory=list)


# What rank 0's scheduler is told from outside its loop.


@dataclass(frozen=True)
class Arrived:
    """A request whose photos, if it has any, have been cast."""

    request: Request


@dataclass(frozen=True)
class Refused:
    """A request that is not to run, though its cast counts: it was refused."""

    rid: str


@dataclass(frozen=True)
class Left:
    """A client has hung up."""

    rid: str


@dataclass(frozen=True)
class Woken:
    """Some photos are settled; look again."""


@dataclass(frozen=True)
class Stop:
    """Finish what there is, and end."""


Event = Arrived | Refused | Left | Woken | Stop


# What a client is told.


@dataclass(frozen=True)
class Ended:
    """The last thing a client hears."""

    status: str
    message: str = ""


Reply = int | Ended

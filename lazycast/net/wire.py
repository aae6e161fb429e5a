"""The messages that ranks exchange: their headers, as data.

Guarantees:

* A header is msgpack of one of the structs below behind one byte of wire version; it is never pickle, and decoding
  one runs no code of anybody's.
* What has no bound of its own (values, code) travels in a message's body; texts are clipped. A header stays below
  `MAX_HEADER_NBYTES`.
* Fields are positional. A change to any struct raises `WIRE_VERSION`; the handshake refuses other versions.
"""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from lazycast.net.backend import MAX_HEADER_NBYTES as MAX_HEADER_NBYTES

WIRE_VERSION: Final = 14
MAX_KEY_NBYTES: Final = 1 << 10

Key = str | int | bytes
WireKey = Any  # Key | None, which `decode` checks: msgspec has no union of str and bytes
FailureKind = Literal[
    "encode",
    "decode",
    "materialize",
    "mismatch",
    "refused",
    "withdrawn",
    "timeout",
    "lost",
    "closed",
    "untrusted",
    "diverged",
]

#: What a rank is heard to be, and does not report of itself.
ENDS: Final = frozenset({"lost", "closed"})

Count = Annotated[int, msgspec.Meta(ge=0)]


class WireError(ValueError):
    """A header that this version of lazycast cannot read."""


def printable(text: str, keep: str = "") -> str:
    """Return a text without what moves a cursor or forges a line of a log: such characters become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clean(struct: msgspec.Struct) -> None:
    """Make the texts of a struct printable."""
    for name in struct.__struct_fields__:
        value: object = getattr(struct, name)
        if isinstance(value, str) and not value.isprintable():
            msgspec.structs.force_setattr(struct, name, printable(value))
        elif isinstance(value, list) and value and isinstance(value[0], str):
            msgspec.structs.force_setattr(struct, name, [printable(text) for text in value])
        elif isinstance(value, dict):
            cleaned = {printable(key): printable(v) if isinstance(v, str) else v for key, v in value.items()}
            msgspec.structs.force_setattr(struct, name, cleaned)


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """How the end of a lost rank was noticed: by whom, on which link, why, and how long nothing had come from it."""

    by: int
    link: str
    reason: str
    heard_s: float | None = None

    def __post_init__(self) -> None:
        clean(self)


class Silence(msgspec.Struct, frozen=True, array_like=True):
    """A rank that does not answer the root: since how long, and since when nothing at all has come from it."""

    rank: int
    silent_s: float
    heard_s: float | None = None


class Overdue(msgspec.Struct, frozen=True, array_like=True):
    """How far a call had come on the rank whose time was over, and for whom it had waited."""

    phase: str
    missing: tuple[int, ...]
    answered: tuple[int, ...] = ()
    silences: tuple[Silence, ...] = ()
    nbytes: Count | None = None

    def __post_init__(self) -> None:
        clean(self)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What went wrong on one rank, as text: it arrives even if the exception itself could not.

    `raised` names the class of the exception, "module.qualname", where one was raised.
    """

    kind: FailureKind
    rank: int
    host: str
    message: str
    traceback: str | None = None
    loss: Loss | None = None
    overdue: Overdue | None = None
    raised: str | None = None

    def __post_init__(self) -> None:
        """An exception's text and a traceback have lines; who was lost or has closed is said in one."""
        message = printable(self.message, "" if self.kind in ENDS else "\n\t")
        traceback = None if self.traceback is None else printable(self.traceback, "\n\t")
        raised = None if self.raised is None else printable(self.raised)
        texts = ("message", message), ("traceback", traceback), ("host", printable(self.host)), ("raised", raised)
        for name, text in texts:
            msgspec.structs.force_setattr(self, name, text)


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Where a call was made, in debug mode: the site as text, and which of the calls without a key it was (or 0).

    `label` stands for the line, `place` for the function that it is in, both together with the line that called that.
    """

    site: str
    label: bytes
    place: bytes
    nth: Count

    def __post_init__(self) -> None:
        clean(self)


class MaterializerRef(msgspec.Struct, frozen=True, array_like=True):
    """Names a materializer: by import path, else by the digest of code that a `Code` message brings.

    With `part` that attribute of it is meant.
    """

    ident: str
    name: str
    path: tuple[str, str] | None = None
    part: Literal["prepare", "finish", "join"] | None = None


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """CPU seconds that the ranks of one host spent on a cast: of all, of the one with least, and with most.

    `rank` is one of them, `ranks` how many they are.
    """

    rank: Count
    ranks: Count
    total_s: float
    least_s: float
    most_s: float


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What its part of a cast cost a rank.

    `busy_s` is its CPU time, `materialize_s` the time in its materializer, `materialize_cpu_s` CPU time in it. An owner
    says how many bytes it shared, or why it could not. `held_s` is for how long its interpreter was kept from other
    threads, if that was watched. A rank that speaks for others tells what each of their `hosts` spent; the longest
    materializing is then that of any of them, and so is `held_s`.
    """

    busy_s: float
    materialize_s: float
    materialize_cpu_s: float = 0.0
    shared_nbytes: Count = 0
    unshared: str | None = None
    hosts: list[Spent] = []
    held_s: float | None = None


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages. `route` says whom a message is for, so that relays need not know what it says."""

    route: ClassVar[Literal["down", "up", "flood", "one", "host", "next"]]


class Cast(Message, frozen=True, tag="cast"):
    """One cast; the body holds what `codec.pickling` wrote. With `failure` the call is consumed without a value.

    The value is the body; or what the materializer `ref` makes of it; or, in two stages, what `finish` makes of the
    payload and of the hint that `ref` makes of it. Without `ref` the body of a cast in two stages holds payload and
    hint. A cast with a `fingerprint` has no payload in its body: every rank has brought its own. `turn` says which
    rank of each host is the owner. `sent_s` is when it was encoded, by the root's monotonic clock. `trace` has the
    headers of W3C's Trace Context, where the root's calls are spans. Of the casts that wait for a rank's workers, those
    with the highest `priority` come first. With `keep` every rank keeps the value, under that number; with `again` the
    value is what it keeps under that one. It forgets what it keeps under the numbers of `drop`, after that. With `each`
    those who materialize make the results of some items each, and every rank makes of all of them what `join` does, or
    a list. With `items` the body is a list of the new ones. It says of each item of the payload: n, it is new, and its
    result is kept under that number; 0, it is new, and not kept; -n, its result is what is kept under that one.
    """

    route = "down"
    seq: int
    key: WireKey
    placement: str
    agree: bool
    ref: MaterializerRef | None
    nbytes: Count = 0
    stream_nbytes: Count = 0
    frames: Count = 0
    failure: Failure | None = None
    finish: MaterializerRef | None = None
    turn: Count = 0
    fingerprint: bytes | None = None
    sent_s: float = 0.0
    origin: Origin | None = None
    priority: int = 0
    trace: dict[str, str] | None = None
    keep: Count = 0
    again: Count = 0
    drop: list[int] = []
    each: bool = False
    join: MaterializerRef | None = None
    items: list[int] = []


class Chunk(Message, frozen=True, tag="chunk"):
    """A later part of the body of cast or code number `seq`, to be put at `offset`."""

    route = "down"
    seq: int
    offset: Count
    nbytes: Count


class Code(Message, frozen=True, tag="code"):
    """What a rank lacks, in the body: the pickled code of a materializer, or a value that is had again.

    With `failure`, why it cannot be had.
    """

    route = "down"
    seq: int
    ident: str
    nbytes: Count = 0
    failure: Failure | None = None
    stream_nbytes: Count = 0  # of a value
    frames: Count = 0


_AGAIN: Final = "again:"


def again_ident(seq: int) -> str:
    """Name the value of a cast that a rank should have had again, and has not."""
    return f"{_AGAIN}{seq}"


def again_seq(ident: str) -> int | None:
    """Return which cast's value is named so; None: it is code. Raises ValueError for what names nothing."""
    return int(ident.removeprefix(_AGAIN)) if ident.startswith(_AGAIN) else None


class Verdict(Message, frozen=True, tag="verdict"):
    """The root's answer to the reports on a cast: everybody has it, or nobody does.

    That a cast is withdrawn comes after it, also of one that needs no reports.
    """

    route = "down"
    seq: int
    failure: Failure | None = None


class Drop(Message, frozen=True, tag="drop"):
    """The root lets go of a cast that no rank had asked for: who has not asked by now gets no value of it."""

    route = "down"
    seq: int


class Report(Message, frozen=True, tag="report"):
    """A rank's word on its part of a cast; `read` tells that it has been asked for there.

    `kept` is how many bytes of its value it keeps, if it was to. With `whole` it is the word of all ranks below, too.
    """

    route = "up"
    rank: int
    seq: int
    read: bool
    failure: Failure | None = None
    cost: Cost | None = None
    kept: Count = 0
    whole: bool = False


class Value(Message, frozen=True, tag="value"):
    """From the owner of a cast to the others of its host: its value or hint, in the body; or why there is none.

    With `unshared`, which says why, every rank makes its own. `passes` counts the ranks that passed the cast on. Of a
    cast that several make, this is the `part` with that number.
    """

    route = "host"
    rank: int
    seq: int
    passes: Count = 0
    nbytes: Count = 0
    stream_nbytes: Count = 0
    frames: Count = 0
    failure: Failure | None = None
    unshared: str | None = None
    part: Count = 0


class Pass(Message, frozen=True, tag="pass"):
    """From the owner of a replicated cast, who will not ask for it, to its host: `to` is the owner now."""

    route = "host"
    rank: int
    seq: int
    to: int
    passed: list[int]


class Read(Message, frozen=True, tag="read"):
    """Casts that a rank has asked for since it last said so: they no longer count against `max_inflight`.

    With `who`, a set of ranks as `net.members` packs it, it speaks of these instead.
    """

    route = "up"
    rank: int
    seqs: list[int]
    who: bytes = b""


class Need(Message, frozen=True, tag="need"):
    """A rank lacks a materializer's code, or a value that it was to remember: see `again_ident`."""

    route = "up"
    rank: int
    ident: str


class Query(Message, frozen=True, tag="query"):
    """A rank asks the root whom everybody waits for, and wants to know within `within_s`. `seq` if the cast is here."""

    route = "up"
    rank: int
    token: int
    seq: int | None
    key: WireKey
    within_s: float


class Status(Message, frozen=True, tag="status"):
    """The root's answer to a query.

    `calls` counts its unkeyed calls so far. `recent` shows its latest calls, in debug mode.
    """

    route = "one"
    to: int
    token: int
    phase: str
    missing: list[int]
    answered: list[int] = []
    silent: list[Silence] = []
    calls: Count = 0
    recent: list[str] = []

    def __post_init__(self) -> None:
        clean(self)


class Relayed(Message, frozen=True, tag="relayed"):
    """To a rank that asks, from each that has passed its query on: whoever is next, and silent, stands in the way."""

    route = "one"
    to: int
    token: int
    by: int


class RollCall(Message, frozen=True, tag="rollcall"):
    """The root wants to know who answers."""

    route = "down"


class Present(Message, frozen=True, tag="present"):
    """The answer to a roll call, from the thread that receives. `holders`: which casts hold its workers, if any do."""

    route = "up"
    rank: int
    holders: str = ""

    def __post_init__(self) -> None:
        clean(self)


class Beat(Message, frozen=True, tag="beat"):
    """A sign of life for the next host."""

    route = "next"


class Spread(msgspec.Struct, frozen=True, array_like=True):
    """A `lazycast.watch.timing.Timing`, as `trimmed` has it."""

    total_s: float
    max_s: float
    first: Count
    counts: list[Count]


class Figures(Message, frozen=True, tag="figures"):
    """What a rank has counted since construction, for the root's `stats(group=True)`.

    `counts` has the attributes of `lazycast.watch.stats.Stats` that are whole numbers, by name.
    """

    route = "up"
    rank: int
    age_s: float
    qps: float
    counts: dict[str, Count]
    placements: dict[str, Count]
    failed: dict[str, Count]
    timings: dict[str, Spread]
    memo_saved_s: float = 0.0
    unshared_reason: str | None = None

    def __post_init__(self) -> None:
        clean(self)


class Gone(Message, frozen=True, tag="gone"):
    """A rank has closed or was lost. Passed on by everybody to everybody."""

    route = "flood"
    rank: int
    failure: Failure


AnyMessage = (
    Cast
    | Chunk
    | Code
    | Verdict
    | Drop
    | Report
    | Value
    | Pass
    | Read
    | Need
    | Query
    | Status
    | Relayed
    | RollCall
    | Present
    | Beat
    | Figures
    | Gone
)

_PREFIX: Final = bytes([WIRE_VERSION])
_KEYED: Final = (Cast, Query)
_KEY_TYPES: Final = (NoneType, str, int, bytes)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Return the header of a message."""
    return _PREFIX + _encoder.encode(message)


def decode(header: bytes) -> AnyMessage:
    """Read a header. Raises WireError for another version or anything that is not a header."""
    if header[:1] != _PREFIX:
        raise WireError(f"wire version {header[0] if header else None}, this rank speaks {WIRE_VERSION}")
    try:
        message: AnyMessage = _decoder.decode(memoryview(header)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"malformed header: {exc}") from exc
    if isinstance(message, _KEYED) and type(message.key) not in _KEY_TYPES:
        raise WireError(f"malformed header: a key of type {type(message.key).__name__}")
    return message

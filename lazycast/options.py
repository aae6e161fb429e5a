"""What a `LazyBroadcast` is told at construction: checked here, before anybody is met."""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from lazycast.codec.doors import problem
from lazycast.materialize.staged import unusable

VALUES: Final = ("private", "readonly", "copy")
PLACEMENTS: Final = ("every", "demand", "root", "shard", "auto")
#: What `placement=Helpers(...)` is called where placements are named.
HELPERS: Final = "helpers"
#: Placements under which one rank of a host sees to the value for the others.
OWNED: Final = ("shard", HELPERS)
TRUST: Final = ("pickle", "data")
BEYOND: Final = ("wait", "refuse", "drop")
ROOTS: Final = ("one", "any")
WITH_OWNERS: Final = ("shard", "auto")
#: The environment variable that makes each call's place travel with it.
DEBUG: Final = "LAZYCAST_DEBUG"
DEFAULT_MAX_INFLIGHT_NBYTES: Final = 1 << 30
DEFAULT_ARENA_NBYTES: Final = 1 << 30
_MOST_NICE: Final = 19


@dataclass(frozen=True)
class Tuning:
    """What is good as it is for most: `LazyBroadcast(tuning=Tuning(max_inflight=8))`. See the tuning page.

    Attributes:
        max_inflight: how many casts the root may be ahead of the slowest rank; a call beyond it waits.
        max_inflight_nbytes: the same in bytes of payloads; at least one goes out, whatever its size.
        beyond: what a call does beyond these limits: "wait"; "refuse", at once, with a WouldBlockError; or "drop" the
            oldest cast that no rank has asked for: whoever asks for it later gets a CancelledError, `next()` leaves it
            out, and what is not made yet is withdrawn. If every cast has been asked for somewhere, it waits.
        arena_nbytes: shared memory for what this rank sends on its host, and as much again for payloads that do not
            fit. Taken as it is used. May differ by rank.
        shared_memory: "auto", or False to send everything through the backend, also on one host.
        warn_after_s: after how long a call that waits is warned about (seconds); `math.inf`: never.
        executor: where materializers run, instead of on threads of lazycast's own. It stays yours to shut down.
    """

    max_inflight: int = 64
    max_inflight_nbytes: int = DEFAULT_MAX_INFLIGHT_NBYTES
    beyond: str = "wait"
    arena_nbytes: int = DEFAULT_ARENA_NBYTES
    shared_memory: bool | str = "auto"
    warn_after_s: float = 30.0
    executor: concurrent.futures.Executor | None = None


@dataclass(frozen=True)
class Shard:
    """`placement="shard"` with some ranks alone as owners: `LazyBroadcast(placement=Shard(owners={2, 3}))`.

    Attributes:
        owners: the ranks that materialize, on their hosts in turn, group-local; None for all. A host that has none of
            them uses all of its ranks.
    """

    owners: Collection[int] | None = None


@dataclass(frozen=True)
class Memo:
    """What was cast before is neither sent nor made again: `LazyBroadcast(memo=Memo(1 << 30))`.

    The root knows the payloads that it has cast with a materializer, and says so in place of casting one again: every
    rank has the value already. It is its own all the same: what one request writes into its value no other sees.

    Of an `Each` under `placement="shard"` or `Helpers` it remembers the result of each item (of payloads of up to a
    thousand): the items that are new are sent and made, and `join` gets all results in order. The root runs `split`.

    Attributes:
        nbytes: how much each rank may keep, of values as they are encoded, in whole pages of memory; the least recently
            used go first. With `roots="any"` each root has an equal share of it.
        key: `callable(payload) -> str, int or bytes`, what names the content of a payload, called on the root. None: a
            digest (SHA-256) of all its bytes, which takes about a millisecond per megabyte. Where single items are
            remembered, it gets each item in place of the payload: what two payloads have in common must have one name.
    """

    nbytes: int
    key: Callable[[Any], str | int | bytes] | None = None


def _name_of(fn: object) -> str:
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


@dataclass(frozen=True)
class Helpers:
    """On each host, `count` processes make the values, so that no rank does: `LazyBroadcast(placement=Helpers(2))`.

    They are fresh interpreters, started in the background by the host's leader, and end with it. Whoever of them is
    free makes the next value; every rank of the host gets it through shared memory.

    Attributes:
        count: how many on each host; a rank that shares memory with nobody has as many for itself. More than the
            host's cores: with a warning.
        limit_s: how long a helper may work on one value (seconds): then it is ended, and that cast fails with
            MaterializeError. None: as long as the cast's calls wait, with `agree`; five seconds later it is ended, if
            `lazycast.cancelled()` was not heeded.
        memory_nbytes: how much memory of its own a helper may take (`RLIMIT_DATA`), the interpreter's 40 MB and its
            libraries' included; what goes beyond is a MemoryError of that cast. None: no limit.
        init: `callable()`, called once in each helper before it makes anything: to load a model, say, or to register
            reducers. It travels as a materializer does. Construction waits for it, and its failure is a
            MaterializeError of the constructor, on every rank.
        niceness: by how much ranks come before helpers on a busy machine, 0 to 19.
        cuda: whether helpers see the machine's GPUs. Without, `CUDA_VISIBLE_DEVICES` is empty there.
    """

    count: int
    limit_s: float | None = None
    memory_nbytes: int | None = None
    init: Callable[[], object] | None = None
    niceness: int = 5
    cuda: bool = False

    def said(self) -> str:
        """Return what must be the same on every rank."""
        init = None if self.init is None else shown(self.init, _name_of)
        limits = f"limit_s={shown(self.limit_s)}, memory_nbytes={shown(self.memory_nbytes)}"
        return f"{shown(self.count)}, {limits}, init={init}, niceness={shown(self.niceness)}, cuda={shown(self.cuda)}"


@dataclass(frozen=True)
class Auto:
    """`placement="auto"` with more to choose from: `LazyBroadcast(placement=Auto(helpers=Helpers(2)))`.

    Attributes:
        owners: the ranks that may materialize where it chooses `"shard"`: see `Shard`.
        helpers: processes that it may leave materializing to: see `Helpers`. It does where a materializer keeps its
            rank's interpreter from other work for longer than the way to a helper and back takes. Every materializer
            must work in a helper.
    """

    owners: Collection[int] | None = None
    helpers: Helpers | None = None


@dataclass(frozen=True)
class Options:
    """The options of one object on one rank, checked by `check`."""

    materialize: Callable[[Any], Any] | None
    root: int
    name: str
    placement: str
    agree: bool
    values: str
    trust: str
    max_inflight: int
    max_inflight_nbytes: int
    timeout_s: float
    warn_after_s: float
    executor: concurrent.futures.Executor | None
    arena_nbytes: int
    shared_memory: bool | str
    owners: Collection[int] | None = None
    replicated: bool = False
    roots: str = "one"
    beyond: str = "wait"
    allow: Collection[str] | None = None
    debug: bool = False
    helpers: Helpers | None = None
    memo: Memo | None = None

    def __post_init__(self) -> None:
        for field in fields(self):  # all that goes into headers is plain
            object.__setattr__(self, field.name, exact(getattr(self, field.name)))

    def kept_nbytes(self, size: int) -> int:
        """Return how much is remembered of the casts of each root, in a group of `size` ranks."""
        assert self.memo is not None
        return self.memo.nbytes // (size if self.roots == "any" else 1)

    def agreed(self) -> dict[str, object]:
        """Return what must be the same on every rank."""
        shared = ("root", "name", "placement", "agree", "values", "trust", "replicated", "roots")
        said: dict[str, object] = {name: getattr(self, name) for name in shared}
        try:
            said["owners"] = None if self.owners is None else sorted({int(rank) for rank in self.owners})
        except (TypeError, ValueError):  # it is none; `check` says so
            said["owners"] = shown(self.owners)
        said["allow"] = _allow_agreed(self.allow)
        said[DEBUG] = self.debug
        said["memo"] = shown(self.memo.nbytes) if isinstance(self.memo, Memo) else None
        if isinstance(self.helpers, Helpers):
            said[HELPERS] = self.helpers.said()
        return said


#: Keywords of the constructor that were, and how the same is spelled now.
_OLD: Final = {
    **{field.name: f"tuning=Tuning({field.name}=...)" for field in fields(Tuning)},
    "owners": "placement=Shard(owners=...), or Auto(owners=...)",
    "allow": "trust={...}, the names that are allowed",
}


def refuse_old(keywords: Collection[str]) -> None:
    """Raise TypeError for keywords that the constructor had once, saying how the same is spelled now."""
    for name in keywords:
        if name in _OLD:
            raise TypeError(f"LazyBroadcast() has no {name}=: write {_OLD[name]}")


def flat(placement: object, trust: object, tuning: object) -> dict[str, Any]:
    """Return what `Options` knows by single names. What is no good stays as it is, for `check` to refuse."""
    tuning = tuning if isinstance(tuning, Tuning) else Tuning()
    found: dict[str, Any] = {field.name: getattr(tuning, field.name) for field in fields(Tuning)}
    owners = placement.owners if isinstance(placement, (Shard, Auto)) else None
    helpers: object = placement if isinstance(placement, Helpers) else None
    if isinstance(placement, Auto):
        helpers = placement.helpers
    if isinstance(placement, (Shard, Auto, Helpers)):
        placement = type(placement).__name__.lower()
    allow = trust if isinstance(trust, Collection) and not isinstance(trust, (str, bytes)) else None
    return {
        **found,
        "placement": placement,
        "owners": owners,
        "helpers": helpers,
        "trust": "pickle" if allow is not None else trust,
        "allow": allow,
    }


def debug_wanted() -> bool:
    """Whether the environment asks for debug mode."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def _allow_agreed(allow: object) -> object:
    """Put a list that is allowed into a form that is short, and the same wherever the list is."""
    if allow is None:
        return None
    try:
        names = sorted({exact(name) for name in allow})  # type: ignore[attr-defined]
        text = "\n".join(names).encode()
    except (TypeError, ValueError):  # it is none; `check` says so
        return shown(allow)
    return names if len(text) <= 100 else f"{len(names)} names, {hashlib.sha256(text).hexdigest()[:16]}"


#: What turns an object of a subclass into the plain one that it is, without a method of the subclass.
_EXACT: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
)


def exact(value: Any) -> Any:
    """Return the str, int, float or bytes that an object of a subclass is (`numpy.str_`, an `IntEnum`, not a bool).

    Headers hold only such, and a subclass may have methods that do anything. What is none of them is returned as it is.
    """
    if type(value) in (str, int, float, bytes, bool):
        return value
    return next((plain(value) for kind, plain in _EXACT if isinstance(value, kind)), value)


def is_text(value: str) -> bool:
    """Whether a string can be sent: one with half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object, how: Callable[[object], str] = repr, limit: int = 200) -> str:
    """Return a short text that can be sent; never raises, whatever a user's object does."""
    try:
        return how(value)[:limit].encode("utf-8", "replace").decode()
    except Exception:
        return f"<{type(value).__name__}>"


def _problem(name: str, value: object, kinds: tuple[type, ...]) -> str | None:
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not value > 0 or not math.isfinite(value):  # type: ignore[operator,arg-type]
        return f"{name} must be a positive {' or '.join(k.__name__ for k in kinds)}, got {shown(value)}"
    return None


def _is_never(value: object) -> bool:
    return isinstance(value, float) and value == math.inf


def _owners_problem(options: Options, size: int) -> str | None:
    owners: object = options.owners
    if owners is None:
        return None
    if options.placement not in WITH_OWNERS:
        return f"owners are for placement 'shard' or 'auto', not {shown(options.placement)}"
    if not isinstance(owners, Collection) or isinstance(owners, (str, bytes)) or len(owners) == 0:
        return f"owners must be a collection of at least one rank, or None, got {shown(owners)}"
    strange = [r for r in owners if isinstance(r, bool) or not isinstance(r, (int, np.integer)) or not 0 <= r < size]
    return f"owners: {shown(strange)} are no ranks of this group: 0 to {size - 1} (group-local)" if strange else None


def _placement_problem(options: Options) -> str | None:
    placement: object = options.placement
    if isinstance(placement, str) and placement == HELPERS:
        return None if options.helpers is not None else "placement 'helpers' needs a number: placement=Helpers(count)"
    if not isinstance(placement, str) or placement not in PLACEMENTS:
        known = ", ".join(map(repr, PLACEMENTS))
        return f"unknown placement {shown(placement)}; use one of {known}, or Helpers(count)"
    return None


def _helpers_problem(helpers: object) -> Exception | None:
    if helpers is None:
        return None
    if not isinstance(helpers, Helpers):
        return TypeError(f"helpers must be Helpers(count), got {shown(helpers)}")
    for text in (
        _problem("Helpers: count", helpers.count, (int,)),
        None if helpers.limit_s is None else _problem("Helpers: limit_s", helpers.limit_s, (int, float)),
        None if helpers.memory_nbytes is None else _problem("Helpers: memory_nbytes", helpers.memory_nbytes, (int,)),
    ):
        if text is not None:
            return ValueError(text)
    nice: object = helpers.niceness
    if isinstance(nice, bool) or not isinstance(nice, int) or not 0 <= nice <= _MOST_NICE:
        return ValueError(f"Helpers: niceness must be an int from 0 to {_MOST_NICE}, got {shown(nice)}")
    cuda: object = helpers.cuda
    if not isinstance(cuda, bool):
        return ValueError(f"Helpers: cuda must be True or False, got {shown(cuda)}")
    wrong = None if helpers.init is None else unusable(helpers.init)
    return None if wrong is None else TypeError(wrong.replace("materialize must", "Helpers: init must", 1))


#: Memory is mapped before it is used, four times as much, and a process has 128 TiB of addresses.
_MOST_MEMO_NBYTES = 16 << 40


def _memo_problem(options: Options) -> Exception | None:
    memo: object = options.memo
    if memo is None:
        return None
    if not isinstance(memo, Memo):
        return TypeError(f"memo must be a Memo or None, got {shown(memo)}")
    text = _problem("Memo: nbytes", memo.nbytes, (int,))
    if text is None and memo.nbytes > _MOST_MEMO_NBYTES:
        text = f"Memo: nbytes must be at most {_MOST_MEMO_NBYTES} (16 TiB), got {memo.nbytes}"
    key: object = memo.key
    if key is not None and not callable(key):
        return TypeError(f"Memo: key must be callable or None, got {type(key).__name__}")
    if not options.agree or options.placement in ("demand", "root"):
        text = (
            text
            or "memo needs agree=True and a placement other than 'demand' and 'root': all ranks keep a value, or none"
        )
    if options.replicated is True:
        text = text or "memo is for payloads that are sent; with replicated=True every rank has its own"
    return None if text is None else ValueError(text)


def _trust_problem(options: Options) -> str | None:
    allow: object = options.allow
    if not isinstance(options.trust, str) or options.trust not in TRUST:
        known = ", ".join(map(repr, TRUST))
        return f"unknown trust {shown(options.trust)}; use one of {known}, or a set of the names that may arrive"
    if allow is None:
        return None
    if not isinstance(allow, Collection) or isinstance(allow, (str, bytes)):
        return f"trust must be 'pickle', 'data' or a set of names, got {shown(allow)}"
    return next((f"trust: {shown(name)} {why}" for name in allow if (why := problem(name)) is not None), None)


def check(options: Options, size: int) -> Exception | None:
    """Return the error that `options` deserve in a group of `size` ranks, or None."""
    materialize: object = options.materialize
    if materialize is not None and not callable(materialize):
        return TypeError(f"materialize must be callable or None, got {type(materialize).__name__}")
    if materialize is not None and (wrong := unusable(materialize)) is not None:
        return TypeError(wrong)
    if isinstance(options.root, bool) or not isinstance(options.root, int) or not 0 <= options.root < size:
        return ValueError(
            f"root={shown(options.root)} is not a rank of this group: 0 to {size - 1} (root is group-local)"
        )
    if not isinstance(options.roots, str) or options.roots not in ROOTS:
        return ValueError(f"unknown roots {shown(options.roots)}; use 'one' or 'any'")
    if options.roots == "any" and options.root != 0:
        return ValueError(f"with roots='any' every rank is a root: leave out root={options.root}")
    if (bad := _helpers_problem(options.helpers) or _memo_problem(options)) is not None:
        return bad
    for text in (_placement_problem(options), _owners_problem(options, size), _trust_problem(options)):
        if text is not None:
            return ValueError(text)
    if not isinstance(options.values, str) or options.values not in VALUES:
        return ValueError(f"unknown values {shown(options.values)}; use one of {', '.join(map(repr, VALUES))}")
    if not isinstance(options.name, str) or not 0 < len(options.name) <= 200 or not is_text(options.name):
        return ValueError(f"name must be a string of 1 to 200 characters, got {shown(options.name)}")
    switches: dict[str, object] = {"agree": options.agree, "replicated": options.replicated}
    for name, value in switches.items():
        if not isinstance(value, bool):
            return ValueError(f"{name} must be True or False, got {shown(value)}")
    executor: object = options.executor
    if executor is not None and not isinstance(executor, concurrent.futures.Executor):
        return TypeError(f"executor must be a concurrent.futures.Executor or None, got {shown(executor)}")
    if not isinstance(options.beyond, str) or options.beyond not in BEYOND:
        return ValueError(f"unknown beyond {shown(options.beyond)}; use one of {', '.join(map(repr, BEYOND))}")
    shared: object = options.shared_memory
    if shared is not False and not (isinstance(shared, str) and shared == "auto"):
        return ValueError(f"shared_memory must be 'auto' or False, got {shown(shared)}")
    if isinstance(executor, concurrent.futures.ProcessPoolExecutor):
        return TypeError(
            "executor must run in this process (a ThreadPoolExecutor, say): its results are not pickled; for processes "
            "that materialize, use placement=Helpers(count)"
        )
    for text in (
        _problem("max_inflight", options.max_inflight, (int,)),
        _problem("max_inflight_nbytes", options.max_inflight_nbytes, (int,)),
        _problem("arena_nbytes", options.arena_nbytes, (int,)),
        _problem("timeout_s", options.timeout_s, (int, float)),
        _problem("warn_after_s", 1.0 if _is_never(options.warn_after_s) else options.warn_after_s, (int, float)),
    ):
        if text:
            return ValueError(text)
    return None

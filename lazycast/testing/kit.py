"""What behaviours are written with: a rank, and checks that raise."""

from __future__ import annotations

import concurrent.futures
import itertools
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.net.backend import Backend, Context
from lazycast.options import Auto, Shard, Tuning

E = TypeVar("E", bound=BaseException)

#: Long enough for a loaded machine; whoever runs into it has found a hang.
TIMEOUT_S = 40.0
#: So short that a test ends soon, and so long that a call which waits in vain has been told by the root what it waits
#: for: it asks a fifth of that before the end, but at most a second. No less: on a busy machine an answer may take most
#: of a second.
TOLD_S = 5.0

_local = threading.local()


def this_rank() -> int:
    """Return the rank whose `Rank.executor` runs the calling materializer: ranks may be threads of one process."""
    rank: int = _local.rank
    return rank


def _set_rank(rank: int) -> None:
    _local.rank = rank


@dataclass
class Rank:
    """One rank of the group that behaviours run on. Every rank runs every behaviour."""

    backend: Backend
    shared_memory: bool | str = "auto"
    _names: itertools.count[int] = field(default_factory=itertools.count)
    _context: Context | None = None
    _step: str = ""

    @property
    def rank(self) -> int:
        return self.backend.rank

    @property
    def size(self) -> int:
        return self.backend.size

    @property
    def last(self) -> int:
        """The highest rank."""
        return self.size - 1

    def begin(self, step: str) -> None:
        """Start a behaviour. Collective."""
        _set_rank(self.rank)  # a group of one materializes in the calling thread
        self._step = step
        if self._context is None:
            self._context = self.backend.open(timeout_s=TIMEOUT_S)

    def meet(self) -> None:
        """Wait for all ranks. Collective."""
        assert self._context is not None
        steps = {blob.decode() for blob in self._context.exchange(self._step.encode(), timeout_s=TIMEOUT_S)}
        check(steps == {self._step}, f"ranks meet in different places: {sorted(steps)}")

    def end(self) -> None:
        """After a behaviour that failed somewhere, and at the end: forget the meeting, it may be out of step."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def lazy(self, materialize: Callable[[Any], Any] | None = None, **options: Any) -> LazyBroadcast[Any, Any]:
        """Construct an object on all ranks, with a name of its own. Collective."""
        defaults = {"name": f"check-{next(self._names)}", "timeout_s": TIMEOUT_S, "shared_memory": self.shared_memory}
        return LazyBroadcast(materialize, backend=self.backend, **spelled({**defaults, **options}))

    def executor(self, threads: int = 2) -> concurrent.futures.ThreadPoolExecutor:
        """Return an executor whose threads know this rank (`this_rank`)."""
        return concurrent.futures.ThreadPoolExecutor(threads, initializer=_set_rank, initargs=(self.rank,))


def spelled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by single names, `owners`, `allow` and those of `Tuning` too, as the constructor has them."""
    left = dict(options)
    tuned = {field.name: left.pop(field.name) for field in fields(Tuning) if field.name in left}
    if tuned and "tuning" not in left:
        left["tuning"] = Tuning(**tuned)
    owners, allow = left.pop("owners", None), left.pop("allow", None)
    if owners is not None:
        left["placement"] = {"shard": Shard, "auto": Auto}[left.get("placement", "auto")](owners)
    if allow is not None:
        left["trust"] = allow
    return left


Behaviour = Callable[[Rank], None]
_registry: list[tuple[Behaviour, int]] = []


def behaviour(min_size: int = 1) -> Callable[[Behaviour], Behaviour]:
    """Register a behaviour; it is left out in groups of fewer ranks, where it has no meaning."""

    def register(fn: Behaviour) -> Behaviour:
        _registry.append((fn, min_size))
        return fn

    return register


def behaviours(size: int) -> list[Behaviour]:
    """Return what can be checked on a group of `size` ranks."""
    return [fn for fn, min_size in _registry if size >= min_size]


def name_of(fn: Behaviour) -> str:
    """Return how a behaviour is shown: module.function."""
    return f"{fn.__module__.rpartition('.')[2]}.{fn.__name__}"


def check(condition: bool, message: str) -> None:
    """Raise unless `condition` holds; unlike assert, also under -O."""
    if not condition:
        raise AssertionError(message)


def same(got: Any, expected: Any, what: str = "value") -> None:
    """Raise unless two values are equal, types, array dtypes, shapes and contents included."""
    check(type(got) is type(expected), f"{what}: {type(got).__name__} instead of {type(expected).__name__}")
    if isinstance(expected, np.ndarray):
        check(got.dtype == expected.dtype, f"{what}: dtype {got.dtype} instead of {expected.dtype}")
        check(got.shape == expected.shape, f"{what}: shape {got.shape} instead of {expected.shape}")
        check(np.array_equal(got, expected, equal_nan=expected.dtype.kind == "f"), f"{what}: other contents")
    elif isinstance(expected, dict):
        check(list(got) == list(expected), f"{what}: keys {list(got)} instead of {list(expected)}")
        for key in expected:
            same(got[key], expected[key], f"{what}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        check(len(got) == len(expected), f"{what}: {len(got)} items instead of {len(expected)}")
        for index, (g, e) in enumerate(zip(got, expected, strict=True)):
            same(g, e, f"{what}[{index}]")
    else:
        check(got == expected, f"{what}: {got!r} instead of {expected!r}")


def raises(kind: type[E], pattern: str, call: Callable[[], Any]) -> E:
    """Raise unless `call` raises exactly `kind` with a text that matches; return the exception."""
    try:
        value = call()
    except kind as exc:
        check(type(exc) is kind, f"{type(exc).__name__} instead of {kind.__name__}: {exc}")
        check(re.search(pattern, str(exc), re.DOTALL) is not None, f"{str(exc)!r} does not match {pattern!r}")
        return exc
    raise AssertionError(f"{kind.__name__} was not raised; got {value!r}")

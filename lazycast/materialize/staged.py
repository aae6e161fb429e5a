"""A materializer in two stages, the first of which one rank runs for its host."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType, WrapperDescriptorType
from typing import Any, Generic, TypeVar

from lazycast.materialize.each import Each

P = TypeVar("P")
H = TypeVar("H")
V = TypeVar("V")


@dataclass(frozen=True)
class Staged(Generic[P, H, V]):
    """A materializer whose expensive part has a small result, which is all that ranks share.

    Every rank runs `finish` on a payload of its own, so values are private to each rank, whatever is done to them.

    Args:
        prepare: `callable(payload) -> hint`; it must not change the payload. The hint is picklable and small: hashes,
            sizes, pad values. One rank per host runs it, or the root, or every rank, as the placement says.
        finish: `callable(payload, hint) -> value`, cheap; every rank runs it. It may change its payload.
    Raises: TypeError for what is not callable.
    Threads: both run on the threads of whoever materializes, several at a time.
    """

    prepare: Callable[[P], H]
    finish: Callable[[P, H], V]

    def __post_init__(self) -> None:
        for name in ("prepare", "finish"):
            part = getattr(self, name)
            if not callable(part):
                raise TypeError(f"Staged: {name} must be callable, got {type(part).__name__}")

    def __call__(self, payload: P) -> V:
        """Run both stages."""
        return self.finish(payload, self.prepare(payload))


def unusable(fn: object) -> str | None:
    """Say why `fn` is no materializer, or None: it must be callable, and give the value itself, nothing to await."""
    if not callable(fn):
        return f"materialize must be callable, got {type(fn).__name__}"
    for part in _leaves(fn) if isinstance(fn, (Staged, Each)) else (fn,):
        if _is_async(part):
            return (
                "materialize must give the value, and an async function gives something to await, which nobody does: "
                "pass a plain one, which may call asyncio.run()"
            )
    return None


def _leaves(fn: object) -> list[object]:
    """Return the functions that a materializer is made of."""
    if isinstance(fn, Staged):
        return [*_leaves(fn.prepare), *_leaves(fn.finish)]
    return [fn.fn, fn.split, fn.join] if isinstance(fn, Each) else [fn]


def each_of(fn: object) -> Each[Any, Any, Any, Any] | None:
    """Return a materializer, or the first stage of one, if it works item by item."""
    first = fn.prepare if isinstance(fn, Staged) else fn
    return first if isinstance(first, Each) else None


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is_async(fn: object) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    # Of other objects only the class is asked: their attributes may be anything.
    called = fn if isinstance(fn, (FunctionType, MethodType)) else vars(type(fn)).get("__call__")
    # What most are, first: `inspect` passes through a dozen functions, and every call of the root does.
    plain = called.__func__ if type(called) is MethodType else called
    if type(plain) is FunctionType and not plain.__dict__:
        return bool(plain.__code__.co_flags & _ASYNC)
    if type(called) is WrapperDescriptorType:
        return False
    return inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)

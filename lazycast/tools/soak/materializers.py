"""What the soak's materializers do. They travel by import path, by registered name, or as code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lazycast.materialize.materializers import register_materializer
from lazycast.materialize.staged import Staged
from lazycast.tools.soak.payloads import digest

#: This process's rank: planned failures and pauses happen on the ranks that a payload names.
this_rank = -1


class Planned(RuntimeError):
    """What a materializer raises because the plan says so."""


class Opaque:
    """A value that cannot be shared: it holds a lock."""

    def __init__(self, content: str) -> None:
        self.content, self.lock = content, threading.Lock()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.content == self.content

    def __hash__(self) -> int:
        return hash(self.content)

    def __repr__(self) -> str:
        return f"Opaque({self.content!r})"


def summarize(payload: Any) -> tuple[str, int]:
    """Return a small value."""
    text = digest(payload)
    return text, int(text[:8], 16)


def wrap(payload: Any) -> dict[str, Any]:
    """Return a value as large as the payload."""
    return {"payload": payload, "digest": digest(payload)}


def grow(payload: Any) -> dict[str, Any]:
    """Return a large value of any payload: arrays that an owner shares."""
    text = digest(payload)
    return {"digest": text, "grown": np.full(150_000, int(text[:4], 16), np.int32)}


def change(payload: Any) -> Any:
    """Change the payload itself, where it can be."""
    if isinstance(payload, np.ndarray):
        if not payload.flags.writeable:
            payload = payload.copy()
        payload[...] = payload[...] == 0
    elif isinstance(payload, dict):
        payload["changed"] = len(payload)
    return [payload]


def opaque(payload: Any) -> Opaque:
    """Return a value that does not pickle."""
    return Opaque(digest(payload))


def fail(payload: dict[str, Any]) -> tuple[str, int]:
    """Raise on the ranks that the payload names."""
    if this_rank in payload["ranks"]:
        raise Planned(f"planned on rank {this_rank}")
    return summarize(payload["payload"])


def pause(payload: dict[str, Any]) -> tuple[str, int]:
    """Take a while."""
    time.sleep(payload["seconds"])
    return summarize(payload["payload"])


def attach(payload: Any, hint: tuple[str, int]) -> dict[str, Any]:
    """The second stage."""
    return {"payload": payload, "hint": hint}


def code(seed: int) -> Callable[[Any], Any]:
    """Return a closure, which travels as code: another one for each of a few seeds."""
    kind = seed % 5

    def scaled(payload: Any) -> tuple[int, str]:
        return kind, digest(payload)

    return scaled


_PLAIN: dict[str, Callable[[Any], Any]] = {
    fn.__name__: fn for fn in (summarize, wrap, grow, change, opaque, fail, pause)
}
_PLAIN["staged"] = Staged(summarize, attach)


def _again(fn: Any) -> Any:
    """Return an object of its own that does the same, so that the first one goes on to travel by its path."""
    if isinstance(fn, Staged):
        return Staged(_again(fn.prepare), _again(fn.finish))

    def again(*args: Any) -> Any:
        return fn(*args)

    again.__qualname__ = f"again.{fn.__name__}"
    return again


_REGISTERED = {name: _again(fn) for name, fn in _PLAIN.items()}

NAMES = (*_PLAIN, "code")


def register() -> None:
    """Register what objects with `trust="data"` use. On every rank."""
    for name, fn in _REGISTERED.items():
        register_materializer(f"soak.{name}", fn)


def named(name: str | None, seed: int, trust: str) -> Callable[[Any], Any] | None:
    """Return the materializer of a cast."""
    if name is None:
        return None
    if name == "code":
        return code(seed)
    return _REGISTERED[name] if trust == "data" else _PLAIN[name]

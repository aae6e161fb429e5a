"""What the plan's casts are made of, and the values that they must give: each names its object and its number."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from lazycast.materialize.staged import Staged
from lazycast.missing import MISSING

from .plan import Cast, Thing


class Planned(RuntimeError):
    """What a materializer raises because the plan says so."""


def made(thing: Thing, cast: Cast) -> dict[str, Any]:
    """Make what a cast is about; each call makes another object."""
    return {"of": [thing.name, cast.number], "data": np.full(cast.nbytes // 4, cast.number, np.int32)}


def payload(thing: Thing, cast: Cast) -> Any:
    """Return what the root passes."""
    if cast.kind == "missing":
        return MISSING
    content = made(thing, cast)
    return {**content, "lock": threading.Lock()} if cast.kind == "unencodable" else content


def double(payload: dict[str, Any]) -> dict[str, Any]:
    """Change the payload itself, where it may be written to, and return it."""
    if payload["data"].flags.writeable:
        payload["data"] *= 2
    else:
        payload["data"] = payload["data"] * 2
    return payload


def fail(payload: dict[str, Any]) -> Any:
    """Raise, on whatever rank."""
    raise Planned(f"as planned: {payload['of']}")


def measure(payload: dict[str, Any]) -> int:
    """The first of two stages."""
    return int(payload["data"].sum(dtype=np.int64))


def attach(payload: dict[str, Any], total: int) -> dict[str, Any]:
    """The second."""
    return {**payload, "total": total}


def materializer(cast: Cast) -> Callable[[Any], Any] | None:
    """Return the materializer of a cast: by import path, as code that has captured something, or in two stages."""
    if cast.materializer != "code":
        return {"double": double, "fail": fail, "staged": Staged(measure, attach)}.get(cast.materializer or "")
    captured = cast.number

    def code(payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return captured, payload

    return code


def value(thing: Thing, cast: Cast) -> Any:
    """Return the value of a cast."""
    content, fn = made(thing, cast), materializer(cast)
    return content if fn is None else fn(content)


def difference(got: Any, wanted: Any) -> str | None:
    """Say how two values differ, or None."""
    if type(got) is not type(wanted):
        return f"{got!r:.200} instead of {wanted!r:.200}"
    if isinstance(wanted, np.ndarray):
        same = (got.dtype, got.shape) == (wanted.dtype, wanted.shape) and bool((got == wanted).all())
        return None if same else f"{got!r:.200} instead of {wanted!r:.200}"
    if isinstance(wanted, dict) and list(got) == list(wanted):
        parts = [(got[name], wanted[name]) for name in wanted]
    elif isinstance(wanted, tuple) and len(got) == len(wanted):
        parts = list(zip(got, wanted, strict=True))
    else:
        return None if got == wanted else f"{got!r:.200} instead of {wanted!r:.200}"
    return next((text for one, other in parts if (text := difference(one, other)) is not None), None)

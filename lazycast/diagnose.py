"""Finds the part of an object that does not pickle, so that an error can name it. Runs only when something failed."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator

import cloudpickle

_MAX_DEPTH = 8
_MAX_CHILDREN = 1000


def items_of(obj: object) -> Iterator[tuple[str, object]]:
    """Yield the items of a container with the text that leads to each."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{key!r}]", value
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield f"[{index}]", value


def _children(obj: object) -> Iterator[tuple[str, object]]:
    """Yield the parts of an object with the text that leads to each."""
    if isinstance(obj, (dict, list, tuple, set, frozenset)):
        yield from items_of(obj)
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        for index, value in enumerate(obj.args):
            yield f".args[{index}]", value
        for key, value in obj.keywords.items():
            yield f".keywords[{key!r}]", value
    elif isinstance(obj, types.FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
            try:
                yield f"'s captured variable {name!r}", cell.cell_contents
            except ValueError:  # a cell that is not filled yet
                continue
        for name in obj.__code__.co_names:
            if name in obj.__globals__:
                yield f"'s global {name!r}", obj.__globals__[name]
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
    elif not isinstance(obj, (type, types.ModuleType)):
        for name, value in getattr(obj, "__dict__", {}).items():
            yield f".{name}", value


def _error_of(obj: object) -> Exception | None:
    try:
        cloudpickle.dumps(obj, protocol=5, buffer_callback=lambda _: None)
    except Exception as exc:
        return exc
    return None


def find_unpicklable(obj: object) -> tuple[str, object, Exception | None]:
    """Walk down to the smallest part that does not pickle; return the way to it, the part and its error."""
    return find_part(obj, _error_of, _children)


def find_part(
    obj: object,
    error_of: Callable[[object], Exception | None],
    children: Callable[[object], Iterator[tuple[str, object]]],
) -> tuple[str, object, Exception | None]:
    """Walk down to the smallest part that has an error; return the way to it, the part and its error."""
    way, error = "", error_of(obj)
    seen = {id(obj)}
    for _ in range(_MAX_DEPTH):
        for count, (step, child) in enumerate(children(obj)):
            if count >= _MAX_CHILDREN or id(child) in seen:
                continue
            child_error = error_of(child)
            if child_error is not None:
                seen.add(id(child))
                way, obj, error = way + step, child, child_error
                break
        else:
            break
    return way, obj, error


def describe_unpicklable(obj: object, error: Exception) -> str:
    """Say in one line which part of `obj` does not pickle and why. Never raises."""
    try:
        way, part, part_error = find_unpicklable(obj)
        where = f"{type(obj).__name__}{way}" if way else type(obj).__name__
        return f"{where} (a {type(part).__qualname__}) does not pickle: {part_error or error}"
    except Exception:
        return f"{type(obj).__name__} does not pickle: {type(error).__name__}"

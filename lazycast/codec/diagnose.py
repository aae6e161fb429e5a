"""Finds the part of an object that does not pickle, so that an error can name it. Runs only when something failed."""

from __future__ import annotations

import collections
import copyreg
import functools
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, cast

import cloudpickle
import numpy as np

from lazycast.codec.reducers import Reduction

_MAX_DEPTH = 64
_MAX_CHILDREN = 1000
_MAX_CANDIDATES = 16  # objects that may be the one that failed: the last that pickle has asked about
_MAX_LOOKED_AT = 1_000_000
_MAX_REDUCED = 3  # levels of what a reducer returns: arguments and state, what is in them, a list there
_ATOMS = frozenset({NoneType, bool, int, float, complex, str, bytes, bytearray})
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")


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
        if isinstance(obj, np.ndarray) and obj.dtype == object:
            for place, value in np.ndenumerate(obj):
                yield f"[{', '.join(map(str, place))}]", value
        elif isinstance(obj, collections.deque):
            for index, value in enumerate(obj):
                yield f"[{index}]", value
        for name, value in getattr(obj, "__dict__", {}).items():
            yield f".{name}", value
        for name in copyreg._slotnames(type(obj)):  # type: ignore[attr-defined]  # as pickle itself finds them
            if hasattr(obj, name):
                yield f".{name}", getattr(obj, name)


class _Nowhere:
    """The file of a pickler whose output nobody wants."""

    def write(self, data: object) -> int:
        return 0


def _drop(buffer: object) -> None:
    """Let a buffer travel out of band, to nowhere."""


def _without_bytes(reduced: Any, depth: int = 0) -> Any:
    """Leave out the bytes of what pickle is given: it would keep them until its end, copies of large ones too."""
    if isinstance(reduced, (bytes, bytearray, pickle.PickleBuffer)):
        return b""
    if type(reduced) in (tuple, list) and depth < _MAX_REDUCED:
        return type(reduced)(_without_bytes(part, depth + 1) for part in reduced)
    return reduced


def _is_plain(obj: object) -> bool:
    """Whether an object is large at most, and would be copied only to see that nothing is wrong with it."""
    kind = type(obj)
    if kind is np.ndarray:
        return not cast(np.ndarray, obj).dtype.hasobject
    torch = sys.modules.get("torch")
    if torch is not None and kind is torch.Tensor:
        from lazycast.codec.reducers.torch_tensors import is_bytes_and_strides

        return is_bytes_and_strides(cast(Any, obj)) and not obj.__dict__
    return kind is memoryview


class _Watched(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles to nowhere, and notes what it is asked about: the last of it is where it failed."""

    def __init__(self) -> None:
        self.dispatch_table = self._reduction = Reduction()
        self._reduction.base = cloudpickle.Pickler.dispatch_table
        self.last: collections.deque[object] = collections.deque(maxlen=_MAX_CANDIDATES)
        self.opened: set[int] = set()
        super().__init__(_Nowhere(), protocol=5, buffer_callback=_drop)

    def reducer_override(self, obj: Any) -> Any:
        self.last.append(obj)
        if _is_plain(obj):
            return tuple, ()
        reduced = super().reducer_override(obj)
        kind = type(obj)
        if reduced is NotImplemented and (issubclass(kind, type) or kind is types.FunctionType):
            return reduced  # by name
        self.opened.add(id(obj))
        return _without_bytes(self._reduction[kind](obj) if reduced is NotImplemented else reduced)


def _watch(obj: object) -> tuple[Exception | None, _Watched]:
    pickler = _Watched()
    try:
        pickler.dump(obj)
    except Exception as exc:
        return exc.with_traceback(None), pickler  # by way of which its frames would keep each other, and the payload
    finally:
        pickler.clear_memo()
    return None, pickler


def _way_to(obj: object, part: object, opened: set[int]) -> str | None:
    """Return the first way to a part, in the order in which pickle goes through an object; None if there is none.

    Args:
        opened: which objects, but for containers, pickle has looked into.
    """
    if obj is part:
        return ""
    seen, looked_at = {id(obj)}, 0
    stack = [("", _children(obj))]
    while stack:
        for step, child in stack[-1][1]:
            if child is part:
                return "".join(step for step, _ in stack) + step
            looked_at += 1
            if looked_at > _MAX_LOOKED_AT:
                return None
            if type(child) in _ATOMS or id(child) in seen or len(stack) >= _MAX_DEPTH:
                continue
            if type(child) in _CONTAINERS or id(child) in opened:
                seen.add(id(child))
                stack.append((step, _children(child)))
                break
        else:
            stack.pop()
    return None


def find_unpicklable(obj: object) -> tuple[str, object, Exception | None]:
    """Return the way to the part that does not pickle, the part and its error.

    In one pass, and what is pickled goes nowhere: a payload may be as large as what is left of memory.
    """
    error, watched = _watch(obj)
    if error is None or isinstance(error, (MemoryError, RecursionError)):
        return "", obj, error
    candidates = [*watched.last]
    watched.last.clear()
    while candidates:
        part = candidates.pop()
        way = _way_to(obj, part, watched.opened)
        if way is not None and is_same(_watch(part)[0], error):
            return way, part, error
    return "", obj, error


def is_same(error: BaseException | None, other: BaseException) -> bool:
    """Whether two errors say the same, but for addresses."""
    texts = [_ADDRESS.sub("", f"{type(one)} {one}") for one in (error, other)]
    return texts[0] == texts[1]


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
    """Say in one line which part of `obj` does not pickle, and why: in the words of `error`. Never raises."""
    try:
        way, part, found = find_unpicklable(obj)
        if not is_same(found, error):  # it has not happened again: no part can be blamed for it
            way, part = "", obj
        where = f"{type(obj).__name__}{way}" if way else type(obj).__name__
        return f"{where} (a {type(part).__qualname__}) does not pickle: {str(error) or type(error).__name__}"
    except Exception:
        return f"{type(obj).__name__} does not pickle: {type(error).__name__}"

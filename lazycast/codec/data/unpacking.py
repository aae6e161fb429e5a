"""Puts objects together from what msgpack has read. Trusts none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any

from lazycast.codec.data import arrays, tensors
from lazycast.codec.data.marks import MAX_DEPTH, Mark

_ATOMS = frozenset({NoneType, bool, int, float, str, bytes})


#: What begins a list or a dict in msgpack, and what begins an extension.
_OPENING = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_EXTENDING = b"\xc7\xc8\xc9\xd4\xd5\xd6\xd7\xd8"


def is_flat(stream: bytes) -> bool:
    """Whether msgpack cannot hold anything that `check_atoms` refuses, as its bytes alone tell. Takes a microsecond."""
    if len(stream) > MAX_DEPTH and len(stream) - len(stream.translate(None, _OPENING)) > MAX_DEPTH:
        return False
    return len(stream.translate(None, _EXTENDING)) == len(stream)


def check_atoms(obj: Any) -> None:
    """Raise ValueError for what no honest stream without marks holds: deep nesting, dates, keys that are lists."""
    level = [obj]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                if not _ATOMS.issuperset(map(type, item)):
                    raise ValueError("a key that msgpack has not")
                item = item.values()
            elif kind is not list:
                if kind not in _ATOMS:
                    raise ValueError(f"a {kind.__name__} where a value should be")
                continue
            if not _ATOMS.issuperset(map(type, item)):
                inner += item
        level = inner
        if not level:
            return
    if not _ATOMS.issuperset(map(type, level)):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")


class Unpacker:
    """Unpacks one object. What it copies, it copies once per frame: a body cannot make much of little."""

    def __init__(self, frames: Iterable[memoryview]) -> None:
        self._frames = list(frames)
        self._copies: dict[int, object] = {}  # by frame: the `bytes`, or the tensor, made of it

    def unpack(self, obj: Any, depth: int = 0) -> Any:
        kind = type(obj)
        if kind in _ATOMS:
            return obj
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if kind is list:
            if obj and type(obj[0]) is Mark:
                return _UNPACK[obj[0]](self, obj[1:], depth)
            return self._items(obj, depth)
        if kind is dict:
            return self._dict(obj, depth)
        raise ValueError(f"a {kind.__name__} where a value should be")

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        if _ATOMS.issuperset(map(type, items)):
            return items
        return [self.unpack(item, depth + 1) for item in items]

    def _dict(self, items: dict[Any, Any], depth: int) -> dict[Any, Any]:
        if not _ATOMS.issuperset(map(type, items)):
            raise ValueError("a key that msgpack has not")
        if _ATOMS.issuperset(map(type, items.values())):
            return items
        return {key: self.unpack(value, depth + 1) for key, value in items.items()}

    def _frame(self, number: object) -> memoryview:
        if type(number) is not int or not 0 <= number < len(self._frames):
            raise ValueError(f"frame {number!r:.40} of {len(self._frames)}")
        return self._frames[number]

    def _copy(self, number: int, make: Callable[[memoryview], object]) -> Any:
        """Return what is made of a frame, once."""
        frame = self._frame(number)
        made = self._copies.get(number)
        if made is None:
            made = self._copies[number] = make(frame)
        return made

    # One method for each mark

    def _tuple(self, rest: list[Any], depth: int) -> Any:
        return tuple(self._items(rest, depth))

    def _set(self, rest: list[Any], depth: int) -> Any:
        return set(self._items(rest, depth))

    def _frozenset(self, rest: list[Any], depth: int) -> Any:
        return frozenset(self._items(rest, depth))

    def _marked_dict(self, rest: list[Any], depth: int) -> Any:
        items = self._items(rest, depth)
        return dict(zip(items[::2], items[1::2], strict=True))

    def _int(self, rest: list[Any], depth: int) -> Any:
        return int.from_bytes(_one(rest, bytes), "little", signed=True)

    def _str(self, rest: list[Any], depth: int) -> Any:
        return _one(rest, bytes).decode("utf-8", "surrogatepass")

    def _complex(self, rest: list[Any], depth: int) -> Any:
        if [type(part) for part in rest] != [float, float]:
            raise ValueError("no complex number")
        return complex(*rest)

    def _bytes(self, rest: list[Any], depth: int) -> Any:
        made = self._copy(_one(rest, int), bytes)
        if type(made) is not bytes:
            raise ValueError("a frame that is used twice")
        return made

    def _bytearray(self, rest: list[Any], depth: int) -> Any:
        if len(rest) == 1 and type(rest[0]) is bytes:
            return bytearray(rest[0])
        number = _one(rest, int)
        if number in self._copies:
            raise ValueError("a frame that is used twice")
        return self._copy(number, bytearray)

    def _array(self, rest: list[Any], depth: int) -> Any:
        number, *how = rest
        return arrays.rebuild(self._frame(number), *how)

    def _view(self, rest: list[Any], depth: int) -> Any:
        return self._array(rest, depth).data

    def _scalar(self, rest: list[Any], depth: int) -> Any:
        return arrays.rebuild_scalar(*rest)

    def _tensor(self, rest: list[Any], depth: int) -> Any:
        number, name, offset, size, stride, requires_grad, kind = rest
        flat = None if number is None else self._copy(number, lambda frame: tensors.receive(frame, kind))
        if type(flat) is bytes or type(flat) is bytearray:
            raise ValueError("a frame that is used twice")
        return tensors.rebuild(flat, name, offset, size, stride, requires_grad, kind)


_UNPACK: dict[Mark, Callable[[Unpacker, list[Any], int], Any]] = {
    Mark.TUPLE: Unpacker._tuple,
    Mark.SET: Unpacker._set,
    Mark.FROZENSET: Unpacker._frozenset,
    Mark.DICT: Unpacker._marked_dict,
    Mark.INT: Unpacker._int,
    Mark.STR: Unpacker._str,
    Mark.COMPLEX: Unpacker._complex,
    Mark.BYTES: Unpacker._bytes,
    Mark.BYTEARRAY: Unpacker._bytearray,
    Mark.VIEW: Unpacker._view,
    Mark.ARRAY: Unpacker._array,
    Mark.SCALAR: Unpacker._scalar,
    Mark.TENSOR: Unpacker._tensor,
}


def _one(rest: list[Any], kind: type) -> Any:
    if len(rest) != 1 or type(rest[0]) is not kind:
        raise ValueError(f"one {kind.__name__} should follow a mark")
    return rest[0]

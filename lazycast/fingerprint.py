"""A cheap fingerprint of a payload, by which ranks that bring their own can tell that they mean the same one.

Guarantees:

* Equal payloads have equal fingerprints on every rank of a job. Different ones have different ones as far as that shows
  in the structure, in shapes, types and lengths, in scalars and text, or in the bytes that are sampled.
* The cost follows the number of objects, not of bytes: of long buffers some hundred bytes are looked at.
* Nothing of the payload is copied or changed, and no code of its classes runs but `str` of standard ones. An object of
  an unknown class counts by its class and attributes,
  whether they lie in a dict or in slots (of dataclasses, of `msgspec.Struct`). Classes, functions and members of enums
  count by their names.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import hashlib
import pathlib
import sys
import types
import uuid
from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any

import numpy as np

_WHOLE_NBYTES = 512  # buffers up to this size are read whole
_SAMPLES, _SAMPLE_NBYTES = 8, 32
_MAX_OBJECTS = 10_000
_MAX_WEIGHED = 1_000  # where only the size is asked for, with every cast
_MAX_DEPTH = 16
_ELEMENTS = 256
_HUGE = 1 << 63
_MANY = 32  # numbers in a list: looked at together
_AS_TEXT = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PurePath,
    uuid.UUID,
    range,
    slice,
)
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what they hold is the program's


_MAX_KINDS = 1_000
_slots_known: dict[type, tuple[str, ...]] = {}


def _slots(kind: type) -> tuple[str, ...]:
    """Return the names under which objects of a class hold attributes in slots, also those of a `msgspec.Struct`."""
    known = _slots_known.get(kind)
    if known is not None:
        return known
    names: list[str] = []
    for cls in reversed(kind.__mro__):  # each class adds its own, and none repeats those of another
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            names += [name] if name not in ("__dict__", "__weakref__") else []
    if len(_slots_known) >= _MAX_KINDS:
        _slots_known.clear()
    found = _slots_known[kind] = tuple(names)
    return found


def _attributes(obj: object) -> Iterator[tuple[str, Any]]:
    """Yield what an object of any class holds: in its dict, and in slots."""
    yield from (getattr(obj, "__dict__", None) or {}).items()
    for name in _slots(type(obj)):
        try:
            yield name, object.__getattribute__(obj, name)  # not the class's own way: that is its code
        except AttributeError:
            yield name, None  # not set


class _Reader:
    """Adds up a payload's bytes, and, if it is given a digest, feeds what tells payloads apart into it.

    Facts are gathered, since to hash one costs as much as to hash all; those before samples say how long these are.
    """

    def __init__(self, digest: Any = None, max_objects: int = _MAX_OBJECTS) -> None:
        self.digest = digest
        self.nbytes = 0
        self._left = max_objects
        self._facts: list[object] = []

    def mark(self) -> bytes:
        """Return the digest of all that has been read."""
        self.digest.update(repr(self._facts).encode("utf-8", "replace"))
        return self.digest.digest()  # type: ignore[no-any-return]

    def _say(self, *facts: object) -> None:
        if self.digest is not None:
            self._facts += facts

    def _sample(self, raw: memoryview) -> None:
        self.nbytes += raw.nbytes
        if self.digest is None:
            return
        if raw.nbytes <= _WHOLE_NBYTES:
            self.digest.update(raw)
            return
        last = raw.nbytes - _SAMPLE_NBYTES
        for index in range(_SAMPLES):
            start = last * index // (_SAMPLES - 1)
            self.digest.update(raw[start : start + _SAMPLE_NBYTES])

    def read(self, obj: Any, depth: int = 0) -> None:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            return  # enough has been said
        kind = type(obj)
        if obj is None or kind in (bool, int, float, complex):
            # Huge numbers in another base: the text of decimal ones is limited, and slow.
            self._say(kind.__name__, hex(obj) if kind is int and not -_HUGE < obj < _HUGE else obj)
            self.nbytes += 8
        elif kind is str and len(obj) <= _WHOLE_NBYTES:
            self._say("str", obj)
            self.nbytes += len(obj)
        elif kind in (dict, list, tuple):
            (self._mapping if kind is dict else self._sequence)(obj, depth)
        elif isinstance(obj, enum.Enum):
            value = obj.value  # the members of a flag that are made of others have no name
            self._say("enum", kind.__qualname__, obj.name, value if isinstance(value, (int, str)) else None)
            self.nbytes += 8
        elif isinstance(obj, _NAMED):
            self._say("named", getattr(obj, "__module__", None), getattr(obj, "__qualname__", None) or obj.__name__)
            self.nbytes += 8
        elif isinstance(obj, str):
            self._say("text", kind.__name__, len(obj))
            self._sample(memoryview(str.encode(obj, "utf-8", "surrogatepass")))
        elif isinstance(obj, (bytes, bytearray, memoryview)):
            raw = memoryview(obj)
            self._say("bytes", kind.__name__, raw.nbytes)
            self._sample(raw.cast("B") if raw.c_contiguous and raw.nbytes else memoryview(raw.tobytes()))
        elif isinstance(obj, array.array):
            self._say("array.array", kind.__name__, obj.typecode, len(obj))
            self._sample(memoryview(obj).cast("B") if len(obj) else memoryview(b""))
        elif isinstance(obj, (np.ndarray, np.generic)):
            self._array(np.asarray(obj))
        elif isinstance(obj, Mapping):
            self._mapping(obj, depth)
        elif isinstance(obj, (list, tuple, collections.deque)):
            self._sequence(obj, depth)
        elif isinstance(obj, Set):
            self._set(obj, depth)
        elif isinstance(obj, _AS_TEXT):
            self._say("text", kind.__name__, str(obj))
            self.nbytes += 8
        elif isinstance(obj, (int, float, complex)):
            base = next(base for base in (int, float, complex) if isinstance(obj, base))
            self._say(kind.__name__, base.__repr__(obj))
            self.nbytes += 8
        else:
            self._object(obj, depth)

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> None:
        self._say("mapping", type(mapping).__name__, len(mapping))
        for key, value in mapping.items():
            self.read(key, depth + 1)
            self.read(value, depth + 1)

    def _sequence(self, items: Collection[Any], depth: int) -> None:
        self._say("sequence", type(items).__name__, len(items))
        if len(items) >= _MANY:
            for code in ("q", "d"):
                try:
                    numbers = array.array(code, items)
                except (TypeError, OverflowError):
                    continue
                self._say(code)
                self.nbytes += len(numbers) * 8
                if self.digest is not None:
                    self.digest.update(numbers)
                return
        for item in items:
            self.read(item, depth + 1)

    def _set(self, items: Collection[Any], depth: int) -> None:
        """Ranks have sets in orders of their own."""
        self._say("set", type(items).__name__, len(items))
        self.nbytes += 8 * len(items)
        if self.digest is None or len(items) > self._left:
            return
        marks = []
        for item in items:
            reader = _Reader(hashlib.blake2b(digest_size=16), self._left)
            reader.read(item, depth + 1)
            marks.append(reader.mark())
        self._left -= len(marks)
        for mark in sorted(marks):
            self.digest.update(mark)

    def _array(self, values: np.ndarray) -> None:
        self._say("array", values.shape, values.dtype.str)
        self.nbytes += values.nbytes
        if self.digest is None or values.dtype.hasobject or not values.nbytes:
            return
        if values.nbytes <= _WHOLE_NBYTES:
            some = np.ascontiguousarray(values)
        else:  # elements in C order, however they lie in memory
            flat: Any = values.reshape(-1) if values.flags.c_contiguous else values.flat
            some = np.ascontiguousarray(flat[:: max(1, values.size // _ELEMENTS)])
        self.digest.update(some.reshape(-1).view(np.uint8).data)

    def _object(self, obj: Any, depth: int) -> None:
        kind = type(obj)
        self._say(kind.__module__, kind.__qualname__)
        torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if torch is not None and isinstance(obj, torch.Tensor):
            self._say(tuple(obj.shape), str(obj.dtype), obj.requires_grad)
            plain = obj.layout is torch.strided and obj.device.type == "cpu" and obj.is_contiguous()
            if plain and obj.numel() and not obj.is_conj() and not obj.is_neg():
                whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(obj.element_size(), torch.int64)
                self._array(obj.detach().reshape(-1).view(whole).numpy())
            else:
                self.nbytes += obj.numel() * obj.element_size()
        elif pillow is not None and isinstance(obj, pillow.Image):
            self._say(obj.mode, obj.size)
            self.nbytes += obj.size[0] * obj.size[1] * len(obj.getbands())
        else:
            for name, value in _attributes(obj):
                self._say(name)
                self.read(value, depth + 1)


def fingerprint(payload: object) -> bytes:
    """Return 16 bytes. Raises whatever the attributes of an object of a strange class raise when looked at."""
    reader = _Reader(hashlib.blake2b(digest_size=16))
    reader.read(payload)
    return reader.mark()


def approximate_nbytes(payload: object) -> int:
    """Return about how many bytes a payload has: of one with very many objects, those that come first.

    Raises: as `fingerprint`.
    """
    reader = _Reader(max_objects=_MAX_WEIGHED)
    reader.read(payload)
    return reader.nbytes

"""A cheap fingerprint of a payload, by which ranks that bring their own can tell that they mean the same one.

Guarantees:

* Equal payloads have equal fingerprints on every rank of a job. Different ones have different ones as far as that shows
  in the structure, in shapes, types and lengths, in scalars and text, or in the bytes that are sampled.
* The cost follows the number of objects, not of bytes: of long buffers some hundred bytes are looked at.
* Nothing of the payload is run, copied or changed. An object of an unknown class counts by its class and attributes,
  whether they lie in a dict or in slots (of dataclasses, of `msgspec.Struct`). Classes, functions and members of enums
  count by their names.
"""

from __future__ import annotations

import array
import enum
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

_WHOLE_NBYTES = 512  # buffers up to this size are read whole
_SAMPLES, _SAMPLE_NBYTES = 8, 32
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 16
_SHORT = 32
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what they hold is the program's


def _attributes(obj: object) -> Iterator[tuple[str, Any]]:
    """Yield what an object of any class holds: in its dict, in slots, or in the fields of a struct."""
    yield from (getattr(obj, "__dict__", None) or {}).items()
    for cls in reversed(type(obj).__mro__):  # each class adds its own, and none repeats those of another
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            try:
                yield name, object.__getattribute__(obj, name)  # not the class's own way: that is its code
            except AttributeError:
                yield name, None  # not set


class _Reader:
    """Feeds a payload into a hash, and adds up its bytes."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.nbytes = 0
        self._objects = 0

    def _say(self, *facts: object) -> None:
        self.digest.update(repr(facts).encode("utf-8", "replace"))

    def _sample(self, raw: memoryview) -> None:
        self.nbytes += raw.nbytes
        if raw.nbytes <= _WHOLE_NBYTES:
            self.digest.update(raw)
            return
        last = raw.nbytes - _SAMPLE_NBYTES
        for index in range(_SAMPLES):
            start = last * index // (_SAMPLES - 1)
            self.digest.update(raw[start : start + _SAMPLE_NBYTES])

    def read(self, obj: Any, depth: int = 0) -> None:
        self._objects += 1
        if self._objects > _MAX_OBJECTS or depth > _MAX_DEPTH:
            return  # enough has been said
        kind = type(obj)
        if obj is None or kind in (bool, int, float, complex):
            self._say(kind.__name__, obj)
            self.nbytes += 8
        elif isinstance(obj, enum.Enum):
            value = obj.value  # the members of a flag that are made of others have no name
            self._say("enum", kind.__qualname__, obj.name, value if isinstance(value, (int, str)) else None)
            self.nbytes += 8
        elif isinstance(obj, _NAMED):
            self._say("named", getattr(obj, "__module__", None), getattr(obj, "__qualname__", None) or obj.__name__)
            self.nbytes += 8
        elif kind is str:
            self._say("str", len(obj))
            self._sample(memoryview(obj.encode("utf-8", "surrogatepass")))
        elif kind in (bytes, bytearray, memoryview):
            raw = memoryview(obj)
            self._say(kind.__name__, raw.nbytes)
            self._sample(raw.cast("B") if raw.c_contiguous and raw.nbytes else memoryview(raw.tobytes()))
        elif kind is array.array:
            self._say("array.array", obj.typecode, len(obj))
            self._sample(memoryview(obj).cast("B") if len(obj) else memoryview(b""))
        elif isinstance(obj, (np.ndarray, np.generic)):
            self._array(np.asarray(obj))
        elif isinstance(obj, Mapping):
            self._say("mapping", kind.__name__, len(obj))
            for key, value in obj.items():
                self.read(key, depth + 1)
                self.read(value, depth + 1)
        elif isinstance(obj, (list, tuple)):
            self._say(kind.__name__, len(obj))
            if len(obj) > _SHORT and self._ints(obj):
                return
            for item in obj:
                self.read(item, depth + 1)
        elif isinstance(obj, Set):  # in no order that ranks share
            self._say("set", kind.__name__, len(obj))
            self.nbytes += 8 * len(obj)
        else:
            self._object(obj, depth)

    def _ints(self, numbers: list[Any] | tuple[Any, ...]) -> bool:
        """Read many numbers at once, such as token ids. False if they are something else."""
        if set(map(type, numbers)) != {int}:
            return False
        try:
            raw = array.array("q", numbers)
        except OverflowError:
            return False
        self.digest.update(raw)
        self.nbytes += 8 * len(numbers)
        return True

    def _array(self, array: np.ndarray) -> None:
        self._say("array", array.shape, array.dtype.str)
        if array.dtype.hasobject:
            self.nbytes += array.nbytes
        elif array.flags.c_contiguous:
            self._sample(array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b""))
        else:
            some = np.ascontiguousarray(array.flat[:: max(1, array.size // 64)])
            self.digest.update(some.view(np.uint8).data)
            self.nbytes += array.nbytes

    def _object(self, obj: Any, depth: int) -> None:
        kind = type(obj)
        self._say(kind.__module__, kind.__qualname__)
        torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if torch is not None and isinstance(obj, torch.Tensor):
            self._say(tuple(obj.shape), str(obj.dtype), obj.requires_grad)
            plain = obj.layout is torch.strided and obj.device.type == "cpu" and obj.is_contiguous()
            if plain and obj.numel() and not obj.is_conj() and not obj.is_neg():
                self._array(obj.detach().reshape(-1).view(torch.uint8).numpy())
            else:
                self.nbytes += obj.numel() * obj.element_size()
        elif pillow is not None and isinstance(obj, pillow.Image):
            self._say(obj.mode, obj.size)
            self.nbytes += obj.size[0] * obj.size[1] * len(obj.getbands())
        else:
            for name, value in _attributes(obj):
                self._say(name)
                self.read(value, depth + 1)


def survey(payload: object) -> tuple[bytes, int]:
    """Return a fingerprint of 16 bytes, and about how many bytes the payload has.

    Raises: whatever the attributes of an object of a strange class raise when looked at.
    """
    reader = _Reader()
    reader.read(payload)
    return reader.digest.digest(), reader.nbytes


def fingerprint(payload: object) -> bytes:
    """Return the fingerprint alone."""
    return survey(payload)[0]

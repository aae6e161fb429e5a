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
_HUGE = 1 << 63
_PLAIN = frozenset({type(None), bool, int, float, complex})
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what they hold is the program's
_MAX_KINDS = 1000
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


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object of any class holds: in its dict, and in slots."""
    yield from (getattr(obj, "__dict__", None) or {}).items()
    for name in _slots(type(obj)):
        try:
            yield name, object.__getattribute__(obj, name)  # not the class's own way: that is its code
        except AttributeError:
            yield name, None  # not set


class _Reader:
    """Reads a payload, and adds up its bytes. What it finds is gathered, since a hash costs the same for all of it."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._digest = hashlib.blake2b(digest_size=16)  # of samples; their lengths are among the facts
        self._facts: list[object] = []
        self._objects = 0

    def digest(self) -> bytes:
        """Return the fingerprint of what has been read."""
        self._digest.update(repr(self._facts).encode("utf-8", "replace"))
        return self._digest.digest()

    def _say(self, *facts: object) -> None:
        self._facts += facts

    def _sample(self, raw: memoryview) -> None:
        self.nbytes += raw.nbytes
        if raw.nbytes <= _WHOLE_NBYTES:
            self._digest.update(raw)
            return
        last = raw.nbytes - _SAMPLE_NBYTES
        samples = [
            raw[start : start + _SAMPLE_NBYTES] for start in (last * n // (_SAMPLES - 1) for n in range(_SAMPLES))
        ]
        self._digest.update(b"".join(samples))

    def read(self, obj: Any, depth: int = 0) -> None:
        self._objects += 1
        if self._objects > _MAX_OBJECTS or depth > _MAX_DEPTH:
            return  # enough has been said
        kind = type(obj)
        if kind in _PLAIN:
            # Huge numbers in another base: the text of decimal ones is limited, and slow.
            self._facts.append(obj if kind is not int or -_HUGE < obj < _HUGE else hex(obj))
            self._facts.append(kind.__name__)
            self.nbytes += 8
        elif kind is str:
            self._text(obj)
        elif kind is dict:
            self._mapping(obj, depth)
        elif kind is list or kind is tuple:
            self._sequence(obj, depth)
        else:
            self._other(kind, obj, depth)

    def _other(self, kind: type, obj: Any, depth: int) -> None:
        """Read what is rarer."""
        if isinstance(obj, enum.Enum):
            value = obj.value  # the members of a flag that are made of others have no name
            self._say("enum", kind.__qualname__, obj.name, value if isinstance(value, (int, str)) else None)
            self.nbytes += 8
        elif isinstance(obj, _NAMED):
            name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
            self._say("named", getattr(obj, "__module__", None), name)
            self.nbytes += 8
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
            self._mapping(obj, depth)
        elif isinstance(obj, (list, tuple)):
            self._sequence(obj, depth)
        elif isinstance(obj, Set):  # in no order that ranks share
            self._say("set", kind.__name__, len(obj))
            self.nbytes += 8 * len(obj)
        else:
            self._object(obj, depth)

    def _text(self, text: str) -> None:
        if len(text) <= _WHOLE_NBYTES:
            self._say("str", text)
            self.nbytes += len(text)
        else:
            self._say("str", len(text), None)
            self._sample(memoryview(text.encode("utf-8", "surrogatepass")))

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> None:
        self._say("mapping", type(mapping).__name__, len(mapping))
        for key, value in mapping.items():
            self.read(key, depth + 1)
            self.read(value, depth + 1)

    def _sequence(self, sequence: list[Any] | tuple[Any, ...], depth: int) -> None:
        self._say(type(sequence).__name__, len(sequence))
        if len(sequence) > _SHORT and self._ints(sequence):
            return
        for item in sequence:
            self.read(item, depth + 1)

    def _ints(self, numbers: list[Any] | tuple[Any, ...]) -> bool:
        """Read many numbers at once, such as token ids. False if they are something else."""
        if set(map(type, numbers)) != {int}:
            return False
        try:
            raw = array.array("q", numbers)
        except OverflowError:
            return False
        self._digest.update(raw)
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
            self._digest.update(some.view(np.uint8).data)
            self.nbytes += array.nbytes

    def _object(self, obj: Any, depth: int) -> None:
        kind = type(obj)
        self._say(kind.__module__, kind.__qualname__)
        torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if torch is not None and isinstance(obj, torch.Tensor):
            self._tensor(torch, obj)
        elif pillow is not None and isinstance(obj, pillow.Image):
            self._say(obj.mode, obj.size)
            self.nbytes += obj.size[0] * obj.size[1] * len(obj.getbands())
        else:
            for name, value in _attributes(obj):
                self._facts.append(name)
                self.read(value, depth + 1)

    def _tensor(self, torch: Any, tensor: Any) -> None:
        self._say(tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
        plain = tensor.layout is torch.strided and tensor.is_cpu and tensor.is_contiguous() and tensor.numel()
        if not plain or tensor.is_conj() or tensor.is_neg():
            self.nbytes += tensor.numel() * tensor.element_size()
            return
        tensor = tensor.detach() if tensor.requires_grad else tensor
        if tensor.dtype in (torch.float32, torch.int64):  # the ones that count: a view of bytes costs twice as much
            self._sample(tensor.numpy().reshape(-1).view(np.uint8).data)
        else:
            self._sample(tensor.reshape(-1).view(torch.uint8).numpy().data)


def survey(payload: object) -> tuple[bytes, int]:
    """Return a fingerprint of 16 bytes, and about how many bytes the payload has.

    Raises: whatever the attributes of an object of a strange class raise when looked at.
    """
    reader = _Reader()
    reader.read(payload)
    return reader.digest(), reader.nbytes


def fingerprint(payload: object) -> bytes:
    """Return the fingerprint alone."""
    return survey(payload)[0]

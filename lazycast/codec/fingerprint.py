"""A cheap fingerprint of a payload, by which ranks that bring their own can tell that they mean the same one.

Guarantees:

* Equal payloads have equal fingerprints on every rank of a job. Different ones have different ones as far as that shows
  in the structure, in shapes, types and lengths, in scalars and text, or in the bytes that are sampled.
* Buffers of up to 64 KiB are read whole. Of longer ones at least 8192 words of 8 bytes are, evenly spread, and never
  less than one word of 488 bytes: images that differ in one patch differ. That takes about 60 µs up to 3 MB, 10 to 20
  µs per MB beyond (SHA-256: 700), and 60 to 350 µs per MB of arrays that are not in C order, as transposed ones.
* Nothing of the payload is changed, and no code of its classes runs but `str` of standard ones. Nothing is copied but
  samples, and arrays of up to 1.5 MiB that are not in C order, which takes up to 1 ms per MB. An object of an unknown
  class counts by its class and attributes, whether they lie in a dict or in slots (of dataclasses, of
  `msgspec.Struct`). Classes, functions and members of enums count by their names, sets in any order, arrays and tensors
  by their elements however they lie in memory.
* Behind the digest of the whole stand some bytes that tell how far two payloads are the same, by what lies at the top:
  the entries of a dict, the items of a list, the attributes of an object.
* Of tensors on a device, of sparse and quantized ones, and of images of Pillow, nothing is read: type and size count.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import hashlib
import math
import pathlib
import sys
import types
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Set, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

if TYPE_CHECKING:
    from typing import TypeGuard
from lazycast.codec.tensor_memory import items_of

_DIGESTED_NBYTES = 512  # shorter than this, what is read is digested as it is; else a sum of it
_WORD = 8  # bytes
_BLOCK = 8192  # words that are summed at once, and the least that are read of a long buffer
#: Of long buffers one word of so many is read. A prime, so that it is another column in each row of a matrix. Patches
#: of images have some kilobytes: several words of each are read.
_MAX_STEP = 61
_COPIED_NBYTES = 3 << 19  # up to here, a copy takes no longer than picking words from between others
_MODULUS = 1 << 64
_MAX_OBJECTS = 10_000
_MAX_WEIGHED = 1_000  # where only the size is asked for, with every cast
_MAX_DEPTH = 16
_DIGEST_NBYTES = 16
_MAX_PARTS = 33  # that are told apart, of what lies at the top of a payload: its type and size, and 32 more
_PART_NBYTES = 2  # by so many bytes each
_SHORT = 32
_HUGE = 1 << 63
_PLAIN = frozenset({type(None), bool, int, float, complex})
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # what they hold is the program's
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
_MAX_KINDS = 1000
_slots_known: dict[type, tuple[str, ...]] = {}
#: Classes of which `_Reader._other` knows nothing, so that it is not asked for each of their objects.
_unknown: set[type] = set()


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


def _slot_values(obj: Any) -> list[Any]:
    """Return what an object of any class holds in slots, None where nothing is set."""
    get = object.__getattribute__  # not the class's own way: that is its code
    names = _slots(type(obj))
    try:
        return [get(obj, name) for name in names]
    except AttributeError:  # some are not set
        return [_slot_value(obj, name) for name in names]


def _slot_value(obj: Any, name: str) -> Any:
    try:
        return object.__getattribute__(obj, name)
    except AttributeError:
        return None


def _make_weights() -> np.ndarray:
    """Return odd numbers without a pattern (the finaliser of SplitMix64): one for each word of a block."""
    z = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    odd: np.ndarray = z | np.uint64(1)
    return odd


_WEIGHTS = _make_weights()


def _step(words: int) -> int:
    """Return how many words lie between two that are read."""
    return max(1, min(_MAX_STEP, (words // _BLOCK - 1) | 1))  # odd: rows often have a round number of words


def _words(raw: np.ndarray) -> np.ndarray:
    """Return the words of a flat array of bytes that are read."""
    whole = raw[: raw.size - raw.size % _WORD].view(np.uint64)
    return whole[:: _step(whole.size)]


def _copied(values: np.ndarray) -> np.ndarray:
    """Return the elements of an array one after the other."""
    few = values.ndim > 1 and 1 < values.shape[-1] <= _WORD  # colours, often
    if not few or values.strides[-2] == values.shape[-1] * values.strides[-1]:
        return np.ascontiguousarray(values).reshape(-1)
    copy = np.empty(values.shape, values.dtype)
    for n in range(values.shape[-1]):  # NumPy would go through rows of three, which takes several times as long
        copy[..., n] = values[..., n]
    return copy.reshape(-1)


class _Strided:
    """An array whose elements do not lie one after the other, read as if they did."""

    def __init__(self, values: np.ndarray) -> None:
        address = values.__array_interface__["data"][0]
        self._unit = unit = math.gcd(_WORD, values.itemsize, address, *values.strides)  # bytes that are read at once
        self._per_word = _WORD // unit
        low = values[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in values.strides)]
        reach = [(n - 1) * stride // unit for n, stride in zip(values.shape, values.strides, strict=True)]
        span = sum(map(abs, reach)) + values.itemsize // unit
        first = as_strided(low, (1,), (values.itemsize,)).view(f"u{unit}")
        self._memory = as_strided(first, (span,), (unit,), writeable=False)  # from the first byte to the last
        self._base = -sum(units for units in reach if units < 0)
        self._size = values.nbytes // unit
        #: The axes, from the last: how many units further the next is, and how many there are.
        self._axes = [(1, values.itemsize // unit)]
        for n, stride in zip(reversed(values.shape), reversed(values.strides), strict=True):
            inner, count = self._axes[-1]
            if stride // unit == inner * count or count == 1:
                self._axes[-1] = (inner if count > 1 else stride // unit, count * n)
            elif n > 1:
                self._axes.append((stride // unit, n))

    def words(self) -> Iterator[np.ndarray]:
        """Yield the words that `_words` finds in a copy, block by block."""
        count = self._size // self._per_word
        step = _step(count)
        for start in range(0, count, _BLOCK * step):
            yield self._read(
                np.arange(start, min(count, start + _BLOCK * step), step, dtype=np.uint64) * self._per_word
            )

    def end(self) -> memoryview:
        """Return the last word's worth of bytes."""
        return self._read(np.array([self._size - self._per_word], np.uint64)).view(np.uint8).data

    def _read(self, first: np.ndarray) -> np.ndarray:
        """Return words by where they begin, in units."""
        inner, count = self._axes[0]
        within = np.arange(self._per_word, dtype=np.uint64)[
            :, None
        ]  # long rows: those of 8 take NumPy six times as long
        if count % self._per_word:  # some words go on in another row
            places = self._places(first + within)
        else:
            places = self._places(first) + within.view(np.int64) * inner
        words: np.ndarray = np.ascontiguousarray(self._memory.take(places).T).reshape(-1).view(np.uint64)
        return words

    def _places(self, units: np.ndarray) -> np.ndarray:
        """Return where units are in memory. A step back is one forward, modulo 2**64."""
        (step, count), *outer = self._axes
        places = units * np.uint64(step % _MODULUS) + np.uint64(self._base)
        inside = count
        for further, n in outer:
            places += units // np.uint64(inside) * np.uint64((further - step * count) % _MODULUS)
            step, count, inside = further, n, inside * n
        found: np.ndarray = places.view(np.int64)
        return found


class _Reader:
    """Reads a payload. What it finds is gathered, since a hash costs the same for all of it."""

    def __init__(self, max_objects: int = _MAX_OBJECTS) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_NBYTES)  # of samples; their lengths are among the facts
        self._facts: list[object] = []
        self._left = max_objects
        self.names: list[object] = []  # of the parts at the top; None for what is said before the first
        self.parts = b""  # for each of them, the beginning of the digest of all that has been read by its end

    def digest(self) -> bytes:
        """Return a digest of what has been read."""
        self._digest.update(repr(self._facts).encode("utf-8", "replace"))
        self._facts = []
        return self._digest.digest()

    def _part(self, name: object) -> None:
        """Here ends a part of the payload."""
        if len(self.names) < _MAX_PARTS:
            self.names.append(name)
            self.parts += self.digest()[:_PART_NBYTES]

    def _say(self, *facts: object) -> None:
        self._facts += facts

    def _sample(self, raw: memoryview) -> None:
        if raw.nbytes <= _DIGESTED_NBYTES:
            self._digest.update(raw)
        else:
            words = _words(np.frombuffer(raw, np.uint8))
            blocks = (words[start : start + _BLOCK] for start in range(0, words.size, _BLOCK))
            self._sum(blocks, raw[-_WORD:])

    def _sum(self, blocks: Iterable[np.ndarray], end: memoryview) -> None:
        """Read blocks of words, and the last bytes, which may be of none.

        The sum of words times odd numbers, modulo 2**64, costs what reading memory does. It differs for certain where
        one word does, and all but for certain where several do.
        """
        sums = [int(np.dot(block, _WEIGHTS[: block.size])) for block in blocks]
        self._digest.update(np.array(sums, np.uint64).data)
        self._digest.update(end)

    def read(self, obj: Any, depth: int = 0) -> None:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            return  # enough has been said
        kind = type(obj)
        if kind in _PLAIN:
            # Huge numbers in another base: the text of decimal ones is limited, and slow.
            self._facts.append(obj if kind is not int or -_HUGE < obj < _HUGE else hex(obj))
            self._facts.append(kind.__name__)
        elif kind is str:
            self._text(obj)
        elif kind is dict:
            self._mapping(obj, depth)
        elif kind is list or kind is tuple:
            self._sequence(obj, depth)
        elif kind in _unknown:
            self._object(obj, depth)
        else:
            self._other(kind, obj, depth)

    def _other(self, kind: type, obj: Any, depth: int) -> None:
        """Read what is rarer."""
        if isinstance(obj, enum.Enum):
            value = obj.value  # the members of a flag that are made of others have no name
            self._say("enum", kind.__qualname__, obj.name, value if isinstance(value, (int, str)) else None)
        elif isinstance(obj, _NAMED):
            name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
            self._say("named", getattr(obj, "__module__", None), name)
        elif isinstance(obj, str):
            self._say(kind.__name__)
            self._text(str(obj))
        elif isinstance(obj, (bytes, bytearray, memoryview)):
            raw = memoryview(obj)
            self._say("bytes", kind.__name__, raw.nbytes)
            self._sample(raw.cast("B") if raw.c_contiguous and raw.nbytes else memoryview(raw.tobytes()))
        elif kind is array.array:
            self._say("array.array", obj.typecode, len(obj))
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
        elif isinstance(obj, (int, float, complex)):
            base = next(base for base in (int, float, complex) if isinstance(obj, base))
            self._say(kind.__name__, base.__repr__(obj))
        else:
            self._object(obj, depth)

    def _text(self, text: str) -> None:
        if len(text) <= _DIGESTED_NBYTES:
            self._say("str", text)
        else:
            self._say("str", len(text), None)
            self._sample(memoryview(text.encode("utf-8", "surrogatepass")))

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> None:
        self._say("mapping", type(mapping).__name__, len(mapping))
        if not depth:
            self._part(None)
        for key, value in mapping.items():
            self.read(key, depth + 1)
            self.read(value, depth + 1)
            if not depth:
                self._part(key)

    def _set(self, items: Collection[Any], depth: int) -> None:
        """Ranks have sets in orders of their own."""
        self._say("set", type(items).__name__, len(items))
        if len(items) > self._left:
            return
        marks = []
        for item in items:
            reader = _Reader(self._left)
            reader.read(item, depth + 1)
            marks.append(reader.digest())
        self._left -= len(marks)
        self._facts += sorted(marks)

    def _sequence(self, sequence: Collection[Any], depth: int) -> None:
        self._say(type(sequence).__name__, len(sequence))
        if len(sequence) > _SHORT and self._numbers(sequence):
            return
        if not depth:
            self._part(None)
        for number, item in enumerate(sequence):
            self.read(item, depth + 1)
            if not depth:
                self._part(number)

    def _numbers(self, numbers: Collection[Any]) -> bool:
        """Read many numbers at once, such as token ids. False if they are something else."""
        code = {int: "q", float: "d"}.get(next(iter(numbers)).__class__)
        if code is None or len(set(map(type, numbers))) > 1:
            return False
        try:
            raw = array.array(code, numbers)
        except OverflowError:
            return False
        self._say(code)
        self._digest.update(raw)
        return True

    def _array(self, values: np.ndarray) -> None:
        self._say("array", values.shape, values.dtype.str)
        if values.dtype.hasobject or not values.nbytes:
            return
        if values.flags.c_contiguous or values.nbytes <= _COPIED_NBYTES:
            self._sample(_copied(values).view(np.uint8).data)
        else:  # in C order, as the shape has it
            strided = _Strided(values)
            self._sum(strided.words(), strided.end())

    def _object(self, obj: Any, depth: int) -> None:
        kind = type(obj)
        if len(_unknown) >= _MAX_KINDS:
            _unknown.clear()
        _unknown.add(kind)
        self._say(kind.__module__, kind.__qualname__)
        torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if torch is not None and isinstance(obj, torch.Tensor):
            self._tensor(torch, obj)
        elif pillow is not None and isinstance(obj, pillow.Image):
            self._say(obj.mode, obj.size)
        else:
            if not depth:
                self._part(None)
            for name, value in (getattr(obj, "__dict__", None) or {}).items():
                self._facts.append(name)
                self.read(value, depth + 1)
                if not depth:
                    self._part(name)
            for name, value in zip(_slots(kind), _slot_values(obj), strict=True):  # the names are the class's
                if value is None:  # most of a large struct
                    self._facts.append(None)
                else:
                    self.read(value, depth + 1)
                if not depth:
                    self._part(name)

    def _tensor(self, torch: Any, tensor: Any) -> None:
        self._say(tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
        if tensor.layout is not torch.strided or not tensor.is_cpu or tensor.is_quantized or not tensor.numel():
            return
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        tensor = tensor.detach() if tensor.requires_grad else tensor
        if tensor.dtype not in (torch.float32, torch.int64):  # the ones that count: a view costs twice as much
            whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
            tensor = torch.view_as_real(tensor) if whole is None else tensor.view(whole)  # complex128 has 16 bytes
        self._array(items_of(tensor))


def fingerprint(payload: object) -> bytes:
    """Return 16 bytes, and up to 66 more. Raises whatever the attributes of an object of a strange class raise.

    Payloads are the same if all these bytes are. Those behind the first 16 say where else: see `first_difference`.
    """
    return _read(payload)[1]


def _read(payload: object) -> tuple[_Reader, bytes]:
    reader = _Reader()
    reader.read(payload)
    return reader, reader.digest() + reader.parts


def first_difference(payload: object, expected: bytes) -> str:
    """Say where a payload begins to differ from one with another fingerprint, as a part of a sentence.

    Returns: "" where neither has parts. Raises: as `fingerprint`.
    """
    reader, _ = _read(payload)
    theirs = expected[_DIGEST_NBYTES:]
    if not theirs and not reader.parts:
        return ""
    same = 0
    while same < len(reader.names) and reader.parts[: _PART_NBYTES * (same + 1)] == theirs[: _PART_NBYTES * (same + 1)]:
        same += 1
    if not same:
        count = f" of {len(payload)}" if _has_items(payload) else ""
        return f"the root's is not a {type(payload).__name__}{count}, as this rank's is"
    if same == len(reader.names):
        return f"its first {same - 1} parts are the same"
    name = reader.names[same]
    return f"the first part that differs is [{name!r:.100}]" if _has_items(payload) else f"its .{name} differs first"


def _has_items(payload: object) -> TypeGuard[Sized]:
    return isinstance(payload, (Mapping, list, tuple, collections.deque))


def approximate_nbytes(payload: object) -> int:
    """Return about how many bytes a payload has: of one with very many objects, those that come first.

    Raises: as `fingerprint`.
    """
    nbytes, seen = 0, 0
    todo = [payload]
    torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
    while todo and seen < _MAX_WEIGHED:
        obj: Any = todo.pop()
        seen += 1
        kind = type(obj)
        if kind in _PLAIN:  # what most objects are: the questions below cost a call each
            nbytes += 8
        elif kind is dict:
            todo += obj.values()
            todo += obj
        elif isinstance(obj, (str, bytes, bytearray)):
            nbytes += len(obj)
        elif isinstance(obj, (np.ndarray, np.generic, memoryview)):
            nbytes += obj.nbytes
        elif isinstance(obj, (list, tuple, collections.deque)):
            rest = len(obj) - _MAX_WEIGHED
            nbytes += 8 * max(0, rest)
            todo += obj if rest <= 0 else list(obj)[:_MAX_WEIGHED]
        elif isinstance(obj, Mapping):
            todo += [*obj.values(), *obj]
        elif isinstance(obj, Set):
            nbytes += 8 * len(obj)
        elif torch is not None and isinstance(obj, torch.Tensor):
            nbytes += obj.numel() * obj.element_size()
        elif pillow is not None and isinstance(obj, pillow.Image):
            nbytes += obj.size[0] * obj.size[1] * len(obj.getbands())
        elif isinstance(obj, (enum.Enum, *_NAMED, *_AS_TEXT)):
            nbytes += 8
        else:
            todo += (getattr(obj, "__dict__", None) or {}).values()
            todo += _slot_values(obj)
    return nbytes

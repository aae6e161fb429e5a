"""Takes objects apart into what msgpack knows, marked lists, and frames."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

import numpy as np

from lazycast.codec.data import arrays, dtypes
from lazycast.codec.data.marks import EXTENSIONS, FRAME_NBYTES, MAX_DEPTH, Kind, Mark
from lazycast.codec.data.tensors import Tensors
from lazycast.codec.diagnose import find_part, items_of
from lazycast.codec.pickling import Encoded

_ATOMS = frozenset({NoneType, bool, int, float, str})  # msgpack's own, but for long integers and odd text
_KEYS = _ATOMS | {bytes}


class NotData(Exception):
    """An object is not plain data; the text says what it is, and what to send instead."""


class Packer:
    """Packs one object. With `careful`, long integers and text with lone surrogates too, which takes longer."""

    def __init__(self, *, careful: bool = False) -> None:
        self.kind = Kind.ATOMS
        self._careful = careful
        self._tensors: Tensors | None = None

    def begin(self, encoded: Encoded, obj: object) -> Any:
        """Return `obj` as msgpack takes it; its frames go to `encoded`."""
        self._encoded = encoded
        self._frames: dict[int, tuple[int, object]] = {}  # by id: the frame's number, and the object, kept alive
        return self.pack(obj)

    @property
    def cut(self) -> bool:
        """Whether what arrives is less than what is sent."""
        return self._tensors is not None and self._tensors.cut

    def discard(self) -> None:
        """Let go of what has been packed so far."""
        self._frames.clear()
        self._tensors = None

    def again(self) -> bool:
        """After a pass: whether another is needed, now that all tensors have been seen."""
        return self._tensors is not None and self._tensors.again()

    def pack(self, obj: Any, depth: int = 0) -> Any:
        kind = type(obj)
        if kind in _ATOMS and not self._careful:
            return obj
        if depth > MAX_DEPTH:
            raise NotData(f"nested more than {MAX_DEPTH} deep, or it contains itself")
        pack = _PACK.get(kind)
        if pack is not None:
            return pack(self, obj, depth)
        if isinstance(obj, np.generic):
            return self._scalar(obj)
        torch = sys.modules.get("torch")
        if torch is not None and kind is torch.Tensor:
            return self._tensor(obj)
        raise NotData(_remedy(obj))

    def _marked(self, mark: Mark, *rest: object) -> list[object]:
        if self.kind is Kind.ATOMS:
            self.kind = Kind.ARRAYS
        return [EXTENSIONS[mark], *rest]

    def _frame(self, owner: object, view: Callable[[], memoryview]) -> int:
        """Return the number of the frame with an object's bytes; they travel once."""
        known = self._frames.get(id(owner))
        if known is None:
            known = self._frames[id(owner)] = len(self._encoded.frames), owner
            self._encoded.frames.append(view())
        return known[0]

    # One method for each type

    def _atom(self, obj: Any, depth: int) -> Any:
        return obj

    def _int(self, number: int, depth: int) -> Any:
        if -(1 << 63) <= number < 1 << 64:
            return number
        return self._marked(Mark.INT, number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True))

    def _str(self, text: str, depth: int) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError:
            return self._marked(Mark.STR, text.encode("utf-8", "surrogatepass"))
        return text

    def _complex(self, number: complex, depth: int) -> Any:
        return self._marked(Mark.COMPLEX, number.real, number.imag)

    def _bytes(self, data: bytes, depth: int) -> Any:
        if len(data) < FRAME_NBYTES:
            return data
        self.kind = Kind.COPIES
        return self._marked(Mark.BYTES, self._frame(data, lambda: memoryview(data)))

    def _bytearray(self, data: bytearray, depth: int) -> Any:
        if len(data) < FRAME_NBYTES:
            return self._marked(Mark.BYTEARRAY, bytes(data))
        self.kind = Kind.COPIES
        self._encoded.frames.append(memoryview(data))  # one for each: what may be written to is not shared
        return self._marked(Mark.BYTEARRAY, len(self._encoded.frames) - 1)

    def _list(self, items: list[Any], depth: int) -> Any:
        if not self._careful and _ATOMS.issuperset(map(type, items)):
            return items
        return [self.pack(item, depth + 1) for item in items]

    def _tuple(self, items: tuple[Any, ...], depth: int) -> Any:
        return self._marked(Mark.TUPLE, *self._list(list(items), depth))

    def _set(self, items: set[Any], depth: int) -> Any:
        return self._marked(Mark.SET, *self._list(list(items), depth))

    def _frozenset(self, items: frozenset[Any], depth: int) -> Any:
        return self._marked(Mark.FROZENSET, *self._list(list(items), depth))

    def _dict(self, items: dict[Any, Any], depth: int) -> Any:
        if not self._careful and _KEYS.issuperset(map(type, items)):
            if _ATOMS.issuperset(map(type, items.values())):
                return items
            return {key: self.pack(value, depth + 1) for key, value in items.items()}
        marked = self._marked(Mark.DICT)
        for key, value in items.items():
            marked += self.pack(key, depth + 1), self.pack(value, depth + 1)
        return marked

    def _view(self, view: memoryview, depth: int) -> Any:
        return self._marked(Mark.VIEW, *self._parts(np.asarray(view)))

    def _array(self, array: np.ndarray[Any, Any], depth: int) -> Any:
        return self._marked(Mark.ARRAY, *self._parts(array))

    def _parts(self, array: np.ndarray[Any, Any]) -> tuple[object, ...]:
        description = _describe(array.dtype)
        frame = self._frame(array, lambda: arrays.raw(array))
        return frame, description, array.shape, array.flags.writeable, arrays.is_fortran(array)

    def _scalar(self, scalar: np.generic) -> Any:
        if type(scalar) is not scalar.dtype.type:
            raise NotData(_remedy(scalar))
        return self._marked(Mark.SCALAR, _describe(scalar.dtype), scalar.tobytes())

    def _tensor(self, tensor: Any) -> Any:
        if self._tensors is None:
            self._tensors = Tensors()
        self.kind = Kind.COPIES
        try:
            stretch, rest = self._tensors.take_apart(tensor)
        except ValueError as exc:
            raise NotData(str(exc)) from None
        frame = None if stretch is None else self._frame(stretch, lambda: self._tensors.raw(stretch))  # type: ignore[union-attr]
        return self._marked(Mark.TENSOR, frame, *rest)


_PACK: dict[type, Callable[[Packer, Any, int], Any]] = {
    NoneType: Packer._atom,
    bool: Packer._atom,
    int: Packer._int,
    float: Packer._atom,
    str: Packer._str,
    complex: Packer._complex,
    bytes: Packer._bytes,
    bytearray: Packer._bytearray,
    memoryview: Packer._view,
    list: Packer._list,
    tuple: Packer._tuple,
    set: Packer._set,
    frozenset: Packer._frozenset,
    dict: Packer._dict,
    np.ndarray: Packer._array,
}


def _describe(dtype: np.dtype[Any]) -> dtypes.Description:
    try:
        return dtypes.describe(dtype)
    except ValueError as exc:
        raise NotData(f"its {exc}: {_OTHER_ITEMS}") from None


# No advice may change a value: it says what to send so that the materializer can make the same again.
_OTHER_ITEMS = (
    "send its items as a list, or in an array of a plain dtype that holds each of them exactly, and make it again in "
    "the materializer"
)
_EXACTLY = {  # by the plain class: how to get at what a subclass holds, past methods of its own
    dict: "dict(it)",
    list: "list(it)",
    tuple: "tuple(it)",
    set: "set(it)",
    frozenset: "frozenset(it)",
    str: "str.__str__(it)",
    bytes: "bytes(memoryview(it))",
    bytearray: "bytearray(memoryview(it))",
    int: "int.__int__(it)",
    float: "float.__float__(it)",
    complex: "complex.__pos__(it)",
}


def _remedy(obj: object) -> str:
    kind = type(obj)
    again = "and make it again in the materializer"
    masked, torch = sys.modules.get("numpy.ma"), sys.modules.get("torch")
    if masked is not None and isinstance(obj, masked.MaskedArray):
        return f"a masked array: send it.data, numpy.ma.getmaskarray(it) and it.fill_value, {again}"
    if type(obj) is np.memmap:
        return "a map of a file: send numpy.asarray(it)"
    if isinstance(obj, np.ndarray):
        return (
            "a subclass of ndarray: send numpy.asarray(it), and beside it what its class adds (units, names, what its "
            f"operators mean), {again}"
        )
    if torch is not None and isinstance(obj, torch.Tensor):
        return f"a subclass of Tensor: send it.as_subclass(torch.Tensor), and beside it what its class adds, {again}"
    if isinstance(obj, enum.Enum):
        return f"an enum: send it.value, {again}"
    if isinstance(obj, np.generic):
        return f"a subclass of a NumPy scalar: send numpy.array(it)[()], and beside it what its class adds, {again}"
    for plain, exactly in _EXACTLY.items():
        if isinstance(obj, plain):
            return f"a subclass of {plain.__name__}: send {exactly}, and beside it what its class adds, {again}"
    if kind.__module__.startswith("PIL."):
        return (
            "an image: send the bytes of its file, or it.mode, it.size, it.tobytes() and (mode P) it.getpalette(), "
            f"{again}"
        )
    if callable(obj):
        return "it can be called: register it as a materializer, or part of one, on every rank"
    return f"send its fields as a dict, {again}"


def _items_of(obj: object) -> Iterator[tuple[str, object]]:
    return items_of(obj) if type(obj) in (dict, list, tuple, set, frozenset) else iter(())


class _Looking(Packer):
    """Packs nothing, and only finds out whether it could."""

    def _frame(self, owner: object, view: Callable[[], memoryview]) -> int:
        return 0


def _error_of(obj: object) -> Exception | None:
    try:
        _Looking(careful=True).begin(Encoded(), obj)
    except NotData as exc:
        return exc.with_traceback(None)  # by way of which its frames would keep each other, and the payload
    return None


def describe_not_data(obj: object, error: Exception) -> str:
    """Say in one line which part of `obj` is not plain data and what to do."""
    way, part, part_error = find_part(obj, _error_of, _items_of)
    where = f"{type(obj).__name__}{way}" if way else type(obj).__name__
    return f"{where} (a {type(part).__qualname__}) is not plain data, which trust='data' needs: {part_error or error}"

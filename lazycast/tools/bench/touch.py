"""What a rank does with a value: read every byte, overwrite every byte, compare it with what it should be."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_CHUNK_NBYTES = 1 << 20  # comparisons in pieces: the temporary of a whole one would be as large as the value
_FEW_NBYTES = 1 << 10  # below it, calling NumPy costs more than the bytes do
_SMALL = frozenset({str, int, float, bool})  # exact types, told first: a payload may hold thousands
_SEQUENCES = frozenset({list, tuple})


def buffer_of(value: object) -> Bytes | None:
    """Return the bytes of a contiguous array, tensor or bytes-like object as a flat view, or None for others."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1).view(np.uint8)
    torch = sys.modules.get("torch")  # a tensor can exist only if somebody has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return buffer_of(value.numpy())
    if isinstance(value, (bytes, bytearray, memoryview)):
        return np.frombuffer(value, np.uint8)
    return None


def read(value: Any) -> int:
    """Read every byte of a value, containers and what they hold; return a sum, so that nothing can be left out."""
    kind = type(value)
    if kind in _SMALL or (kind is bytes and len(value) < _FEW_NBYTES):
        return hash(value)
    if kind is dict:
        return sum(hash(key) + read(item) for key, item in value.items())
    if kind in _SEQUENCES:
        return sum(map(read, value))
    flat = buffer_of(value)
    if flat is None:
        raise TypeError(f"cannot read a {kind.__name__}")
    if flat.size < _FEW_NBYTES:
        return int(flat.sum())
    whole = flat.size & ~7  # eight at once: as fast as memory, where adding single bytes would time the adding
    return int(flat[:whole].view(np.uint64).sum()) + int(flat[whole:].sum())


def overwrite(value: Any, byte: int) -> Any:
    """Overwrite every byte of a value in place, with `byte` where it has bytes, and return it.

    What cannot be written to (bytes, text, numbers) is replaced by a new one of the same size in its container.
    """
    kind = type(value)
    if kind in _SMALL:
        return chr(byte) * len(value) if kind is str else kind(byte)
    if kind is bytes:
        return bytes([byte]) * len(value)
    if kind is dict:
        for key, item in value.items():
            value[key] = overwrite(item, byte)
    elif kind is list:
        value[:] = [overwrite(item, byte) for item in value]
    else:
        flat = buffer_of(value)
        if flat is None:
            raise TypeError(f"cannot overwrite a {kind.__name__}")
        flat[:] = byte
    return value


def mark(number: int, rank: int) -> int:
    """Return the byte that a rank overwrites the payload with this number with: those of others differ."""
    return (7 * number + rank) % 128


def use(value: Any, column: str, byte: int) -> None:
    """Do with a value what a column says: nothing, read it, or overwrite it."""
    if column == "read":
        read(value)
    elif column == "overwritten":
        overwrite(value, byte)


def difference(expected: Any, found: Any) -> str | None:
    """Say where and how `found` is not exactly `expected`, types, shapes and order included; None if it is."""
    kind = type(expected)
    if kind is not type(found):
        return f": a {type(found).__name__}, not a {kind.__name__}"
    if kind in _SMALL:
        return None if expected == found else f": {_short(found)}, not {_short(expected)}"
    if kind is dict and list(expected) != list(found):
        return f": keys {_short(list(found))}, not {_short(list(expected))}"
    if kind in _SEQUENCES and len(expected) != len(found):
        return f": {len(found)} items, not {len(expected)}"
    if kind is dict or kind in _SEQUENCES:
        for key, item in expected.items() if kind is dict else enumerate(expected):
            inner = difference(item, found[key])
            if inner is not None:
                return f"[{key!r}]{inner}"
        return None
    return _buffer_difference(expected, found)


def _buffer_difference(expected: object, found: object) -> str | None:
    for what in ("dtype", "shape"):
        want, have = getattr(expected, what, None), getattr(found, what, None)
        if want != have:
            return f": {what} {have}, not {want}"
    a, b = buffer_of(expected), buffer_of(found)
    if a is None or b is None:
        raise TypeError(f"cannot compare two of {type(expected).__name__}")
    if a.size != b.size:
        return f": {b.size} bytes, not {a.size}"
    for start in range(0, a.size, _CHUNK_NBYTES):
        piece, other = a[start : start + _CHUNK_NBYTES], b[start : start + _CHUNK_NBYTES]
        if not np.array_equal(piece, other):
            at = start + int(np.flatnonzero(piece != other)[0])
            return f": byte {at} of {a.size} is {b[at]}, not {a[at]}"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

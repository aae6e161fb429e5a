"""What stands for what msgpack has not: a list whose first item is a mark."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

#: How deep containers may be nested. Enough for data; recursion ends far above it.
MAX_DEPTH: Final = 100
#: `bytes` of this size and more are frames.
FRAME_NBYTES: Final = 64 << 10


class Kind(enum.IntEnum):
    """The first byte of a stream: what is in it, by what decoding costs."""

    ATOMS = 0  # what msgpack itself knows: there are no marks
    ARRAYS = 1  # marks, but nothing that copies or that needs a device
    COPIES = 2  # anything


class Mark(enum.IntEnum):
    """The kinds of marked lists, and what follows the mark. Shapes, sizes and strides are lists of integers."""

    TUPLE = 1  # items
    SET = 2  # items
    FROZENSET = 3  # items
    DICT = 4  # keys and values in turn: a dict with keys that msgpack has not, or not as such
    INT = 5  # little-endian, signed: an integer of more than 64 bits
    STR = 6  # UTF-8 with surrogates
    COMPLEX = 7  # real, imaginary
    BYTES = 8  # frame
    BYTEARRAY = 9  # frame, or its bytes
    VIEW = 10  # a memoryview, as ARRAY
    ARRAY = 11  # frame, dtype, shape, writable, Fortran order
    SCALAR = 12  # dtype, bytes: a NumPy scalar
    TENSOR = 13  # frame or None, dtype, offset in items, size, stride, requires_grad, kind of device


#: How a mark is written.
EXTENSIONS: Final = {mark: msgspec.msgpack.Ext(int(mark), b"") for mark in Mark}


def mark_of(code: int, data: memoryview) -> Mark:
    """Read a msgpack extension, which is a mark. Raises ValueError."""
    if data:
        raise ValueError(f"extension {code} with {len(data)} bytes")
    return Mark(code)


def no_mark(code: int, data: memoryview) -> Mark:
    """Refuse a msgpack extension where there should be none. Raises ValueError."""
    raise ValueError(f"extension {code}")

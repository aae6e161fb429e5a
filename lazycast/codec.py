"""Objects to bytes and back, without copying arrays into a pickle stream.

Guarantees:

* Layout of an encoded object: a table of 8-byte frame sizes, the pickle stream, then the frames, each part on a
  64-byte boundary. Sizes carry the read-only flag in their top bit, so writable in is writable out.
* `encode` copies nothing that can travel out of band; `Encoded.write_into` copies everything once.
* `decode` copies nothing out of band: the object's arrays are views of the buffer it was given, and keep it alive.
* Copies release the GIL (NumPy's do; assigning a memoryview slice does not, and 64 MiB would stall all other threads
  for some 10 ms).
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from lazycast.diagnose import describe_unpicklable

ALIGNMENT = 64
_READONLY = 1 << 63


class CannotEncode(Exception):
    """The object does not pickle; the text names the part of it that does not."""


class Layout(NamedTuple):
    """Where the parts of an encoded object lie: all that a receiver must know beside the bytes."""

    stream_nbytes: int
    frames: int


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def allocate(nbytes: int) -> memoryview:
    """Return `nbytes` of fresh, writable, 64-byte aligned memory that lives as long as a view of it does."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].data


def copy(into: memoryview, source: memoryview | bytes) -> None:
    """Copy bytes between buffers of one size, without the GIL."""
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))


@dataclass(frozen=True)
class Encoded:
    """An object ready to be written: its pickle stream and the buffers beside it, still the caller's memory."""

    stream: bytes | memoryview
    frames: list[memoryview]

    @property
    def layout(self) -> Layout:
        return Layout(len(self.stream), len(self.frames))

    @property
    def nbytes(self) -> int:
        """Size of the whole in bytes, as `write_into` lays it out."""
        table = _aligned(8 * len(self.frames))
        return table + _aligned(len(self.stream)) + sum(_aligned(f.nbytes) for f in self.frames)

    def write_into(self, buffer: memoryview) -> None:
        """Lay the object out in `buffer`, which has `nbytes` bytes."""
        sizes = np.array([f.nbytes | (_READONLY if f.readonly else 0) for f in self.frames], np.uint64)
        offset = 0
        for part in (sizes.data.cast("B") if self.frames else b"", self.stream, *self.frames):
            nbytes = len(part)
            if nbytes:
                copy(buffer[offset : offset + nbytes], part)
            offset += _aligned(nbytes)


def _reduce_array(array: np.ndarray) -> str | tuple[Any, ...]:
    """Let strided arrays travel out of band too, and stay read-only if they were: NumPy pickles them in band."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        writeable = array.flags.writeable
        array = np.ascontiguousarray(array)
        array.flags.writeable = writeable
    return array.__reduce_ex__(5)


_REDUCERS: dict[type, Any] = {np.ndarray: _reduce_array}


def encode(obj: object) -> Encoded:
    """Pickle `obj` with its buffers out of band.

    Plain pickle comes first, being an order of magnitude faster; what it cannot do (lambdas, local classes) is left to
    cloudpickle. Raises CannotEncode naming the part that neither can pickle.
    """
    frames: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> None:
        frames.append(buffer.raw())

    try:
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, protocol=5, buffer_callback=keep)
        pickler.dispatch_table = {**copyreg.dispatch_table, **_REDUCERS}
        pickler.dump(obj)
        return Encoded(stream.getbuffer(), frames)
    except Exception as plain_error:
        frames.clear()
        try:
            return Encoded(cloudpickle.dumps(obj, protocol=5, buffer_callback=keep), frames)
        except Exception as exc:
            raise CannotEncode(describe_unpicklable(obj, exc)) from (plain_error if exc is plain_error else exc)


def _frames(body: memoryview, layout: Layout) -> Iterator[memoryview]:
    sizes = np.frombuffer(body[: 8 * layout.frames], np.uint64).tolist()
    offset = _aligned(8 * layout.frames) + _aligned(layout.stream_nbytes)
    for size in sizes:
        nbytes = size & ~_READONLY
        frame = body[offset : offset + nbytes]
        if frame.nbytes != nbytes:
            raise ValueError(f"frame of {nbytes} bytes at {offset} does not fit into {body.nbytes} bytes")
        yield frame.toreadonly() if size & _READONLY else frame
        offset += _aligned(nbytes)


# How protocol 5 names classes and functions; older ones have GLOBAL, a plain letter, which nobody here writes.
_GLOBALS = (pickle.STACK_GLOBAL, pickle.EXT1, pickle.EXT2, pickle.EXT4)


def is_plain(body: memoryview, layout: Layout) -> bool:
    """Whether decoding runs nothing but pickle itself: no class or function is named. May say no where yes is true."""
    start = _aligned(8 * layout.frames)
    stream = bytes(body[start : start + layout.stream_nbytes])
    return not any(opcode in stream for opcode in _GLOBALS)


def decode(body: memoryview, layout: Layout) -> Any:
    """Rebuild an object on top of `body`. Raises whatever unpickling raises."""
    start = _aligned(8 * layout.frames)
    return pickle.loads(body[start : start + layout.stream_nbytes], buffers=_frames(body, layout))

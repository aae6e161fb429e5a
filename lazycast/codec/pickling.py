"""Objects to bytes and back, without copying arrays into a pickle stream.

Guarantees:

* Layout of an encoded object: a table of 8-byte frame sizes, the pickle stream, then the frames, each part on a
  64-byte boundary. Writable in is writable out, and read-only stays so.
* `encode` copies nothing that can travel out of band, nor `bytes` and `bytearray` of 64 KiB and more;
  `Encoded.write_into` copies everything once.
* `decode` copies nothing out of band: the object's arrays are views of the buffer it was given, and keep it alive. Each
  frame is a buffer of its own: its memoryview's `obj` is the frame, not the message.
* Copies release the GIL (NumPy's do; assigning a memoryview slice does not, and 64 MiB would stall all other threads
  for some 10 ms), but for those of up to 64 KiB: a slice takes less than 2 µs, and is faster than NumPy by as much.
"""

from __future__ import annotations

import array
import copyreg
import ctypes
import functools
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import cloudpickle
import msgspec
import numpy as np

from lazycast.codec import script
from lazycast.codec.diagnose import describe_unpicklable
from lazycast.codec.reducers import Reduce, Reduction

ALIGNMENT = 64

_SLICE_NBYTES = 64 << 10
_PICKLES_OWN = (pickle.PicklingError, TypeError, AttributeError)  # raised for lambdas, local classes and the like


class CannotEncode(Exception):
    """The object does not pickle; the text names the part of it that does not."""


class Layout(msgspec.Struct, frozen=True):
    """Where the parts of an encoded object lie: all that a receiver must know beside the bytes."""

    stream_nbytes: int
    frames: int


_EMPTY = Layout(0, 0)


def aligned(nbytes: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def allocate(nbytes: int) -> memoryview:
    """Return `nbytes` of fresh, writable, 64-byte aligned memory that lives as long as a view of it does."""
    try:
        raw = np.empty(nbytes + ALIGNMENT, np.uint8).data
    except (ValueError, OverflowError) as exc:  # more than there are addresses, which somebody has claimed
        raise MemoryError(f"{nbytes} bytes cannot be") from exc
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % ALIGNMENT  # NumPy takes 3 µs longer to say where it is
    return raw[start : start + nbytes]


def copy(into: memoryview, source: memoryview | bytes | bytearray) -> None:
    """Copy bytes between buffers of one size; many of them without the GIL."""
    if into.nbytes <= _SLICE_NBYTES:
        into[:] = source
        return
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))


class Encoded:
    """An object ready to be written: its pickle stream and the buffers beside it, still the caller's memory.

    The stream is in pieces. A pickler writes `bytes` and `bytearray` of 64 KiB and more as pieces of their own, which
    are the caller's objects: they are copied once, and not by way of one stream in memory.

    Attributes:
        layout: what a receiver must know.
        nbytes: size of the whole in bytes, as `write_into` lays it out.
        cut: whether what arrives is less than what was encoded: tensors leave their history behind.
    """

    __slots__ = ("cut", "frames", "layout", "nbytes", "pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[bytes | bytearray] = []
        self.frames: list[memoryview] = []
        self.write = self.pieces.append  # for a pickler, whose file this is
        self.layout = _EMPTY
        self.nbytes = 0
        self.cut = False

    def keep(self, buffer: pickle.PickleBuffer) -> None:
        """For a pickler: take a buffer that travels out of band."""
        self.frames.append(buffer.raw())

    def discard(self) -> None:
        """Let go of everything: a `bytearray` that is looked at cannot be resized."""
        self.pieces.clear()
        self.frames.clear()

    def finish(self) -> None:
        """Everything has been pickled: add it up."""
        stream_nbytes = 0
        for piece in self.pieces:
            stream_nbytes += len(piece)
        self.layout = Layout(stream_nbytes, len(self.frames))
        if not self.frames:
            self.nbytes = stream_nbytes
            return
        nbytes = aligned(8 * len(self.frames)) + aligned(stream_nbytes)
        for frame in self.frames:
            nbytes += aligned(frame.nbytes)
        self.nbytes = nbytes

    @property
    def stream(self) -> bytes:
        """The pickle stream in one: a copy, for those who look into it."""
        return b"".join(self.pieces)

    def parts(self) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        """Yield what `write_into` lays out, and the offset of each: for those who read it where it is."""
        offset = 0
        if self.frames:
            sizes = array.array("Q", [f.nbytes for f in self.frames]).tobytes()
            yield 0, sizes
            offset = aligned(len(sizes))
        for piece in self.pieces:
            yield offset, piece
            offset += len(piece)
        for frame in self.frames:
            offset = aligned(offset)
            if frame.nbytes:
                yield offset, frame
            offset += frame.nbytes

    def write_into(self, buffer: memoryview) -> None:
        """Lay the object out in `buffer`, which has `nbytes` bytes."""
        offset = 0
        if self.frames:
            sizes = array.array("Q", [f.nbytes for f in self.frames]).tobytes()
            copy(buffer[: len(sizes)], sizes)
            offset = aligned(len(sizes))
        for piece in self.pieces:
            copy(buffer[offset : offset + len(piece)], piece)
            offset += len(piece)
        for frame in self.frames:
            offset = aligned(offset)
            if frame.nbytes:
                copy(buffer[offset : offset + frame.nbytes], frame)
            offset += frame.nbytes


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    def __init__(self, encoded: Encoded, reduction: Reduction) -> None:
        self.dispatch_table = reduction  # read once, by the constructor, and hidden by cloudpickle's class attribute
        super().__init__(encoded, protocol=5, buffer_callback=encoded.keep)


class _SharedCloudPickler(script.Shared, _CloudPickler):
    """The same where all ranks run one program."""


def _pickled(
    obj: object,
    make_pickler: Callable[[Encoded, Reduction], pickle.Pickler] | None,  # None: Python's own
    base: Mapping[type, Reduce],
    kind: type[Reduction] = Reduction,
) -> Encoded:
    reduction = kind()
    reduction.base = base
    while True:
        encoded = Encoded()
        if make_pickler is None:
            pickler = pickle.Pickler(encoded, protocol=5, buffer_callback=encoded.keep)
            pickler.dispatch_table = reduction
        else:
            pickler = make_pickler(encoded, reduction)
        try:
            pickler.dump(obj)
        except BaseException:  # its traceback is kept with it, and refers to all of these
            encoded.discard()
            pickler.clear_memo()
            raise
        if reduction.unused:  # plain containers, numbers and text: no type has been asked for
            encoded.finish()
            return encoded
        if not reduction.again():
            encoded.cut = reduction.cut()
            encoded.finish()
            return encoded


def encode_by_name(obj: object, kind: type[Reduction] = Reduction) -> Encoded:
    """Pickle `obj` as plain pickle can: classes and functions by name. Raises whatever pickling raises.

    Args:
        kind: which reducers there are.
    """
    return _pickled(obj, None, copyreg.dispatch_table, kind)


def encode(obj: object, *, same_program: bool = True) -> Encoded:
    """Pickle `obj` with its buffers out of band.

    Args:
        same_program: whether those who decode it run this process's program: see `lazycast.codec.script`.

    Plain pickle comes first, being an order of magnitude faster; what it cannot do (lambdas, local classes) is left to
    cloudpickle. Raises CannotEncode naming the part that neither can pickle, and what was wrong with it first.
    What is `Encoded` already, by whoever had to know how large it is, comes back.
    """
    if type(obj) is Encoded:
        return obj
    pickler = _SharedCloudPickler if same_program else _CloudPickler
    try:
        encoded = _pickled(obj, None, copyreg.dispatch_table)
        if same_program or not _names_program(encoded):
            return encoded
        return _pickled(obj, pickler, cloudpickle.Pickler.dispatch_table)
    except Exception as plain_error:
        try:
            return _pickled(obj, pickler, cloudpickle.Pickler.dispatch_table)
        except Exception as exc:
            # What a payload's own code has raised was not for cloudpickle to mend, and may not be raised twice.
            # (No name of its own for the cause: its traceback leads here, so it would keep the payload.)
            first = not isinstance(plain_error, _PICKLES_OWN)
            raise CannotEncode(describe_unpicklable(obj, plain_error if first else exc)) from (
                plain_error if first else exc
            )


def _names_program(encoded: Encoded) -> bool:
    """Whether a stream may name something of `__main__`. Bytes of a payload can look like it."""
    for piece in encoded.pieces:
        # What is large and neither opens the stream nor a frame of it is `bytes` of the payload.
        looked_at = len(piece) < _SLICE_NBYTES or piece[:1] in (pickle.PROTO, pickle.FRAME)
        if looked_at and (b"__main__" in piece or b"__mp_main__" in piece):
            return True
    return False


class ProgramCodec:
    """This module's codec, for ranks of which it is known whether they run one program. Thread-safe."""

    def __init__(self, same_program: bool) -> None:
        # The module's own: every cast passes here.
        self.encode: Callable[[object], Encoded] = functools.partial(encode, same_program=same_program)
        self.is_plain, self.decode = is_plain, decode


def as_it_arrives(encoded: Encoded, codec: Codec) -> Any:
    """Return what the others will get. Raises whatever decoding raises."""
    body = allocate(encoded.nbytes)
    encoded.write_into(body)
    return codec.decode(body, encoded.layout)


class Codec(Protocol):
    """What the engine needs of a codec. This module is one; `lazycast.codec.trust` knows the others."""

    def encode(self, obj: object) -> Encoded:
        """Take an object apart. Raises CannotEncode."""
        ...

    def is_plain(self, body: memoryview, layout: Layout) -> bool:
        """Whether decoding is quick and runs nobody's code, so that it may be done by whoever reads messages."""
        ...

    def decode(self, body: memoryview, layout: Layout) -> Any:
        """Rebuild an object on top of `body`."""
        ...


def stream_of(body: memoryview, layout: Layout) -> memoryview:
    """Return the stream of an encoded object. Raises ValueError if the body does not hold it, and the frames' sizes."""
    start = aligned(8 * layout.frames)
    stream = body[start : start + layout.stream_nbytes]
    if stream.nbytes != layout.stream_nbytes or start > body.nbytes:
        raise ValueError(f"{body.nbytes} bytes do not hold {layout}")
    return stream


def frames_of(body: memoryview, layout: Layout) -> Iterator[memoryview]:
    """Yield the frames of an encoded object. Raises ValueError for one that does not fit.

    Each is a buffer of its own, which holds the body: what a memoryview is of (`obj`) is taken for the whole by types
    that get their memory back that way, and of a slice of the body that would be all of the message.
    """
    sizes = body[: 8 * layout.frames].cast("Q").tolist()
    offset = aligned(8 * layout.frames) + aligned(layout.stream_nbytes)
    for nbytes in sizes:
        if offset + nbytes > body.nbytes and nbytes:
            raise ValueError(f"frame of {nbytes} bytes at {offset} does not fit into {body.nbytes} bytes")
        # An array that ends a chain at once: what is made of it holds the view below, and with it the lease.
        yield np.frombuffer(body, np.uint8, nbytes, offset).data if nbytes else _no_bytes()
        offset += aligned(nbytes)


def _no_bytes() -> memoryview:
    return memoryview(bytearray())


# How protocol 5 names classes and functions: two strings, each memoized, and STACK_GLOBAL; or an extension code.
# Older protocols have GLOBAL, a plain letter, which nobody here writes.
_NUMPY_GLOBAL = re.compile(rb"\x8c.numpy[\w.]*\x94\x8c.\w+\x94\x93", re.DOTALL)


def is_plain(body: memoryview, layout: Layout) -> bool:
    """Whether decoding runs nothing but pickle and NumPy: no other class or function is named.

    May say no where yes is true: bytes of the payload can look like names.
    """
    start = aligned(8 * layout.frames) if layout.frames else 0
    stream = bytes(body[start : start + layout.stream_nbytes])
    if pickle.EXT1 in stream or pickle.EXT2 in stream or pickle.EXT4 in stream:
        return False
    names = stream.count(pickle.STACK_GLOBAL)
    return names == 0 or names == len(_NUMPY_GLOBAL.findall(stream))


def decode(body: memoryview, layout: Layout) -> Any:
    """Rebuild an object on top of `body`. Raises whatever unpickling raises."""
    if not layout.frames:
        return pickle.loads(body[: layout.stream_nbytes])
    start = aligned(8 * layout.frames)
    return pickle.loads(body[start : start + layout.stream_nbytes], buffers=frames_of(body, layout))

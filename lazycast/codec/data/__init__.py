"""The codec of `trust="data"`: plain data and arrays as msgpack and frames. Nothing is pickled, imported or called.

What travels, and comes back as the same type: None, bool, int of any size, float, complex, str, bytes, bytearray,
memoryview, list, tuple, dict, set, frozenset; NumPy arrays and scalars of all dtypes without objects; torch tensors
that are bytes and strides. No subclasses of these: what they mean is known to their code only.

Guarantees:

* The layout is that of `lazycast.codec.pickling`; the stream is one byte that says what is in it (`Kind`), and msgpack.
  Arrays, tensors and `bytes` of 64 KiB and more are frames: views of the body when they arrive, `bytes` a copy.
* `decode` reads the body as data. It names no class and no function, so there is nothing that a body could have
  called; torch is used only if it is imported already.
* A body that is not what `encode` writes raises `ValueError`. What decoding allocates is bounded by some hundred times
  the size of the body, whatever sizes the body claims.
* Objects that are met twice arrive twice, but their bytes travel once: arrays and tensors that showed the same memory
  do so again. What contains itself is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lazycast.codec.data.marks import Kind, mark_of, no_mark
from lazycast.codec.data.packing import NotData, Packer, describe_not_data
from lazycast.codec.data.unpacking import Unpacker, check_atoms, is_flat
from lazycast.codec.pickling import CannotEncode, Encoded, Layout, aligned, frames_of, stream_of

_encoder = msgspec.msgpack.Encoder()
_marks_decoder = msgspec.msgpack.Decoder(ext_hook=mark_of)
_atoms_decoder = msgspec.msgpack.Decoder(ext_hook=no_mark)


def _packed(obj: object, packer: Packer) -> tuple[Encoded, bytes]:
    while True:
        encoded = Encoded()
        try:
            packed = packer.begin(encoded, obj)
        except BaseException:  # its traceback is kept with it, and refers to here
            encoded.discard()
            packer.discard()
            raise
        if not packer.again():
            return encoded, _encoder.encode(packed)


def encode(obj: object) -> Encoded:
    """Take `obj` apart. Raises CannotEncode naming the part that is not plain data, and what to do."""
    try:
        try:
            packer = Packer()
            encoded, stream = _packed(obj, packer)
        except (
            OverflowError,
            UnicodeEncodeError,
        ):  # long integers or lone surrogates: rare, and looking for them costs
            packer = Packer(careful=True)
            encoded, stream = _packed(obj, packer)
    except NotData as exc:
        raise CannotEncode(describe_not_data(obj, exc)) from exc
    encoded.pieces += (bytes([packer.kind]), stream)
    encoded.cut = packer.cut
    encoded.finish()
    return encoded


def is_plain(body: memoryview, layout: Layout) -> bool:
    """Whether decoding takes no longer than its stream is: no bytes to copy, no tensors to put on a device.

    Never raises: what makes no sense is found out where it is decoded.
    """
    start = aligned(8 * layout.frames)
    return bytes(body[start : start + 1]) in (b"\0", b"\1")


def decode(body: memoryview, layout: Layout) -> Any:
    """Rebuild an object on top of `body`. Raises ValueError for a body that is not what `encode` writes."""
    try:
        stream = stream_of(body, layout)
        kind = Kind(stream[0] if stream else -1)
        if kind is Kind.ATOMS:
            atoms = bytes(stream[1:])
            made = _atoms_decoder.decode(atoms)
            if not is_flat(atoms):
                check_atoms(made)
            return made
        return Unpacker(frames_of(body, layout)).unpack(_marks_decoder.decode(stream[1:]))
    except (msgspec.DecodeError, ValueError, TypeError, ArithmeticError, RuntimeError) as exc:
        raise ValueError(f"what arrived is not plain data: {exc}") from exc

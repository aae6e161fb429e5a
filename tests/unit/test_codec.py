"""The codec: what goes in comes out, arrays travel out of band, and a broken body raises."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lazycast.codec import pickling
from lazycast.codec.pickling import ALIGNMENT, CannotEncode, Encoded, Layout


def encode(obj: object) -> tuple[memoryview, Layout]:
    encoded = pickling.encode(obj)
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    return body, encoded.layout


def round_trip(obj: object) -> Any:
    return pickling.decode(*encode(obj))


def assert_same(a: object, b: object) -> None:
    """Equality as plain Python has it, except that arrays, types and NaNs must agree too."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        native = a.dtype.newbyteorder("=")  # NumPy itself makes arrays native that it pickles in band (strided ones)
        assert (native, a.shape) == (b.dtype.newbyteorder("="), b.shape)
        if a.dtype.names is not None:  # what is between fields is anything
            for name in a.dtype.names:
                assert_same(np.array(a[name]), np.array(b[name]))
        else:
            assert a.astype(native).tobytes() == b.astype(native).tobytes()
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple))
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=10),
    st.binary(max_size=10),
    st.binary(max_size=10).map(bytearray),
)
DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(max_len=5),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.array_dtypes(max_size=3),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def _as_fortran(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array) if array.ndim else array


def _as_every_other(array: np.ndarray) -> np.ndarray:
    return array[..., ::2] if array.ndim else array


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "fortran": _as_fortran,
    "transposed": lambda a: a.T,
    "every other": _as_every_other,
    "reversed": lambda a: a[::-1] if a.ndim else a,
}
ARRAYS = st.builds(
    lambda array, change: change(array),
    hnp.arrays(DTYPES, SHAPES),
    st.sampled_from(list(LAYOUTS.values())),
)
NESTED = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
    ),
    max_leaves=8,
)


@given(NESTED)
def test_nested_data_comes_back_as_it_was(obj: object) -> None:
    assert_same(round_trip(obj), obj)


@given(hnp.arrays(DTYPES, SHAPES), st.sampled_from(sorted(LAYOUTS)), st.booleans())
def test_arrays_of_all_kinds_come_back_and_keep_what_is_written_to_them(
    array: np.ndarray, layout: str, big_endian: bool
) -> None:
    array = LAYOUTS[layout](array)
    if big_endian:
        array = array.astype(array.dtype.newbyteorder(">"))
    back = round_trip(array)
    assert_same(back, array)
    assert back.flags.writeable
    back[...] = np.zeros((), back.dtype)
    assert not np.shares_memory(back, array)


READONLY = {
    "contiguous": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "0-d": np.array(3.5),
    "structured": np.zeros(3, [("a", "i4"), ("b", "f8", (2,))]),
    "empty": np.empty((0, 3)),
    "every other": np.arange(12.0)[::2],
    "broadcast": np.broadcast_to(np.float64(1), (3, 4)),
}


@pytest.mark.parametrize("name", READONLY)
def test_read_only_arrays_stay_read_only(name: str) -> None:
    array = READONLY[name].view()
    array.flags.writeable = False
    back = round_trip([array])[0]
    assert_same(back, array)
    assert not back.flags.writeable


@pytest.mark.parametrize("name", ["contiguous", "fortran", "0-d", "structured"])
def test_writable_and_read_only_arrays_do_not_mix(name: str) -> None:
    writable = READONLY[name].copy(order="K")
    readonly = writable.copy(order="K")
    readonly.flags.writeable = False
    back = round_trip([readonly, writable, readonly, writable, b""])
    assert [a.flags.writeable for a in back[:4]] == [False, True, False, True]


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_of_band_arrays_are_views_of_the_body_and_aligned(order: str) -> None:
    arrays = [np.arange(n * 3, dtype=dtype).reshape(3, n).copy(order) for n in (1, 7, 64) for dtype in ("u1", "f8")]
    body, layout = encode(arrays)
    whole = np.frombuffer(body, np.uint8)
    assert layout.frames == len(arrays)
    for back in pickling.decode(body, layout):
        assert np.shares_memory(back, whole)
        assert back.ctypes.data % ALIGNMENT == 0
        back[...] = 7  # the memory is the receiver's to write to


def test_an_array_is_never_copied_into_the_stream() -> None:
    array = np.random.default_rng(0).random(1 << 16)
    encoded = pickling.encode({"pixels": array})
    assert len(encoded.stream) < 1000
    assert np.shares_memory(np.frombuffer(encoded.frames[0], np.uint8), array)
    assert encoded.layout == Layout(len(encoded.stream), 1)


def test_one_array_in_two_places_travels_once_and_stays_one_object() -> None:
    array = np.arange(1000)
    encoded = pickling.encode([array, array])
    assert encoded.layout.frames == 1
    a, b = round_trip([array, array])
    assert a is b


def test_arrays_keep_the_body_alive() -> None:
    body, layout = encode([np.arange(1000), np.arange(1000) + 1])
    first, second = pickling.decode(body, layout)
    del body, first
    assert second.tolist() == list(range(1, 1001))


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1 << 20])
def test_allocate_gives_aligned_writable_memory_of_the_size_asked_for(nbytes: int) -> None:
    memory = pickling.allocate(nbytes)
    assert memory.nbytes == nbytes
    assert not memory.readonly
    if nbytes:
        assert np.frombuffer(memory, np.uint8).ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("frames", [0, 1, 7, 8, 9, 10_000])
def test_layout_with_any_number_of_frames(frames: int) -> None:
    arrays = [np.full(i % 130, i, np.uint16) for i in range(frames)]
    encoded = pickling.encode(arrays)
    assert encoded.layout.frames == frames
    assert not frames or encoded.nbytes % ALIGNMENT == 0
    back = round_trip(arrays)
    assert len(back) == frames
    assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))


def test_encoding_writes_nothing_beyond_its_size() -> None:
    encoded = pickling.encode([np.arange(5), "text"])
    memory = pickling.allocate(encoded.nbytes + 64)
    memory[encoded.nbytes :] = b"\xaa" * 64
    encoded.write_into(memory[: encoded.nbytes])
    assert bytes(memory[encoded.nbytes :]) == b"\xaa" * 64


# What arrives broken

PAYLOAD: dict[str, Any] = {"a": np.arange(100), "b": [np.arange(10.0), "text", b"bytes"], "c": np.arange(3, dtype="u1")}


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_truncated_body_raises(part: float) -> None:
    body, layout = encode(PAYLOAD)
    content = len(body) - ALIGNMENT + PAYLOAD["c"].nbytes  # without the padding of the last frame
    with pytest.raises((ValueError, EOFError, pickle.UnpicklingError)):
        pickling.decode(body[: int((content - 1) * part)], layout)
    pickling.decode(body[:content], layout)


def test_a_frame_that_does_not_fit_is_named() -> None:
    body, layout = encode([np.zeros(1000, np.uint8)])
    with pytest.raises(ValueError, match=r"frame of 1000 bytes at \d+ does not fit into \d+ bytes"):
        pickling.decode(body[:-64], layout)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lay: msgspec.structs.replace(lay, frames=lay.frames - 1), id="a frame less"),
        pytest.param(lambda lay: msgspec.structs.replace(lay, frames=0), id="no frames"),
        pytest.param(lambda lay: msgspec.structs.replace(lay, frames=1 << 40), id="many frames"),
        pytest.param(lambda lay: msgspec.structs.replace(lay, stream_nbytes=0), id="no stream"),
        pytest.param(
            lambda lay: msgspec.structs.replace(lay, stream_nbytes=lay.stream_nbytes // 2), id="half a stream"
        ),
    ],
)
def test_a_wrong_layout_raises(change: Callable[[Layout], Layout]) -> None:
    body, layout = encode(PAYLOAD)
    with pytest.raises((ValueError, EOFError, IndexError, pickle.UnpicklingError)):
        pickling.decode(body, change(layout))


@given(st.integers(0, 63), st.integers(0, 255))
def test_a_damaged_table_raises_or_gives_other_arrays_but_never_reads_beyond_the_body(at: int, byte: int) -> None:
    body, layout = encode([np.arange(40, dtype=np.uint8), np.arange(20, dtype=np.uint8)])
    body[at] = byte
    try:
        back = pickling.decode(body, layout)
    except ValueError:
        return
    assert all(np.shares_memory(a, np.frombuffer(body, np.uint8)) for a in back if a.size)


# What pickles badly, or not at all


@dataclasses.dataclass
class Holder:
    lock: object = None
    other: object = None


def test_lambdas_and_local_classes_travel_by_cloudpickle() -> None:
    class Local:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

    offset = 3
    array = np.arange(1000)
    encoded = pickling.encode({"local": Local(array), "fn": lambda x: x + offset})
    assert encoded.layout.frames == 1, "arrays travel out of band by this way too"
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    back = pickling.decode(body, encoded.layout)
    assert back["fn"](4) == 7
    assert type(back["local"]).__name__ == "Local"
    assert_same(back["local"].array, array)


def test_frames_of_a_failed_first_attempt_are_not_sent() -> None:
    array = np.arange(1000)
    encoded = pickling.encode([array, lambda: None, array + 1])
    assert encoded.layout.frames == 2


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"a": [0, 1, Holder(threading.Lock())]}, r"^dict\['a'\]\[2\]\.lock \(a lock\) does not pickle: .*lock"),
        ([1, (2, threading.Lock())], r"^list\[1\]\[1\] \(a lock\)"),
        (Holder(other={3: Holder(threading.Lock())}), r"^Holder\.other\[3\]\.lock \(a lock\)"),
        (threading.Lock(), r"^lock \(a lock\)"),
        (collections.OrderedDict(x=(i for i in ())), r"^OrderedDict\['x'\] \(a generator\)"),
    ],
    ids=["nested", "tuple", "attributes", "itself", "generator"],
)
def test_what_does_not_pickle_is_named_by_its_place(obj: object, text: str) -> None:
    with pytest.raises(CannotEncode, match=text) as caught:
        pickling.encode(obj)
    assert caught.value.__cause__ is not None


class RaisesWhenPickled:
    def __reduce__(self) -> tuple[object, ...]:
        raise ArithmeticError("not today")


def test_an_error_of_the_payloads_own_code_is_in_the_text() -> None:
    with pytest.raises(CannotEncode, match=r"^dict\['x'\] \(a RaisesWhenPickled\) does not pickle: not today"):
        pickling.encode({"x": RaisesWhenPickled()})


def test_something_nested_without_end_cannot_be_encoded_but_does_no_harm() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CannotEncode, match="list"):
        pickling.encode(deep)
    while deep:  # so that freeing it does not recurse
        deep = deep.pop()  # type: ignore[assignment]


class RaisesWhenUnpickled:
    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def test_what_unpickling_raises_comes_through() -> None:
    with pytest.raises(ValueError, match="no number"):
        round_trip(RaisesWhenUnpickled())


def test_an_empty_encoding_has_no_frames() -> None:
    encoded = pickling.encode(None)
    assert isinstance(encoded, Encoded)
    assert encoded.layout.frames == 0
    assert encoded.nbytes == encoded.layout.stream_nbytes
    assert round_trip(None) is None


def test_copy_refuses_buffers_of_different_sizes() -> None:
    with pytest.raises(ValueError, match="structures"):
        pickling.copy(memoryview(bytearray(3)), b"12")


@pytest.mark.parametrize(
    ("payload", "plain"),
    [
        ({"a": [1, "x", b"y", None, (True, 2.5)]}, True),
        (np.arange(10.0), True),
        ([np.zeros((100, 100), np.uint8), np.array(["s"]), {"n": np.float32(1)}], True),
        ({"cls": Fraction}, False),
        ([np.zeros(3), Fraction(1, 2)], False),
        (np.array([Fraction(1, 2)], object), False),
    ],
)
def test_what_may_be_decoded_at_once_names_nothing_but_numpy(payload: object, plain: bool) -> None:
    encoded = pickling.encode(payload)
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    assert pickling.is_plain(body, encoded.layout) is plain


@pytest.mark.parametrize("nbytes", [2**63 - 1, 2**62, 2**70])
def test_sizes_beyond_all_memory_are_memory_errors(nbytes: int) -> None:
    with pytest.raises(MemoryError):
        pickling.allocate(nbytes)


class OfProgram:
    """Stands for a class of `__main__`."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("count", [10, 6000])
def test_a_class_of_the_program_is_found_in_a_stream_of_any_length(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfProgram, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "OfProgram", OfProgram, raising=False)
    payload = [OfProgram(number) for number in range(count)]
    assert pickling._names_program(pickling.encode_by_name(payload))
    assert b"cloudpickle" in pickling.encode(payload, same_program=False).stream


def test_large_bytes_of_a_payload_are_not_searched_for_names() -> None:
    assert not pickling._names_program(pickling.encode_by_name([b"x" * 100_000 + b"__main__"]))

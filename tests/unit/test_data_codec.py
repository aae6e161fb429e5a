"""The codec of `trust="data"`: what goes in comes out with its type, and whatever comes in runs nothing."""

from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import math
import pickle
import struct
import tracemalloc
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.codec import data, pickling
from lazycast.codec.data import dtypes
from lazycast.codec.data.marks import EXTENSIONS, Kind, Mark
from lazycast.codec.pickling import CannotEncode, Layout

from .test_codec import DTYPES, SHAPES, assert_same

torch = pytest.importorskip("torch")


def encode(obj: object) -> tuple[memoryview, Layout]:
    encoded = data.encode(obj)
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    return body, encoded.layout


def round_trip(obj: object) -> Any:
    return data.decode(*encode(obj))


HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        st.text(max_size=10),
        st.text(st.characters(categories=["Cs"]), max_size=2),
        st.binary(max_size=10),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def _filled(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of any dtype whose items differ, as far as any bytes are items of it."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = (np.arange(nbytes) % 2).astype(np.uint8)  # 0 and 1: good for booleans, and code points
    if dtype.kind == "U" or (dtype.names is not None and "U" in str(dtype)):
        raw[:] = 0
    return np.ndarray(shape, dtype, raw.tobytes()).copy()


ARRAYS = st.builds(_filled, SHAPES, DTYPES)

VALUES = st.recursive(
    HASHABLE | st.binary(max_size=10).map(bytearray) | ARRAYS | st.floats(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
    ),
    max_leaves=10,
)


@given(VALUES)
def test_data_comes_back_as_it_was(value: Any) -> None:
    assert_same(round_trip(value), value)


SINGLE: dict[str, Any] = {
    "none": None,
    "long": 1 << 64,
    "longer": -(1 << 1000) + 1,
    "least of 64 bits": -(1 << 63),
    "below it": -(1 << 63) - 1,
    "most of 64 bits": (1 << 64) - 1,
    "minus zero": -0.0,
    "infinite": -math.inf,
    "lone surrogate": ["\ud800", {"\udfff": 1}],
    "empty": [(), [], {}, set(), frozenset(), b"", "", bytearray()],
    "keys": {1: 1, "1": 2, b"1": 3, 1.5: 4, None: 5, (1, (2,)): 6, frozenset({1}): 7, 1 << 70: 8},
    "bool keys": {True: 1, False: 0},
    "nested": {"a": [1, 2.5, "text", b"bytes", (None, True)], "é": {"deep": [{}]}},
    "tuples in lists": [(1,), [(2, [3])], {"a": (4,)}],
    "large bytes": [b"x" * (1 << 17), bytearray(b"y" * (1 << 17)), b"z" * (64 << 10)],
    "large bytes key": {b"x" * (1 << 17): 1},
    "numpy scalars": [np.float32(1.5), np.int8(-3), np.bool_(True), np.complex64(1j), np.str_("é"), np.bytes_(b"a")],
    "dates": [np.datetime64("2026-01-01T00:00:01"), np.timedelta64(5, "ms"), np.datetime64("NaT", "D")],
    "date array": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "date structures": np.zeros(3, [("when", "M8[us]"), ("what", "S3")]),
    "float16": np.arange(5, dtype=np.float16),
    "long double": np.arange(5, dtype=np.longdouble),
    "big-endian": np.arange(5, dtype=">i4"),
    "0-d": np.array(3.5),
    "empty array": np.empty((0, 3), np.float32),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "strided": np.arange(100).reshape(10, 10)[::2, 1::3],
    "reversed": np.arange(10)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "nested structure": np.zeros(2, [("a", [("b", "i4", (2, 3)), ("c", "U2")])]),
    "titles": np.zeros(2, np.dtype([(("a title", "a"), "i4")])),
    "overlapping": np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["i4", "u1"], "offsets": [0, 1]})),
    "void": np.zeros(2, "V5"),
    "many arrays": [np.arange(n) for n in range(100)],
}


@pytest.mark.parametrize("name", SINGLE)
def test_known_difficulties(name: str) -> None:
    assert_same(round_trip(SINGLE[name]), SINGLE[name])
    assert_same(round_trip([SINGLE[name], 1 << 100]), [SINGLE[name], 1 << 100])  # the careful way


def test_a_structure_with_padding_comes_back() -> None:
    array = np.zeros(2, np.dtype([("a", "u1"), ("b", "f8")], align=True))
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.dtype.isalignedstruct
    assert (back == array).all()


def test_a_scalar_structure_is_a_copy() -> None:
    scalar = np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")])[0]
    back = round_trip(scalar)
    assert type(back) is np.void
    assert back == scalar
    back["a"] = 7


def test_memory_is_shared_with_the_body_and_writable_as_it_was() -> None:
    fixed = np.arange(10)
    fixed.flags.writeable = False
    body, layout = encode({"free": np.zeros(4, np.uint8), "fixed": fixed, "bytes": b"b", "array": bytearray(b"a")})
    value = data.decode(body, layout)
    assert np.shares_memory(value["free"], np.frombuffer(body, np.uint8))
    assert value["free"].ctypes.data % 64 == 0
    assert value["free"].flags.writeable
    assert not value["fixed"].flags.writeable
    assert not data.decode(body.toreadonly(), layout)["free"].flags.writeable
    value["array"] += b"more"


def test_an_array_met_twice_travels_once_and_shows_one_memory() -> None:
    array = np.zeros(1000, np.uint8)
    body, layout = encode([array, {"again": array}])
    assert layout.frames == 1
    first, rest = data.decode(body, layout)
    first[0] = 7
    assert rest["again"][0] == 7


def test_a_memoryview_comes_back_as_one() -> None:
    view = memoryview(np.arange(6, dtype=np.int32).reshape(2, 3))
    back = round_trip(view)
    assert type(back) is memoryview
    assert (back.format, back.shape, back.tobytes()) == (view.format, view.shape, view.tobytes())


TENSORS = {
    "plain": torch.arange(10.0),
    "bfloat16": torch.arange(10, dtype=torch.bfloat16),
    "complex": torch.ones(3, dtype=torch.complex64),
    "bool": torch.tensor([True, False]),
    "0-d": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(12).reshape(3, 4).T,
    "gaps": torch.arange(12).reshape(3, 4)[:, ::2],
    "expanded": torch.arange(3).expand(4, 3),
    "requires grad": torch.ones(3, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str) -> None:
    tensor = TENSORS[name]
    back = round_trip({"t": tensor})["t"]
    assert type(back) is torch.Tensor
    assert (back.dtype, back.shape, back.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert torch.equal(back, tensor)


def test_views_of_one_tensor_stay_views_of_one() -> None:
    whole = torch.zeros(100)
    head, tail = round_trip([whole[:50], whole[25:]])
    head[30] = 7.0
    assert tail[5] == 7.0


def test_a_tensor_is_never_on_memory_that_cannot_be_written_to() -> None:
    body, layout = encode(torch.zeros(5))
    data.decode(body.toreadonly(), layout)[0] = 1.0


class Point(NamedTuple):
    x: int


class Colour(enum.IntEnum):
    RED = 1


class Plain:
    def __init__(self) -> None:
        self.inner = {"a": object()}


def _tensor_with_attributes() -> Any:
    tensor = torch.zeros(2)
    tensor.note = "x"
    return tensor


def _cycle() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


REFUSED: list[tuple[Any, str]] = [
    ({"a": [1, {"b": datetime.datetime(2026, 1, 1)}]}, r"dict\['a'\]\[1\]\['b'\] \(a datetime\) is not plain data"),
    (Plain(), r"^Plain \(a Plain\) is not plain data.*send its fields as a dict, and make it again"),
    ([Point(1)], r"list\[0\] \(a Point\).*a subclass of tuple: send tuple\(it\)"),
    (collections.OrderedDict(a=1), r"OrderedDict \(a OrderedDict\).*send dict\(it\)"),
    ((0, Colour.RED), r"tuple\[1\] \(a Colour\).*send it\.value"),
    ({"f": len}, r"dict\['f'\].*register it as a materializer"),
    ({"f": dict}, r"it can be called"),
    (np.array([1, None], object), r"ndarray \(a ndarray\).*dtype object has objects in it"),
    (np.zeros(2, [("a", "O")]), r"has objects in it"),
    (np.zeros(2).view(np.recarray), r"send numpy.asarray\(it\), and beside it what its class adds"),
    (np.ma.masked_array([1]), r"send it.data, numpy.ma.getmaskarray\(it\)"),
    ({1: {Point(1): 2}}, r"dict\[1\].*a subclass of tuple"),
    ({"t": torch.ones(2).to_sparse()}, r"dict\['t'\] \(a Tensor\).*not bytes and strides.*send its parts"),
    (torch.nn.Parameter(torch.zeros(2)), "Parameter"),
    (_tensor_with_attributes(), "Python attributes"),
    (_cycle(), "contains itself"),
    (np.zeros(3, np.dtype([])), "dtype"),
]


@pytest.mark.parametrize(("obj", "pattern"), REFUSED, ids=lambda x: type(x).__name__)
def test_what_is_not_plain_data_is_named_with_a_remedy(obj: Any, pattern: str) -> None:
    with pytest.raises(CannotEncode, match=pattern):
        data.encode(obj)


def test_quick_is_what_copies_nothing() -> None:
    assert data.is_plain(*encode({"a": [1, (2, 3)], "b": np.zeros(1 << 20, np.uint8)}))
    assert not data.is_plain(*encode([b"x" * (1 << 20)]))
    assert not data.is_plain(*encode(torch.zeros(3)))


# What arrives may be anything


def body_of(packed: object, kind: int = Kind.COPIES, frames: tuple[bytes, ...] = ()) -> tuple[memoryview, Layout]:
    encoded = pickling.Encoded()
    encoded.pieces += (bytes([kind]), packed if isinstance(packed, bytes) else msgspec.msgpack.encode(packed))
    encoded.frames += map(memoryview, frames)
    encoded.finish()
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    return body, encoded.layout


def marked(mark: Mark, *rest: object) -> list[object]:
    return [EXTENSIONS[mark], *rest]


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("print('boom')",)


FRAME = (b"x" * 64,)
T = ("float32", 0, [4], [1], False, "cpu")
HOSTILE: dict[str, tuple[memoryview, Layout]] = {
    "pickle": body_of(pickle.dumps(Bomb(), 5)),
    "pickle behind a kind": body_of(b"\x80\x05" + pickle.dumps(Bomb(), 5)),
    "unknown kind": body_of([1], kind=9),
    "no stream": (memoryview(b""), Layout(0, 0)),
    "mark among atoms": body_of(marked(Mark.TUPLE), kind=Kind.ATOMS),
    "unknown mark": body_of([msgspec.msgpack.Ext(99, b"")]),
    "mark with data": body_of([msgspec.msgpack.Ext(1, b"data")]),
    "mark alone": body_of(EXTENSIONS[Mark.TUPLE]),
    "mark inside": body_of([1, EXTENSIONS[Mark.TUPLE]]),
    "mark as key": body_of(b"\x81\xd4\x01\x00\x01"),
    "timestamp": body_of([b"x", datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)]),
    "truncated": body_of(b"\x95\x01"),
    "more after the end": body_of(b"\x01\x01"),
    "absurd list": body_of(b"\xdd\xff\xff\xff\xff\x01"),
    "absurd map": body_of(b"\xdf\xff\xff\xff\xff\x01"),
    "absurd bytes": body_of(b"\xc6\xff\xff\xff\xff\x01"),
    "deep": body_of(b"\x91" * 100_000 + b"\xc0"),
    "rather deep": body_of(b"\x91" * 500 + b"\xc0"),
    "unhashable": body_of(marked(Mark.SET, [])),
    "odd dict": body_of(marked(Mark.DICT, 1)),
    "frame missing": body_of(marked(Mark.BYTES, 0)),
    "frame negative": body_of(marked(Mark.BYTES, -1), frames=FRAME),
    "frame of another type": body_of(marked(Mark.BYTES, "0"), frames=FRAME),
    "bytearray twice": body_of([marked(Mark.BYTEARRAY, 0), marked(Mark.BYTEARRAY, 0)], frames=FRAME),
    "bytes and bytearray": body_of([marked(Mark.BYTEARRAY, 0), marked(Mark.BYTES, 0)], frames=FRAME),
    "array of objects": body_of(marked(Mark.ARRAY, 0, "|O", [8], True, False), frames=FRAME),
    "array of a class": body_of(marked(Mark.ARRAY, 0, "builtins.object", [8], True, False), frames=FRAME),
    "structure with objects": body_of(
        marked(Mark.ARRAY, 0, ["{}", 8, False, [["a", None, 0, "|O"]]], [8], True, False), frames=FRAME
    ),
    "comma text": body_of(marked(Mark.ARRAY, 0, "f4,O", [8], True, False), frames=FRAME),
    "array too large": body_of(marked(Mark.ARRAY, 0, "<f8", [1 << 40], True, False), frames=FRAME),
    "shape overflows": body_of(marked(Mark.ARRAY, 0, "<f8", [1 << 62, 4, 0], True, False), frames=(b"",)),
    "shape wraps to 64 bytes": body_of(
        marked(Mark.ARRAY, 0, "|u1", [(1 << 63) - 1, 1 << 62], True, False), frames=FRAME
    ),
    "negative shape": body_of(marked(Mark.ARRAY, 0, "|u1", [-8, -8], True, False), frames=FRAME),
    "float shape": body_of(marked(Mark.ARRAY, 0, "|u1", [64.0], True, False), frames=FRAME),
    "absurd item": body_of(marked(Mark.ARRAY, 0, "|V9999999999", [1], True, False), frames=FRAME),
    "item of no bytes": body_of(marked(Mark.ARRAY, 0, "<U0", [1 << 40], True, False), frames=(b"",)),
    "many dimensions": body_of(marked(Mark.ARRAY, 0, "|u1", [(1 << 62) + 1] * 300_000, True, False), frames=FRAME),
    "65 dimensions": body_of(marked(Mark.ARRAY, 0, "|u1", [1] * 64 + [64], True, False), frames=FRAME),
    "field outside": body_of(
        marked(Mark.ARRAY, 0, ["{}", 8, False, [["a", None, 4, "<f8"]]], [8], True, False), frames=FRAME
    ),
    "deep dtype": body_of(marked(Mark.ARRAY, 0, _deep_dtype := ["[]", ["[]", ["[]", "O", [1]], [1]], [1]], [8], 1, 0)),
    "scalar of other size": body_of(marked(Mark.SCALAR, "<f8", b"1234")),
    "scalar of objects": body_of(marked(Mark.SCALAR, "|O", b"12345678")),
    "tensor beyond": body_of(marked(Mark.TENSOR, 0, "float32", 0, [17], [1], False, "cpu"), frames=FRAME),
    "tensor far beyond": body_of(marked(Mark.TENSOR, 0, "float32", 0, [2], [1 << 62], False, "cpu"), frames=FRAME),
    "tensor before": body_of(marked(Mark.TENSOR, 0, "float32", -4, [4], [1], False, "cpu"), frames=FRAME),
    "tensor backwards": body_of(marked(Mark.TENSOR, 0, "float32", 8, [4], [-1], False, "cpu"), frames=FRAME),
    "tensor of nothing": body_of(marked(Mark.TENSOR, None, "float32", 0, [1 << 40], [1], False, "cpu")),
    "tensor of another dtype": body_of(marked(Mark.TENSOR, 0, "load", *T[1:]), frames=FRAME),
    "tensor on another device": body_of(marked(Mark.TENSOR, 0, *T[:5], "hub"), frames=FRAME),
    "tensor of integers with gradients": body_of(
        marked(Mark.TENSOR, 0, "int32", 0, [4], [1], True, "cpu"), frames=FRAME
    ),
    "tensor on bytes": body_of([marked(Mark.BYTES, 0), marked(Mark.TENSOR, 0, *T)], frames=FRAME),
    "tensor of an empty frame": body_of(marked(Mark.TENSOR, 0, *T), frames=(b"",)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_a_value_error_and_allocates_next_to_nothing(name: str, capsys: Any) -> None:
    body, layout = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is not plain data"):
            data.decode(body, layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * body.nbytes + (1 << 20)
    assert "boom" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout",
    [Layout(1 << 62, 0), Layout(10, 1 << 40), Layout(10, 3), Layout(0, 0), Layout(1000, 1), Layout(5, 1 << 61)],
    ids=str,
)
def test_a_layout_that_does_not_fit_is_a_value_error(layout: Layout) -> None:
    body, _ = encode({"a": np.zeros(10)})
    with pytest.raises(ValueError, match="is not plain data"):
        data.decode(body, layout)
    data.is_plain(body, layout)


def test_bytes_of_one_frame_are_copied_once() -> None:
    body, layout = body_of([marked(Mark.BYTES, 0)] * 10_000, frames=(b"x" * (1 << 20),))
    tracemalloc.start()
    value = data.decode(body, layout)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(value) == 10_000
    assert peak < 5 << 20


def test_a_frame_larger_than_its_body_is_refused() -> None:
    body, layout = encode(np.zeros(10))
    struct.pack_into("<Q", body, 0, 1 << 62)
    with pytest.raises(ValueError, match="does not fit"):
        data.decode(body, layout)


SAMPLES = [encode(value) for value in [*SINGLE.values(), *TENSORS.values()]]


@given(st.integers(0, len(SAMPLES) - 1), st.data())
def test_a_damaged_body_decodes_or_is_a_value_error(sample: int, draw: st.DataObject) -> None:
    body, layout = bytearray(SAMPLES[sample][0]), SAMPLES[sample][1]
    stream_at = -(-8 * layout.frames // 64) * 64
    for _ in range(draw.draw(st.integers(1, 4))):
        inside = draw.draw(st.booleans())
        low, high = (stream_at, stream_at + layout.stream_nbytes - 1) if inside else (0, len(body) - 1)
        body[draw.draw(st.integers(low, high))] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        layout = Layout(*draw.draw(st.tuples(st.integers(0, 2000), st.integers(0, 50))))
    data.is_plain(memoryview(body), layout)
    with contextlib.suppress(ValueError):
        data.decode(memoryview(body), layout)


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 400))
def test_random_bytes_decode_or_are_a_value_error(noise: bytes, frames: int, stream_nbytes: int) -> None:
    with contextlib.suppress(ValueError):
        data.decode(memoryview(bytearray(noise)), Layout(stream_nbytes, frames))


@pytest.mark.parametrize("description", [None, 3, "O", "f8", "<f8,<f8", ["{}"], ["[]", "<f8"], ["x"], [], "|V0", "=f8"])
def test_a_description_that_is_none_is_refused(description: object) -> None:
    with pytest.raises(ValueError, match=r"descri|dtype|unpack"):
        dtypes.read(description)


@pytest.mark.cold
def test_nothing_is_imported_or_unpickled(run_python: Any) -> None:
    body, layout = encode({"t": torch.zeros(3)})
    code = f"""
import sys, pickle, lazycast
from lazycast.codec import data
from lazycast.codec.pickling import Layout
def refuse(*args, **kwargs):
    raise AssertionError("unpickled")
pickle.loads = pickle.Unpickler = refuse
before = set(sys.modules)
try:
    data.decode(memoryview(bytearray({bytes(body)!r})), Layout({layout.stream_nbytes}, {layout.frames}))
except ValueError as exc:
    print(exc)
print(sorted(set(sys.modules) - before))
"""
    out = run_python(code)
    assert "this process has not imported torch" in out
    assert out.strip().endswith("[]")

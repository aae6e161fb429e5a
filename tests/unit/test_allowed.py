"""`allow=`: what a stream may name is found, everything else is a TrustError before anything is imported or run."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import datetime
import decimal
import io
import os
import pickle
import pickletools
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.codec import pickling
from lazycast.codec.allowed import ALWAYS, AllowCodec
from lazycast.codec.careful import CarefulUnpickler
from lazycast.codec.doors import problem
from lazycast.codec.opcodes import may_set_state
from lazycast.codec.pickling import CannotEncode, Layout
from lazycast.codec.reducers import torch_tensors
from lazycast.errors import TrustError

from .test_codec import assert_same

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

NOTHING = AllowCodec([])


class Frame:
    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    class Inner:
        pass

    @staticmethod
    def twice(x: Any) -> Any:
        return x, x


HERE = Frame.__module__
FRAME = f"{HERE}.Frame"


def round_trip(obj: object, *allow: str) -> Any:
    mine = AllowCodec(allow)
    encoded = mine.encode(obj)
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    return mine.decode(body, encoded.layout)


def decode(stream: bytes, *allow: str) -> Any:
    return AllowCodec(allow).decode(memoryview(stream), Layout(len(stream), 0))


def named(module: str, name: str) -> bytes:
    """A stream that names something, as protocol 5 does."""
    parts = [b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94" for text in (module, name)]
    return b"\x80\x05" + b"".join(parts) + b"\x93"


ALWAYS_GOOD: dict[str, Any] = {
    "plain": {"a": [1, 2.5, "text", b"bytes", (None, True), {1}, frozenset({2}), 1j, 1 << 100, slice(1), ...]},
    "array": np.arange(12.0).reshape(3, 4).T,
    "dates": np.array(["2026-01-01"], "M8[D]"),
    "strided": np.arange(100)[::3],
    "structured": np.zeros(3, [("x", "<i4"), ("y", "M8[s]")]),
    "fortran": np.asfortranarray(np.ones((2, 3))),
    "empty": np.empty((0, 3)),
    "objects in rows": np.array([[1, True], [None, 2]], object),
    "objects": np.array([1, None], object),
    "scalars": [np.float64(1), np.datetime64("2026-01-01"), np.str_("a"), np.dtype("f4"), np.float32, np.bool_(True)],
    "collections": [collections.OrderedDict(a=1), collections.defaultdict(list, {1: [2]}), collections.deque([1])],
    "times": [datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(1), datetime.time(1)],
    "decimal": decimal.Decimal("1.5"),
}


@pytest.mark.parametrize("name", ALWAYS_GOOD)
def test_what_is_always_allowed_comes_back(name: str) -> None:
    assert_same(round_trip(ALWAYS_GOOD[name]), ALWAYS_GOOD[name])


def test_views_tensors_and_images_come_back() -> None:
    assert round_trip(memoryview(b"abc")).tobytes() == b"abc"
    for tensor in (torch.arange(3.0), torch.ones(2, dtype=torch.bfloat16), torch.empty(0), torch.ones(3, 3)[::2].T):
        assert torch.equal(round_trip(tensor), tensor)
    assert torch.equal(round_trip(torch.nn.Parameter(torch.ones(3))), torch.ones(3))
    for image in (Image.new("RGB", (4, 4), "red"), Image.new("P", (4, 4))):
        assert round_trip(image).tobytes() == image.tobytes()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(buffer, "JPEG")
    opened = Image.open(buffer)
    assert round_trip(opened).tobytes() == opened.tobytes()


def test_a_type_comes_once_it_is_allowed() -> None:
    with pytest.raises(
        TrustError, match=rf"what arrived names '{FRAME}', which is not allowed: add it to trust= on ev"
    ):
        round_trip([Frame(1)])
    assert round_trip([Frame(np.ones(3))], FRAME)[0].pixels.sum() == 3
    with pytest.raises(TrustError, match=r"Frame\.Inner"):  # a class's own classes and methods are other names
        round_trip(Frame.Inner(), FRAME)
    assert type(round_trip(Frame.Inner(), f"{FRAME}.Inner")) is Frame.Inner


DANGEROUS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "type"),
    ("builtins", "bytes"),  # of a number: as many
    ("builtins", "range"),
    ("builtins", "print"),
    ("builtins", "object.__subclasses__"),
    ("builtins", "dict.__class__"),
    ("builtins", "str.format"),
    ("copyreg", "add_extension"),
    ("copyreg", "_reconstructor"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("numpy", "load"),
    ("numpy", "ndarray"),  # makes pointers of a buffer
    ("numpy", "dtype"),  # takes a forged state
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray.tofile"),
    ("numpy", "save"),
    ("numpy.testing", "runstring"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.hub", "load"),
    ("PIL.Image", "open"),
    ("PIL.Image", "Image.save"),
    ("lazycast.codec.reducers", "sys.modules"),
    ("lazycast.codec.reducers.torch_tensors", "sys"),
    ("lazycast.codec.reducers.torch_tensors", "pickle.loads"),
    ("lazycast.codec.reducers.torch_tensors", "receive.__globals__"),
    ("lazycast.codec.reducers.pil_images", "set_state.__globals__.get"),
    ("lazycast.materialize.materializers", "register_materializer"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "_sys.modules"),
    ("datetime", "sys"),
    ("", "os.system"),
    ("os.system", ""),
    ("numpy.", "dtype"),
    (".numpy", "dtype"),
    ("numpy", "dtype."),
    ("Numpy", "dtype"),
    ("numpy ", "dtype"),
    ("numpy.dtype", "dtype"),
    (HERE, "Frame"),
]


@pytest.mark.parametrize(("module", "name"), DANGEROUS)
def test_a_name_that_is_not_allowed_is_refused_before_it_is_looked_up(module: str, name: str) -> None:
    imported = set(sys.modules)
    with pytest.raises(TrustError, match="which is not allowed"):
        decode(named(module, name) + b".")
    assert set(sys.modules) == imported


@pytest.mark.parametrize(("module", "name"), [pair for pair in DANGEROUS if pair != (HERE, "Frame")])
def test_a_name_that_is_not_allowed_is_refused_after_one_that_is_listed(module: str, name: str) -> None:
    """From there on a stream is read with care, by another unpickler."""
    imported = set(sys.modules)
    with pytest.raises(TrustError, match="which is not allowed"):
        decode(named(HERE, "Frame") + b"0" + named(module, name)[2:] + b".", FRAME)
    assert set(sys.modules) == imported


@pytest.mark.parametrize("opcodes", [b"cos\nsystem\n.", b"(S'x'\nios\nsystem\n.", b"\x80\x02c__builtin__\neval\n."])
def test_old_ways_to_name_things_are_no_way_around(opcodes: bytes) -> None:
    with pytest.raises(TrustError, match="which is not allowed"):
        decode(opcodes)


def _bombs(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"

    class System:
        def __reduce__(self) -> Any:
            return os.system, (command,)

    class Exec:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(marker)!r}, 'w')",)

    class Nested:
        def __reduce__(self) -> Any:
            return getattr(builtins, "list"), ([System()],)  # noqa: B009

    class InState:
        def __reduce__(self) -> Any:
            return collections.OrderedDict, (), None, None, iter([("a", System())])

    class Setter:
        def __reduce__(self) -> Any:
            return dict, (), command, None, None, os.system

    def harm() -> None:
        marker.touch()

    bombs = {cls.__name__: b"".join(pickling.encode([cls()]).pieces) for cls in (System, Exec, Nested, InState, Setter)}
    return {
        **bombs,
        "code": cloudpickle.dumps(harm, protocol=5),
        "class by value": cloudpickle.dumps(type("Local", (), {"__reduce__": lambda self: (harm, ())})(), protocol=5),
        "getattr chain": named("os", "path.os.system") + b"\x8c" + bytes([len(command)]) + command.encode() + b"\x85R.",
    }


@pytest.mark.parametrize(
    "name", ["System", "Exec", "Nested", "InState", "Setter", "code", "class by value", "getattr chain"]
)
def test_a_bomb_does_not_go_off(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "harmed"
    stream = _bombs(marker)[name]
    with pytest.raises(TrustError):
        decode(stream, FRAME)
    assert not marker.exists()


def test_code_by_value_is_explained() -> None:
    with pytest.raises(TrustError, match=r"holds code \(cloudpickle.*which cannot be allowed by name: send functions"):
        decode(cloudpickle.dumps(lambda: 1, protocol=5))
    with pytest.raises(
        CannotEncode, match=r"dict does not pickle by name, and with names in trust= no code travels: .*lambda"
    ):
        NOTHING.encode({"f": lambda: 1})
    assert problem("cloudpickle.cloudpickle._make_function") is not None
    assert problem("types.CodeType") is not None


def test_persistent_ids_mean_nothing() -> None:
    for stream in (b"\x80\x05Nx.", b"Pos.system\n.", b"\x80\x05\x8c\x01xQ."):
        with pytest.raises(pickle.UnpicklingError):
            decode(stream)


@pytest.fixture
def extension() -> Iterator[int]:
    """An extension code for `os.system` that pickle has met, and keeps."""
    code = 0xF123
    copyreg.add_extension("os", "system", code)
    try:
        assert pickle.loads(b"\x80\x02\x83" + struct.pack("<H", code) + b".") is os.system
        yield code
    finally:
        copyreg.remove_extension("os", "system", code)
        copyreg._extension_cache.pop(code, None)  # type: ignore[attr-defined]


def test_extension_codes_are_refused(extension: int) -> None:
    with pytest.raises(TrustError, match=f"extension code {extension}"):
        decode(b"\x80\x02\x83" + struct.pack("<H", extension) + b".")
    with pytest.raises(TrustError, match="extension code"):
        decode(b"\x80\x02\x84" + struct.pack("<I", extension) + b".")
    assert_same(
        round_trip({"a": np.ones(3), "b": b"\x82\x83\x84" * 100}), {"a": np.ones(3), "b": b"\x82\x83\x84" * 100}
    )


def test_an_extension_code_that_nobody_has_registered_means_nothing() -> None:
    with pytest.raises(ValueError, match="unregistered extension code"):
        decode(b"\x80\x02\x82\x07.")


def test_our_own_functions_cannot_be_changed_by_a_stream() -> None:
    state = pickle.dumps((None, {"__defaults__": (1, 2, 3), "__code__": 3}), 5)[2:-1]
    before = (torch_tensors.receive.__defaults__, torch_tensors.receive.__code__)
    with pytest.raises(TrustError, match="sets the state of"):
        decode(named("lazycast.codec.reducers.torch_tensors", "receive") + state + b"b.")
    with pytest.raises(TrustError, match="sets the state of"):
        decode(named("lazycast.codec.data.arrays", "rebuild_scalar") + pickle.dumps({"x": 1}, 5)[2:-1] + b"b.")
    assert (torch_tensors.receive.__defaults__, torch_tensors.receive.__code__) == before


@pytest.mark.parametrize(
    "name", ["builtins.int", "collections.OrderedDict", "datetime.datetime", "decimal.Decimal", "numpy.float64"]
)
def test_types_that_are_always_allowed_cannot_be_changed_by_a_stream(name: str) -> None:
    module, _, qualname = name.rpartition(".")
    with pytest.raises(TrustError, match=r"sets the state of a 'builtins\.type'"):
        decode(named(module, qualname) + pickle.dumps((None, {"x": 1}), 5)[2:-1] + b"b.")


def _called(module: str, name: str, *args: object) -> bytes:
    return named(module, name) + pickle.dumps(args, 5)[2:-1] + b"R."


FLAT = b"x" * 64
DESCRIBED, TENSORS = "lazycast.codec.reducers.described", "lazycast.codec.reducers.torch_tensors"


@pytest.mark.parametrize(
    "stream",
    [
        _called(DESCRIBED, "array_of", FLAT, "|O", [8], True, False),
        _called(DESCRIBED, "array_of", FLAT, ["{}", 8, False, [["a", None, 0, "|O"]]], [8], True, False),
        _called(DESCRIBED, "array_of", FLAT, "<f8", [1 << 40], True, False),
        _called(DESCRIBED, "array_of_objects", [1 << 40], [1], True),
        _called(DESCRIBED, "array_of_objects", [3], "abc", True),
        _called("lazycast.codec.data.dtypes", "read", "|O"),
        _called("lazycast.codec.data.arrays", "rebuild_scalar", "|O", b"12345678"),
        _called(TENSORS, "rebuild", None, "float32", 0, [1 << 40], [1], False, "cpu"),
        _called(TENSORS, "rebuild", FLAT, "float32", 0, [4], [1], False, "cpu"),
    ],
)
def test_what_rebuilds_arrays_checks_what_it_is_given(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(stream)


def test_a_tensor_does_not_look_beyond_its_bytes() -> None:
    for how in ((0, (17,), (1,)), (-4, (4,), (1,)), (8, (4,), (-1,)), (0, (2,), (1 << 62,))):
        flat = named(TENSORS, "receive") + pickle.dumps((bytearray(64), "cpu"), 5)[2:-1] + b"R"
        stream = named(TENSORS, "rebuild") + b"(" + flat[2:]
        parts = [pickle.dumps(x, 5)[2:-1] for x in (torch.float32, *how, False, "cpu")]
        stream += b"".join(parts) + b"tR."
        with pytest.raises(ValueError, match=r"sizes|beyond"):
            decode(stream)


def test_every_name_that_is_always_allowed_is_a_name() -> None:
    for name in ALWAYS:
        assert problem(name) is None
    assert not {"builtins.getattr", "builtins.eval", "builtins.type", "torch.storage._load_from_bytes"} & ALWAYS


@pytest.mark.parametrize("layout", [Layout(1 << 62, 0), Layout(4, 1 << 40), Layout(1000, 1)], ids=str)
def test_a_layout_that_does_not_fit_is_a_value_error(layout: Layout) -> None:
    with pytest.raises(ValueError, match="do not hold"):
        NOTHING.decode(memoryview(b"1234" * 32), layout)


def test_text_that_is_none_is_a_value_error() -> None:
    """NumPy raises SystemError for a character beyond the last one, which nobody expects of data."""
    with pytest.raises(ValueError, match="no scalar of dtype <U1: invalid maximum character"):
        decode(_called("lazycast.codec.data.arrays", "rebuild_scalar", "<U1", b"a\0\0\1"))


STREAMS = [b"".join(NOTHING.encode(value).pieces) for value in ALWAYS_GOOD.values()]
_ANY = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, MemoryError, RuntimeError)


@given(st.integers(0, len(STREAMS) - 1), st.data())
def test_a_damaged_stream_raises_what_pickle_raises(which: int, data: st.DataObject) -> None:
    stream = bytearray(STREAMS[which])
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(stream))
    except (TrustError, pickle.UnpicklingError, *_ANY):
        pass


@pytest.mark.parametrize("opcode", [op for op in pickletools.opcodes if op.arg is not None], ids=lambda op: op.name)
def test_a_stream_without_an_opcodes_argument_is_truncated(opcode: pickletools.OpcodeInfo) -> None:
    """Whether it is read by pickle's C or, with care, by its Python, which raises struct.error and others."""
    stream = opcode.code.encode("latin-1")
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(stream)
    for before in (b"", b"\x95\x01" + bytes(7)):  # also where it ends a frame
        with pytest.raises(pickle.UnpicklingError, match="truncated"):
            CarefulUnpickler(before + stream, None, AllowCodec(())._find, frozenset()).load()


# State: a stream may set that of instances of listed classes, and of nothing else


def _set(target: bytes, state: object) -> bytes:
    return target + pickle.dumps(state, 5)[2:-1] + b"b."


def doubled(x: int, by: int = 2) -> int:
    return x * by


DOUBLED = f"{HERE}.doubled"
ARRAY = _called(DESCRIBED, "array_of", b"x" * 8, "<f8", [1], True, False).removesuffix(b".")
STRUCTURE = _called("lazycast.codec.data.dtypes", "read", ["{}", 8, False, [["a", None, 0, "<f8"]]]).removesuffix(b".")
TENSOR = named(TENSORS, "rebuild") + b"(" + _called(TENSORS, "receive", bytearray(64), "cpu")[2:].removesuffix(b".")
TENSOR += b"".join(pickle.dumps(x, 5)[2:-1] for x in (torch.float32, 0, (4,), (1,), False, "cpu")) + b"tR"

#: Streams that make something to be forged, and what it is to become.
FORGED: dict[str, bytes] = {
    "a field beyond its structure": _set(STRUCTURE, (4, "|", None, ("a",), {"a": ("<f8", 1 << 30)}, 8, 1, 0)),
    "an array of other memory": _set(ARRAY, (1, (2,), "<f8", False, b"y" * 16)),
    "a tensor of other memory": _set(TENSOR, (0, 0, (1 << 40,), (1,))),
    "a tensor's attributes": _set(TENSOR, (None, {"requires_grad": True})),
    "a listed class": _set(named(HERE, "Frame"), (None, {"twice": 1})),
    "a listed function": _set(named(HERE, "doubled"), (None, {"__defaults__": (7,)})),
    "a listed class, by its own dict": _set(named(HERE, "Frame"), {"twice": 1}),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_stream_sets_the_state_of_instances_of_listed_classes_only(what: str) -> None:
    before = (Frame.twice, doubled.__defaults__)
    with pytest.raises(TrustError, match=r"what arrived sets the state of a '.*', which is not allowed"):
        decode(FORGED[what], FRAME, DOUBLED)
    assert (Frame.twice, doubled.__defaults__) == before
    assert round_trip([Frame(np.ones(3)), collections.OrderedDict(a=1)], FRAME)[0].pixels.sum() == 3


def test_what_sets_the_state_of_tensors_and_images_sets_that_of_nothing_else() -> None:
    own = (1, (2,), "<f8", False, b"y" * 16)
    for module, name in (("lazycast.codec.reducers.pil_images", "set_state"), (TENSORS, "set_attributes")):
        stream = named(module, name) + b"(" + ARRAY[2:] + pickle.dumps((own, None), 5)[2:-1] + b"tR."
        with pytest.raises(ValueError, match=r"the state of an image for a ndarray|attributes for a ndarray"):
            decode(stream)


def test_an_image_opens_no_file_of_the_receiver(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    Image.new("RGB", (4, 4)).save(path)
    for module in ("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin"):
        name = f"{module.removeprefix('PIL.').removesuffix('Plugin')}File"
        with pytest.raises(TrustError, match="which is not allowed"):
            decode(_called(module, name, str(path)))


@pytest.mark.parametrize(
    ("name", "state", "pattern"),
    [
        ("TiffImageFile", None, "no image"),
        ("Image", (({}, "RGB", (1 << 20, 1 << 20), None, b"xyz"), None), "1048576 times 1048576 in 3 bytes"),
        ("Image", (({}, "RGB", (-1, 1), None, b"xyz"), None), "are no sizes"),
        ("Image", (({}, 3, (1, 1), None, b"xyz"), None), "an image of 1 times 1"),
    ],
)
def test_an_image_has_the_pixels_that_it_says(name: str, state: object, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        decode(_called(DESCRIBED, "image_of", name, state))


# The look through a stream agrees with pickle's own


@given(st.binary(max_size=40) | st.sampled_from(STREAMS), st.data())
def test_a_stream_that_is_said_to_set_no_state_sets_none(stream: bytes, data: st.DataObject) -> None:
    mutable = bytearray(stream or b".")
    for _ in range(data.draw(st.integers(0, 3))):
        mutable[data.draw(st.integers(0, len(mutable) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(mutable)
    if not may_set_state(mutated):
        names = []
        with contextlib.suppress(ValueError):  # of text that is none: unpickling ends there as well
            for opcode, _, _ in pickletools.genops(mutated):
                names.append(opcode.name)
        assert not {"BUILD", "INST", "GLOBAL", "EXT1", "EXT2", "EXT4"} & {*names}


def test_what_the_root_sends_of_plain_data_and_arrays_sets_no_state() -> None:
    assert not any(may_set_state(stream) for stream in STREAMS)
    assert may_set_state(b"".join(AllowCodec([FRAME]).encode(Frame(1)).pieces))
    assert may_set_state(b"")
    assert may_set_state(b"\x80\x05\x8c\xffabc")

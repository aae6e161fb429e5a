"""Fingerprints of payloads: equal for equal ones, different where it shows, and cheap."""

from __future__ import annotations

import array
import collections
import copy
import datetime
import decimal
import enum
import itertools
import math
import pathlib
import pickle
import time
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.codec.fingerprint import approximate_nbytes, fingerprint, first_difference


class Modality(enum.Enum):
    IMAGE = "image"
    VIDEO = "video"


class Bits(enum.Flag):
    A = 1
    B = 2
    C = 4


class Item(msgspec.Struct, kw_only=True, dict=True):
    modality: Modality
    hash: int | None = None
    feature: Any = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Derived(Item):
    more: int = 0


@dataclass(slots=True)
class Slotted:
    x: int
    y: Any = None


@dataclass(slots=True)
class SlottedChild(Slotted):
    z: int = 0


@dataclass
class Plain:
    x: int
    y: list[Any] = field(default_factory=list)


class OneSlot:
    __slots__ = "only"  # a string is one slot


class Private:
    __slots__ = ("__hidden",)

    def __init__(self, hidden: int) -> None:
        self.__hidden = hidden


class Counting:
    """Whose attributes must not run code of its own."""

    __slots__ = ("value",)

    def __getattribute__(self, name: str) -> Any:
        if name == "value":
            raise AssertionError("the class's own code was run")
        return object.__getattribute__(self, name)


class Text(str):
    """A string with a class of its own."""

    __slots__ = ()


def set_slot(obj: Any, name: str, value: Any) -> Any:
    setattr(obj, name, value)
    return obj


def _data() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    arrays = st.integers(0, 300).map(lambda n: np.arange(n, dtype=np.float32))
    return st.recursive(
        leaves | arrays,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )


@given(_data())
def test_a_copy_has_the_same_fingerprint(payload: Any) -> None:
    assert (
        fingerprint(payload) == fingerprint(copy.deepcopy(payload)) == fingerprint(pickle.loads(pickle.dumps(payload)))
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, True),
        (1 << 70, 1 << 71),
        (1 << 20_000, 1 << 20_001),
        (-(1 << 63), -(1 << 63) - 1),
        ("x" * 1000, "x" * 999 + "y"),
        ("\ud800", "\ud801"),
        (1, 1.0),
        (None, 0),
        ("a", b"a"),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        (b"x" * 10_000, b"x" * 10_001),
        (list(range(50_000)), [*range(49_999), -1]),
        (list(range(100)), tuple(range(100))),
        ([1] * 100, [True] * 100),
        ([1 << 70] * 100, [1 << 71] * 100),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(4, np.float32), np.zeros(4, np.int32)),
        (np.zeros(100_000), np.ones(100_000)),
        (np.zeros((100, 100)).T, np.ones((100, 100)).T),
        (np.float32(1), np.float32(2)),
        (array.array("q", range(900)), array.array("q", range(901))),
        (array.array("i", [1]), array.array("i", [2])),
        (array.array("i"), array.array("q")),
        (Modality.IMAGE, Modality.VIDEO),
        (Bits.A | Bits.B, Bits.A | Bits.C),
        (int, float),
        (len, print),
        (Plain(1), Plain(2)),
        (Plain(1, [1]), Plain(1, [2])),
        (Slotted(1), Slotted(2)),
        (Slotted(1, [1]), Slotted(1, [2])),
        (SlottedChild(1, None, 3), SlottedChild(1, None, 4)),
        (SlottedChild(1, None, 3), SlottedChild(2, None, 3)),
        (Private(1), Private(2)),
        (set_slot(OneSlot(), "only", 1), OneSlot()),
        (Item(modality=Modality.IMAGE), Item(modality=Modality.VIDEO)),
        (Item(modality=Modality.IMAGE, hash=1), Item(modality=Modality.IMAGE)),
        (Item(modality=Modality.IMAGE, feature=np.ones(3)), Item(modality=Modality.IMAGE, feature=np.ones(4))),
        (Item(modality=Modality.IMAGE, extra={"a": 1}), Item(modality=Modality.IMAGE, extra={"a": 2})),
        (Derived(modality=Modality.IMAGE), Item(modality=Modality.IMAGE)),
        (Derived(modality=Modality.IMAGE, more=1), Derived(modality=Modality.IMAGE, more=2)),
        (Derived(modality=Modality.IMAGE, hash=1), Derived(modality=Modality.IMAGE, hash=2)),
        (uuid.UUID(int=1), uuid.UUID(int=2)),
        (decimal.Decimal(1), decimal.Decimal(2)),
        (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
        (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b")),
        (range(3), range(4)),
        (slice(1), slice(2)),
        (collections.deque([1]), collections.deque([2])),
        ({1, 2}, {1, 3}),
        (frozenset("ab"), frozenset("ac")),
        (Text("a"), Text("b")),
        (Text("a"), "a"),
        (list(range(1000)), [*range(999), 0]),
        ([0.5] * 1000, [*[0.5] * 999, 0.25]),
        ([1] * 31 + [0.5], [1] * 31 + [0.25]),
        (np.arange(100_000, dtype=np.uint8), np.arange(100_000, dtype=np.uint8)[::-1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_differs_shows(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))
    assert fingerprint([other]) == fingerprint([pickle.loads(pickle.dumps(other))])


def test_attributes_that_a_struct_has_beside_its_fields_count() -> None:
    one, other = Item(modality=Modality.IMAGE), Item(modality=Modality.IMAGE)
    one.__dict__["beside"] = 1
    assert fingerprint(one) != fingerprint(other)
    other.__dict__["beside"] = 1
    assert fingerprint(one) == fingerprint(other)


def test_attributes_in_slots_are_looked_at_without_the_code_of_their_class() -> None:
    one, other = Counting(), Counting()
    object.__setattr__(one, "value", 1)
    object.__setattr__(other, "value", 2)
    assert fingerprint(one) != fingerprint(other)


def test_tensors_count_by_shape_type_and_samples() -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros(50_000)
    for other in (
        torch.ones(50_000),
        torch.zeros(50_001),
        torch.zeros(50_000, dtype=torch.float64),
        base.reshape(2, -1),
    ):
        assert fingerprint(base) != fingerprint(other)
    assert fingerprint(base) == fingerprint(base.clone())
    assert approximate_nbytes(base) == pytest.approx(base.nbytes, abs=64)


def test_the_size_is_about_that_of_the_payload() -> None:
    item = Item(modality=Modality.IMAGE, feature=np.zeros(1 << 20, np.uint8), extra={"more": bytes(1 << 20)})
    assert approximate_nbytes([item, item]) == pytest.approx(4 << 20, rel=0.01)


@pytest.mark.parametrize("nested", [lambda: [[]] * 3, lambda: list(range(1_000_000))], ids=["alike", "long"])
def test_there_is_an_end_to_it(nested: Callable[[], Any]) -> None:
    payload = nested()
    for _ in range(100):
        payload = [payload]
    assert fingerprint(payload) == fingerprint(copy.copy(payload))


@pytest.mark.parametrize("shape", [(3, 5), (100, 100), (7, 11, 13)])
def test_arrays_count_by_their_elements_however_they_lie_in_memory(shape: tuple[int, ...]) -> None:
    one = np.random.default_rng(3).random(shape)
    wide = np.zeros((*shape[:-1], 2 * shape[-1]))
    wide[..., ::2] = one
    assert fingerprint(one) == fingerprint(np.asfortranarray(one)) == fingerprint(wide[..., ::2])


def layouts(one: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays of the same elements that lie in memory in other ways."""
    axes = range(one.ndim)
    cropped = np.zeros([n + 5 for n in one.shape], one.dtype)[tuple(slice(2, -3) for _ in axes)]
    packed = np.zeros(one.shape, np.dtype([("before", "u1"), ("it", one.dtype)]))["it"]  # at odd addresses
    spread = np.zeros([2 * n for n in one.shape], one.dtype)[tuple(slice(None, None, 2) for _ in axes)]
    for other in (cropped, packed, spread):
        other[...] = one
    found = {"cropped": cropped, "packed": packed, "spread": spread}
    for order in itertools.permutations(axes):
        base = np.ascontiguousarray(one.transpose(order))
        found[f"permuted {order}"] = base.transpose(np.argsort(order))
    for axis in axes:
        found[f"flipped {axis}"] = np.flip(np.flip(one, axis).copy(), axis)
    found["turned"] = np.flip(np.flip(one).copy())
    return found


SHAPES = [(1_500_000,), (1000, 1237), (640, 481, 3), (3, 640, 488), (70, 3, 64, 65), (1, 999, 1, 1200)]


DTYPES = ["u1", "c16", ">f4", "f8", "<f2", "V3"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        # By default each shape and each type once.
        pytest.param(shape, dtype, id=f"{shape}-{dtype}", marks=[] if n == k else [pytest.mark.exhaustive])
        for n, shape in enumerate(SHAPES)
        for k, dtype in enumerate(DTYPES)
    ],
)
def test_long_arrays_count_by_their_elements_however_they_lie_in_memory(shape: tuple[int, ...], dtype: str) -> None:
    kind = np.dtype(dtype)
    raw = np.random.default_rng(3).integers(0, 256, math.prod(shape) * kind.itemsize, dtype=np.uint8)
    one = raw.view(kind).reshape(shape)
    expected = fingerprint(one)
    for name, other in layouts(one).items():
        assert other.tobytes() == one.tobytes()  # NaN would not be equal
        assert fingerprint(other) == expected, name


@pytest.mark.parametrize("where", [0.0, 0.31, 0.77, 1.0])
def test_what_differs_shows_however_it_lies_in_memory(where: float) -> None:
    one = np.random.default_rng(3).integers(0, 256, (640, 481, 9), dtype=np.uint8)
    other = one.copy()
    start = int(where * (one.size - 512))
    other.reshape(-1)[start : start + 512] ^= 255
    expected = fingerprint(one)
    for name, array_ in layouts(other).items():
        assert fingerprint(array_) != expected, name


def test_repeated_elements_count_as_if_each_were_there() -> None:
    row = np.random.default_rng(3).random(1001)
    for wide in (np.broadcast_to(row, (900, 1001)), np.broadcast_to(row[:, None], (1001, 900))):
        assert fingerprint(wide) == fingerprint(wide.copy())
    assert fingerprint(np.broadcast_to(1.5, (700, 800))) == fingerprint(np.full((700, 800), 1.5))
    for shape in ((), (0,), (3, 0, 2)):
        empty = np.zeros(shape)
        assert fingerprint(empty.T) == fingerprint(np.zeros(shape[::-1]))


def test_overlapping_windows_count_as_if_each_were_there() -> None:
    windows = np.lib.stride_tricks.sliding_window_view(np.random.default_rng(3).random(20_000), 64)
    assert fingerprint(windows) == fingerprint(windows.copy())


@pytest.mark.parametrize("dtype", ["u1", "f4", "c16", "V3"])
def test_of_long_arrays_only_samples_are_copied(dtype: str) -> None:
    kind = np.dtype(dtype)
    values = np.zeros(48_000_000, np.uint8).view(kind).reshape(2000, -1).T
    fingerprint(values)
    tracemalloc.start()
    try:
        fingerprint(values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("shape", [(224, 224, 3), (2240, 2240, 3)], ids=str)
def test_arrays_that_lie_otherwise_take_no_longer_than_a_copy_of_them(shape: tuple[int, ...]) -> None:
    image_ = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    views = [image_.transpose(2, 0, 1), image_.T, image_[:, ::-1], image_[1:-1, 1:-1]]
    copied_s = min(cpu_s(views[0].copy) for _ in range(5))
    for view in views:
        assert min(cpu_s(partial(fingerprint, view)) for _ in range(5)) < 2 * copied_s + 1e-3


def cpu_s(work: Callable[[], object]) -> float:
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


PATCHES, WIDTH = 1600, 1176  # of an image, as Qwen-VL cuts it: float32


def image() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((PATCHES, WIDTH), dtype=np.float32)


@pytest.mark.parametrize("patch", [0, 1, 777, PATCHES - 1])
@pytest.mark.parametrize("kind", ["array", "bytes", "tensor", "strided", "strided tensor", "half", "big-endian"])
def test_images_that_differ_in_one_patch_differ(kind: str, patch: int) -> None:
    one = image()
    other = one.copy()
    other[patch] = one[patch][::-1]
    assert fingerprint(of_kind(one, kind)) == fingerprint(of_kind(one.copy(), kind))
    assert fingerprint(of_kind(one, kind)) != fingerprint(of_kind(other, kind))


def of_kind(values: np.ndarray, kind: str) -> Any:
    if kind == "bytes":
        return values.tobytes()
    if kind == "strided":
        return np.asfortranarray(values)
    if kind == "big-endian":
        return values.astype(">f4")
    if kind == "array":
        return values
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(values)
    if kind == "strided tensor":
        wide = torch.zeros(PATCHES, 2 * WIDTH)
        wide[:, ::2] = tensor
        return wide[:, ::2]
    return tensor.half() if kind == "half" else tensor


@pytest.mark.parametrize("nbytes", [513, 4096, 5000, 65_535, 65_536])
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_short_buffers_are_read_whole(nbytes: int, where: float) -> None:
    one = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    other = one.copy()
    other[int(where * (nbytes - 1))] ^= 1
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one.tobytes()) != fingerprint(other.tobytes())


@pytest.mark.parametrize("nbytes", [66_000, 131_072, 200_001, 1 << 20, 7_526_400])
def test_long_buffers_are_read_everywhere(nbytes: int) -> None:
    one = np.random.default_rng(1).integers(0, 256, nbytes, dtype=np.uint8)
    before = fingerprint(one)
    for start in [*np.linspace(0, nbytes - 512, 9).astype(int), nbytes - 512]:
        other = one.copy()
        other[start : start + 512] ^= 255
        assert fingerprint(other) != before, f"{start} of {nbytes}"


@pytest.mark.parametrize("bit", [0, 1, 31, 62, 63])
def test_where_one_word_differs_the_fingerprint_does_for_certain(bit: int) -> None:
    """Also by its highest bit alone, which an even weight would lose."""
    words = np.arange(200, dtype=np.uint64)
    mark = fingerprint(words)
    for place in range(200):
        changed = words.copy()
        changed[place] ^= np.uint64(1 << bit)
        assert fingerprint(changed) != mark, place


def test_the_order_of_what_is_read_counts() -> None:
    one = image()
    other = one.copy()
    other[[3, 900]] = one[[900, 3]]
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("dtype", ["?", "i1", "<i2", ">i2", "<f4", "<i8", "<c16", "V3", "M8[s]", "S4", "S5"])
def test_arrays_of_every_type_count_by_their_elements(dtype: str) -> None:
    raw = np.random.default_rng(2).integers(0, 2, 100_000 * np.dtype(dtype).itemsize, dtype=np.uint8)
    one = raw.view(dtype)
    wide = np.zeros(200_000, dtype)
    wide[::2] = one
    assert fingerprint(one) == fingerprint(wide[::2]) == fingerprint(one.copy())
    other = one.copy()
    other[-1], other[-2] = one[0], one[1]
    other.view(np.uint8)[-1] ^= 1
    assert fingerprint(one) != fingerprint(other)
    wide[::2] = other
    assert fingerprint(other) == fingerprint(wide[::2])


def test_bytes_that_begin_at_an_odd_address() -> None:
    raw = np.random.default_rng(2).integers(0, 256, 300_001, dtype=np.uint8)
    assert fingerprint(memoryview(raw)[1:]) == fingerprint(memoryview(raw[1:].copy()))
    assert fingerprint(raw[1:]) == fingerprint(raw[1:].copy())


def test_tensors_of_every_type_count_by_their_elements() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(80_000) % 199
    for dtype in (torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64, torch.complex128):
        one = base.to(dtype).reshape(200, 400)
        wide = torch.zeros(200, 800, dtype=dtype)
        wide[:, ::2] = one
        other = one.clone()
        other[100] = ~other[100] if dtype is torch.bool else other[100] + 1
        assert fingerprint(one) == fingerprint(wide[:, ::2]) == fingerprint(one.T.contiguous().T), dtype
        assert fingerprint(one) != fingerprint(other), dtype
        wide[:, ::2] = other
        assert fingerprint(one) != fingerprint(wide[:, ::2]), dtype
    lazily = base.to(torch.complex64).add(3j).conj()
    assert fingerprint(lazily) == fingerprint(lazily.resolve_conj())
    assert fingerprint(lazily) != fingerprint(lazily + 1)
    assert fingerprint(torch.ones(50, 50).to_sparse()) == fingerprint(torch.ones(50, 50).to_sparse())


def test_sets_count_in_no_order() -> None:
    words = [f"word {n}" for n in range(100)]
    backwards: set[str] = set()
    for word in reversed(words):
        backwards.add(word)
    assert fingerprint(set(words)) == fingerprint(backwards)


def test_a_path_that_has_been_looked_at_is_the_same() -> None:
    used = pathlib.PurePosixPath("a/b")
    hash(used)
    assert fingerprint(used) == fingerprint(pathlib.PurePosixPath("a/b"))


def test_a_circle_is_no_trap() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert fingerprint(circle) == fingerprint(circle)


def test_classes_are_not_looked_into() -> None:
    class Big:
        table = tuple(range(100_000))

    assert approximate_nbytes(Big) < 100


def test_many_numbers_are_read_at_once() -> None:
    tokens = list(range(1_000_000))
    began_s = time.thread_time()
    fingerprint(tokens)
    assert time.thread_time() - began_s < 1


# Where payloads differ


def _request(**changed: Any) -> dict[str, Any]:
    return {"id": "r1", "pixels": np.arange(40_000), "sizes": [3, 4], "text": "a" * 1000, **changed}


@dataclass
class Open:
    x: int
    y: Any = None


@pytest.mark.parametrize(
    ("mine", "root", "says"),
    [
        (_request(), _request(id="r2"), "the first part that differs is ['id']"),
        (_request(), _request(pixels=np.arange(40_000)[::-1]), "the first part that differs is ['pixels']"),
        (_request(), _request(pixels=1, text=""), "the first part that differs is ['pixels']"),
        (_request(), _request(sizes=[3, 5]), "the first part that differs is ['sizes']"),
        (_request(), _request(text="a" * 999 + "b"), "the first part that differs is ['text']"),
        (_request(), _request(more=1), "the root's is not a dict of 4, as this rank's is"),
        (_request(), "r1", "the root's is not a dict of 4, as this rank's is"),
        ("r1", _request(), "the root's is not a str, as this rank's is"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "the first part that differs is ['a']"),
        ([1, "a", 3.0], [1, "b", 3.0], "the first part that differs is [1]"),
        ((1, [2]), (1, [3]), "the first part that differs is [1]"),
        (Open(1, "a"), Open(1, "b"), "its .y differs first"),
        (Slotted(1, "a"), Slotted(2, "a"), "its .x differs first"),
        (Item(modality=Modality.IMAGE, hash=1), Item(modality=Modality.IMAGE, hash=2), "its .hash differs first"),
        (Open(1), Slotted(1), "the root's is not a Open, as this rank's is"),
        (list(range(100)), [*range(99), 0], ""),  # many numbers are read at once
        (list(range(100)), ["a"] * 100, "the root's is not a list of 100, as this rank's is"),
        (dict.fromkeys(range(40)), {**dict.fromkeys(range(40)), 39: 1}, "its first 32 parts are the same"),
        (1, 2, ""),
        (np.arange(3), np.arange(4), ""),
    ],
)
def test_it_says_where_payloads_differ(mine: Any, root: Any, says: str) -> None:
    assert fingerprint(mine) != fingerprint(root)
    assert first_difference(mine, fingerprint(root)) == says


def test_it_stays_small_whatever_a_payload_has() -> None:
    assert len(fingerprint(1)) == 16
    assert len(fingerprint(dict.fromkeys(range(9999), "x"))) == 16 + 2 * 33


class Identity(int):
    """A number that is a type of its own."""


def test_to_weigh_a_payload_changes_nothing_of_how_it_is_read() -> None:
    before = fingerprint({"a": array.array("d", [1, 2]), "i": Identity(5)})
    approximate_nbytes([Identity(1), array.array("d", [1.0])])
    assert fingerprint({"a": array.array("d", [1, 2]), "i": Identity(5)}) == before
    assert fingerprint(Identity(5)) != fingerprint(Identity(6))
    assert fingerprint(array.array("d", [1, 2])) != fingerprint(array.array("d", [1, 3]))

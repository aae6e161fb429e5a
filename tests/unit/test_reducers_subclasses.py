"""Subclasses of `ndarray` come back as what they were: class, items, byte order, read-only flag and attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch
from lazycast.codec import pickling
from lazycast.codec.allowed import AllowCodec
from lazycast.errors import TrustError
from tests.unit.test_codec import encode, round_trip

LARGE = 1 << 18


class Tagged(np.ndarray):
    """As NumPy's guide to subclasses has it: an attribute, handed on by `__array_finalize__`."""

    unit: Any

    def __array_finalize__(self, obj: Any) -> None:
        self.unit = getattr(obj, "unit", "none")


class Slotted(np.ndarray):
    __slots__ = ("scale",)


class InItsOwnWay(np.ndarray):
    """As the usual recipe for pickling a subclass has it."""

    unit: Any

    def __array_finalize__(self, obj: Any) -> None:
        self.unit = getattr(obj, "unit", "none")

    def __reduce__(self) -> Any:
        make, arguments, state = super().__reduce__()
        return make, arguments, (*state, self.unit)

    def __setstate__(self, state: Any) -> None:
        self.unit = state[-1]
        super().__setstate__(state[:-1])


class ByArguments(np.ndarray):
    def __reduce__(self) -> Any:
        return _by_arguments, (np.asarray(self),)


def _by_arguments(array: np.ndarray) -> Any:
    return array.view(ByArguments)


def tagged(array: np.ndarray, kind: type = Tagged) -> Any:
    made: Any = array.view(kind)
    made.unit = ["m", {"of": "length"}]
    return made


def slotted(array: np.ndarray) -> Any:
    made: Any = array.view(Slotted)
    made.scale = 2.5
    return made


def masked(array: np.ndarray, **settings: Any) -> Any:
    made = np.ma.MaskedArray(array, mask=np.arange(array.size).reshape(array.shape) % 3 == 0, **settings)
    made.count_of = "an attribute"  # type: ignore[attr-defined]
    return made


STRUCTURE = np.dtype([("a", ">i4"), ("b", "<f8"), ("c", "S3")])
MAKE = {
    "tagged": tagged,
    "slotted": slotted,
    "matrix": lambda array: array.reshape(-1, 4).view(np.matrix),
    "masked": masked,
    "masked, hard": lambda array: masked(array, hard_mask=True, fill_value=7),
    "no mask": lambda array: np.ma.MaskedArray(array),
    "in its own way": lambda array: tagged(array, InItsOwnWay),
    "by arguments": lambda array: array.view(ByArguments),
}
ARRAYS = {
    "native": np.arange(12.0),
    "big-endian": np.arange(12, dtype=">f4"),
    "big-endian integers": np.arange(12, dtype=">i2"),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(24, dtype=">i4")[::2],
    "dates": np.arange(12).astype("M8[s]"),
}


def assert_same(back: Any, array: Any) -> None:
    assert type(back) is type(array)
    assert (back.dtype, back.dtype.str, back.shape) == (array.dtype, array.dtype.str, array.shape)
    assert back.flags.writeable == array.flags.writeable
    assert np.asarray(back).tobytes() == np.asarray(array).tobytes()
    for name in ("unit", "scale", "count_of", "fill_value", "hardmask", "filename", "mode", "offset"):
        assert str(getattr(back, name, None)) == str(getattr(array, name, None))  # text, since NaT is unlike itself
    if isinstance(array, np.ma.MaskedArray):
        assert (back.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
        assert np.array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(array))


@pytest.mark.parametrize("readonly", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize("layout", ARRAYS)
@pytest.mark.parametrize("name", MAKE)
def test_a_subclass_comes_back_as_it_was(name: str, layout: str, readonly: bool) -> None:
    array = MAKE[name](ARRAYS[layout].copy(order="K") if layout != "strided" else ARRAYS[layout])
    array.flags.writeable = not readonly
    a, b = round_trip([array, array])
    assert a is b
    assert_same(a, array)
    if not readonly:
        a[0] = a[-1]
        assert not np.shares_memory(a, array)


def test_a_masked_mean_stays_what_it_was() -> None:
    back = round_trip(np.ma.MaskedArray([1.0, 2.0, 3.0, 777.0], mask=[0, 0, 0, 1]))
    assert back.mean() == 2.0


def test_the_masked_constant_stays_the_only_one() -> None:
    assert round_trip([np.ma.masked])[0] is np.ma.masked


@pytest.mark.parametrize("mode", ["r", "r+", "c", "w+"])
def test_a_memory_map_keeps_byte_order_and_flag(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "numbers"
    np.arange(100, dtype=">f4").tofile(path)
    array = np.memmap(path, ">f4", mode, offset=0 if mode == "w+" else 40, shape=(90,))
    if mode == "w+":
        array[:] = np.arange(90)
    back = round_trip(array)
    assert_same(back, array)
    assert back.flags.writeable == (mode != "r")
    path.unlink()
    assert back.sum() == array.sum()


@pytest.mark.parametrize("readonly", [False, True], ids=["writable", "read-only"])
def test_a_recarray_keeps_its_fields_and_its_flag(readonly: bool) -> None:
    array = np.zeros(5, STRUCTURE).view(np.recarray)
    array.a = range(5)
    array.b = [0.5] * 5
    array.flags.writeable = not readonly
    back = round_trip(array)
    assert_same(back, array)
    assert back.a.tolist() == list(range(5))
    assert back[2].b == 0.5
    assert back.dtype.type is np.record


@pytest.mark.parametrize("name", [name for name in MAKE if name not in ("in its own way",)])
def test_a_subclass_travels_beside_the_stream_as_a_plain_array_does(name: str) -> None:
    array = MAKE[name](np.arange(LARGE, dtype=">f4"))
    body, layout = encode(array)
    assert layout.frames >= 1
    assert layout.stream_nbytes < 2000
    assert np.shares_memory(np.asarray(pickling.decode(body, layout)), np.frombuffer(body, np.uint8))


def test_arrays_of_objects_of_a_subclass_come_back() -> None:
    back = round_trip(tagged(np.array([1, "a", None], object)))
    assert (type(back), back.tolist(), back.unit) == (Tagged, [1, "a", None], ["m", {"of": "length"}])


def test_an_array_that_refers_to_itself_comes_back() -> None:
    array = tagged(np.arange(3))
    array.unit = [array]
    back = round_trip(array)
    assert back.unit[0] is back


def test_an_attribute_that_does_not_pickle_is_named() -> None:
    array = tagged(np.arange(3))
    array.unit = (i for i in ())
    with pytest.raises(pickling.CannotEncode, match=r"^dict\['x'\]\.unit \(a generator\) does not pickle"):
        pickling.encode({"x": array})


def test_a_class_defined_in_a_function_comes_back() -> None:
    class Local(np.ndarray):
        unit: Any

    array: Any = np.arange(5, dtype=">i4").view(Local)
    array.unit = "m"
    back = round_trip(array)
    assert (back.dtype.str, back.unit, back.tolist()) == (">i4", "m", array.tolist())


def test_with_allow_a_subclass_needs_its_name_and_comes_back_then() -> None:
    array = tagged(np.arange(5, dtype=">i4"))
    listed: list[str] = []
    for _ in range(4):
        allowing = AllowCodec(listed)
        encoded = allowing.encode(array)
        body = pickling.allocate(encoded.nbytes)
        encoded.write_into(body)
        try:
            assert_same(allowing.decode(body, encoded.layout), array)
            break
        except TrustError as exc:
            listed.append(str(exc).split("'")[1])
    names = ["lazycast.codec.reducers.numpy_arrays.view_as", f"{__name__}.Tagged"]
    assert listed == [*names, "lazycast.codec.reducers.numpy_arrays.set_attributes"]


@pytest.mark.parametrize("kind", [dict, np.float64, "text"])
def test_nothing_but_a_class_of_arrays_looks_at_an_array(kind: Any) -> None:
    from lazycast.codec.reducers import numpy_arrays

    with pytest.raises(TypeError, match="no class of arrays"):
        numpy_arrays.view_as(kind, np.arange(3))
    with pytest.raises(TypeError, match="no subclass of ndarray"):
        numpy_arrays.set_attributes(np.arange(3), {"a": 1})


def _look(items: list[Any]) -> list[Any]:
    return [(type(a).__name__, a.dtype.str, a.flags.writeable, getattr(a, "unit", None), a.sum().item()) for a in items]


def _rank() -> list[Any]:
    got = []
    for placement in ("every", "shard", "root"):
        with LazyBroadcast(_look, placement=placement) as lazy:
            arrays = [make(np.arange(12, dtype=">f4")) for make in (tagged, masked, MAKE["in its own way"])]
            arrays[0].flags.writeable = False
            got += [lazy.broadcast(arrays if lazy.is_root else None) for _ in range(3)]
    return got


@pytest.mark.usefixtures("warm_python")
def test_every_rank_sees_the_same_array() -> None:
    unit = ["m", {"of": "length"}]
    seen = [
        ("Tagged", ">f4", False, unit, 66.0),
        ("MaskedArray", ">f4", True, None, 48.0),
        ("InItsOwnWay", ">f4", True, unit, 66.0),
    ]
    assert launch(_rank, ranks=2) == [[seen] * 9] * 2

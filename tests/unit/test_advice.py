"""No advice of an error changes a value: what it says to send is tried here, and compared."""

from __future__ import annotations

import datetime
import decimal
import enum
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast.codec import data
from lazycast.codec.pickling import CannotEncode


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Number(int):
    def __int__(self) -> int:
        return -1


class Real(float):
    def __float__(self) -> float:
        return -1.0


class Complex(complex):
    def __complex__(self) -> complex:
        return -1j


class Bytes(bytes):
    def __bytes__(self) -> bytes:
        return b"others"


class Name(str, enum.Enum):
    RED = "red"


class Bits(enum.IntFlag):
    LOW = 1


class Point(tuple[int, ...]):
    __slots__ = ()


class Double(np.float64):
    pass


class Tagged(np.ndarray):
    pass


def advice(obj: object) -> str:
    with pytest.raises(CannotEncode) as caught:
        data.encode([obj])
    return str(caught.value).partition("trust='data' needs: ")[2]


HELD: dict[str, tuple[Any, Any]] = {
    "text": (Text("this"), "this"),
    "int": (Number(3), 3),
    "float": (Real(2.5), 2.5),
    "complex": (Complex(2 + 1j), 2 + 1j),
    "bytes": (Bytes(b"these"), b"these"),
    "enum": (Name.RED, "red"),
    "flag": (Bits.LOW, 1),
    "tuple": (Point((1, 2)), (1, 2)),
    "scalar": (Double(1.5), np.float64(1.5)),
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_to_be_sent_holds_the_same(name: str) -> None:
    it, held = HELD[name]
    found = re.search(r": send (it\.\w+|[\w.]+\(.*?\)(?:\[\(\)\])?),", advice(it))
    assert found is not None
    sent = eval(found[1], {"it": it, "numpy": np, "str": str, "bytes": bytes, "memoryview": memoryview})
    assert type(sent) is type(held)
    assert sent == held


def test_the_mask_of_an_array_is_not_dropped() -> None:
    text = advice(np.ma.MaskedArray([1.0, 3.0, 777.0], mask=[0, 0, 1]))
    assert "it.data, numpy.ma.getmaskarray(it) and it.fill_value" in text
    assert "asarray" not in text


def test_what_a_class_of_arrays_means_is_to_be_sent_too(tmp_path: Path) -> None:
    for array in (np.arange(4.0).reshape(2, 2).view(np.matrix), np.arange(3).view(Tagged)):
        assert "beside it what its class adds" in advice(array)
    np.arange(5).tofile(tmp_path / "numbers")
    assert advice(np.memmap(tmp_path / "numbers", int, "r")) == "a map of a file: send numpy.asarray(it)"


@pytest.mark.parametrize("item", [decimal.Decimal("0.1"), 1 << 70, 2**53 + 1], ids=["decimal", "long", "odd"])
def test_items_are_not_to_be_rounded(item: object) -> None:
    assert "that holds each of them exactly" in advice(np.array([item], object))


def test_an_image_keeps_its_palette() -> None:
    image = pytest.importorskip("PIL.Image").new("P", (2, 2))
    text = advice(image)
    assert "it.getpalette()" in text
    assert "asarray" not in text


def test_a_tensor_subclass_keeps_its_memory() -> None:
    torch = pytest.importorskip("torch")

    class Sub(torch.Tensor):  # type: ignore[misc,name-defined]
        pass

    for it in (torch.arange(3.0).as_subclass(Sub), torch.nn.Parameter(torch.arange(3.0))):
        assert "it.as_subclass(torch.Tensor)" in advice(it)
        assert type(it.as_subclass(torch.Tensor)) is torch.Tensor


def test_anything_else_is_to_be_made_again() -> None:
    for it in (datetime.datetime(2024, 1, 1), decimal.Decimal("0.1")):
        assert advice(it) == "send its fields as a dict, and make it again in the materializer"

"""Whether a payload is what it was: every byte counts, and what cannot be looked at is never taken for untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lazycast.codec.untouched import mark

PAYLOAD: dict[str, Any] = {"a": np.arange(100_003, dtype=np.uint8), "b": [1, 2.5, "x", None, b"abc" * 5], "c": (True,)}


def copied() -> dict[str, Any]:
    return {**PAYLOAD, "a": PAYLOAD["a"].copy(), "b": list(PAYLOAD["b"])}


def test_the_same_is_the_same() -> None:
    assert mark(PAYLOAD) == mark(copied()) is not None


@pytest.mark.parametrize("at", [0, 1, 7, 8, 4_099, 99_999, 100_002])
def test_one_byte_anywhere_is_seen(at: int) -> None:
    other = copied()
    other["a"][at] += 1
    assert mark(other) != mark(PAYLOAD)


def test_the_order_of_what_is_there_is_seen() -> None:
    other = copied()
    other["a"][:] = other["a"][::-1].copy()
    assert mark(other) != mark(PAYLOAD)


@pytest.mark.parametrize(
    "payload",
    [
        Image.new("RGB", (4, 4)),
        [object()],
        np.array([{}], object),
        np.zeros((4, 4))[:, ::2],
        list(range(20_000)),
    ],
    ids=["image", "object", "array of objects", "not contiguous", "too many items"],
)
def test_what_cannot_be_looked_at_has_no_mark(payload: Any) -> None:
    assert mark(payload) is None


def test_empty_arrays_have_one() -> None:
    assert mark([np.zeros(0), b"", np.zeros((3, 0), np.int16)]) is not None

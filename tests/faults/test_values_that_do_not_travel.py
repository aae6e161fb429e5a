"""With `auto`, a value that does not travel costs time: every rank makes its own, whatever was cast before."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch

pytestmark = pytest.mark.usefixtures("warm_python")


class Stays:
    """Pickles, and does not unpickle."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _refuse, (self.number,)


def _refuse(number: float) -> Any:
    raise ValueError("not here")


class Locked:
    """Does not pickle."""

    def __init__(self, number: float) -> None:
        self.number, self.lock = number, threading.Lock()


def _make(payload: Any) -> Any:
    number = float(payload[0])
    kind = {50: Stays, 51: Locked}.get(int(number))
    return number if kind is None else kind(number)


def _cast(size: int) -> list[str]:
    wrong = []
    with LazyBroadcast[Any, Any](_make) as lazy:
        for number in range(54):
            payload = np.full(size, number, np.float64) if lazy.is_root else None
            value = lazy.broadcast(payload)
            if getattr(value, "number", value) != number:
                wrong.append(f"{number}: {value!r}")
    return wrong


@pytest.mark.parametrize("size", [10, 1 << 18], ids=["small", "large"])
def test_every_rank_makes_what_does_not_travel(size: int) -> None:
    assert launch(_cast, ranks=2, args=(size,), timeout_s=200) == [[], []]


def _spoil(payload: Any) -> Any:
    number = float(payload[0])
    payload[0] = -1
    return Locked(number) if number == 50 else number


def _cast_spoiled() -> list[str]:
    told = []
    with LazyBroadcast[Any, Any](_spoil) as lazy:
        for number in range(54):
            payload = np.full(1 << 18, number, np.float64) if lazy.is_root else None
            try:
                value = lazy.broadcast(payload)
            except Exception as exc:
                told.append(f"{number}: {exc}")
            else:
                assert getattr(value, "number", value) == number
    return told


def test_a_payload_that_was_changed_is_not_sent_in_place_of_a_value() -> None:
    """Whatever `auto` chose by then: the right value, or, on all ranks, an error that says why there is none."""
    root, other = launch(_cast_spoiled, ranks=2, timeout_s=200)
    assert len(root) == len(other) <= 1
    for text in (*root, *other):
        assert text.startswith("50: ")
        assert "has changed its payload" in text

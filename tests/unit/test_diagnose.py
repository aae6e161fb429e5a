"""Naming what does not pickle."""

from __future__ import annotations

import array
import collections
import contextlib
import functools
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lazycast.codec import data, pickling
from lazycast.codec.diagnose import describe_unpicklable, find_unpicklable

LOCK = threading.Lock()


class Thing:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def method(self, x: object) -> object:
        return x


def _closure() -> Any:
    captured = {"deep": [LOCK]}

    def inner(x: object) -> object:
        return captured, x

    return inner


def _unfilled() -> Any:
    def inner() -> object:
        return LOCK, later

    if inner is None:
        later = 1
    return inner


CASES = {
    "dict": ({"a": 1, "b": LOCK}, "['b']"),
    "tuple": ((1, LOCK), "[1]"),
    "object": (Thing(a=Thing(b=LOCK)), ".a.b"),
    "partial's function": (functools.partial(Thing(lock=LOCK).method), ".func.__self__.lock"),
    "partial's argument": (functools.partial(print, 1, LOCK), ".args[1]"),
    "partial's keyword": (functools.partial(print, end=LOCK), ".keywords['end']"),
    "bound method": (Thing(lock=LOCK).method, ".__self__.lock"),
    "captured variable": (_closure(), "'s captured variable 'captured'['deep'][0]"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_way_to_the_part_is_named(name: str) -> None:
    obj, expected = CASES[name]
    way, part, error = find_unpicklable(obj)
    assert way == expected
    assert part is LOCK
    assert isinstance(error, TypeError)


def test_globals_of_a_function_that_travels_by_value_are_named() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "LOCK": LOCK}
    exec("def f(x): return LOCK, x", namespace)  # what a notebook's cell defines
    way, part, _ = find_unpicklable(namespace["f"])
    assert (way, part) == ("'s global 'LOCK'", LOCK)


def test_a_cell_that_is_not_filled_does_no_harm() -> None:
    text = describe_unpicklable(_unfilled(), ValueError("why"))
    assert "does not pickle" in text


def test_circles_end() -> None:
    a, b = Thing(), Thing(lock=LOCK)
    a.other, b.other = b, a  # type: ignore[attr-defined]
    way, part, _ = find_unpicklable([a])
    assert way == "[0].other.lock"
    assert part is LOCK


def test_a_part_below_the_deepest_level_still_gives_a_way() -> None:
    obj: object = LOCK
    for _ in range(30):
        obj = [obj]
    way, _, error = find_unpicklable(obj)
    assert way.startswith("[0][0]")
    assert error is not None


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Raises:
    def __reduce__(self) -> tuple[object, ...]:
        raise BrokenText


class BrokenDict:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no dict")

    def __reduce__(self) -> tuple[object, ...]:
        raise ArithmeticError


@pytest.mark.parametrize(
    "obj", [{NoRepr(): LOCK}, Raises(), [Raises()], BrokenDict()], ids=["repr", "str", "nested str", "dict"]
)
def test_describing_never_raises(obj: object) -> None:
    text = describe_unpicklable(obj, TypeError("why"))
    assert type(obj).__name__ in text
    assert "does not pickle" in text


def test_the_sentence_names_type_way_part_and_reason() -> None:
    error = find_unpicklable({"a": LOCK})[2]
    assert error is not None
    assert describe_unpicklable({"a": LOCK}, error) == f"dict['a'] (a lock) does not pickle: {error}"


def test_no_part_is_blamed_for_an_error_that_does_not_happen_again() -> None:
    text = describe_unpicklable({"a": LOCK}, OSError("the disk was full"))
    assert text == "dict (a dict) does not pickle: the disk was full"


class Helpful:
    """Says itself why it does not pickle, and has a part that does not either."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a connection: send its address, .address")


class FailsOnce:
    """What it raises is another thing when it is asked again, as with a file that has been read."""

    def __init__(self) -> None:
        self.asked = 0
        self.part = LOCK

    def __reduce__(self) -> tuple[object, ...]:
        self.asked += 1
        if self.asked == 1:
            raise OSError("the file is truncated")
        raise AttributeError("_im")


class OddState:
    def __getstate__(self) -> dict[str, object]:
        return {"made": threading.Lock()}


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part: object) -> None:
        self.part = part


FIRST = {
    "helpful": (
        [1, {"c": Helpful()}],
        r"list[1]['c'] (a Helpful) does not pickle: a connection: send its address, .address",
    ),
    "fails once": ({"x": FailsOnce()}, "dict (a dict) does not pickle: the file is truncated"),
    "made": ([OddState()], "list[0] (a OddState) does not pickle: cannot pickle '_thread.lock' object"),
    "slots": ((Slotted(LOCK),), "tuple[0].part (a lock) does not pickle: cannot pickle '_thread.lock' object"),
    "an array of objects": (
        np.array([[1, LOCK]], object),
        "ndarray[0, 1] (a lock) does not pickle: cannot pickle '_thread.lock' object",
    ),
    "a deque": (collections.deque([LOCK]), "deque[0] (a lock) does not pickle: cannot pickle '_thread.lock' object"),
    "the second of many": (
        [Thing(n=i) for i in range(2000)] + [LOCK],
        "list[2000] (a lock) does not pickle: cannot pickle '_thread.lock' object",
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_cause_is_the_message(name: str) -> None:
    obj, text = FIRST[name]
    with pytest.raises(pickling.CannotEncode) as caught:
        pickling.encode(obj)
    assert str(caught.value) == text


PARTS = 60  # of a MiB each


def _parts(how: str) -> list[Any]:
    if how == "arrays":
        return [np.ones(1 << 20, np.uint8) for _ in range(PARTS)]
    if how == "strided":
        return [np.ones((1 << 10, 1 << 11), np.uint8)[:, ::2] for _ in range(PARTS)]
    if how == "masked":
        return [np.ma.MaskedArray(np.ones(1 << 20, np.uint8)) for _ in range(PARTS)]
    if how == "bytes":
        return [bytes([i]) * (1 << 20) for i in range(PARTS)]
    return [array.array("B", bytes(1 << 20)) for _ in range(PARTS)]


def _peak_of(work: Callable[[], object]) -> int:
    """How many MiB of memory more are in use at most while something is done."""
    tracemalloc.start()
    try:
        with contextlib.suppress(pickling.CannotEncode):
            work()
        return tracemalloc.get_traced_memory()[1] >> 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("how", "mib"), [("arrays", 0), ("bytes", 0), ("masked", 0), ("strided", PARTS), ("array.array", PARTS)]
)
def test_naming_a_part_of_a_large_payload_takes_no_more_memory_than_encoding_it(how: str, mib: int) -> None:
    parts = _parts(how)
    good = _peak_of(lambda: pickling.encode(parts))
    bad = [{"deep": [parts, Thing(parts=parts, lock=LOCK)]}]
    with pytest.raises(pickling.CannotEncode, match=r"\['deep'\]\[1\]\.lock \(a lock\)"):
        pickling.encode(bad)
    assert mib <= good <= mib + 1
    assert _peak_of(lambda: pickling.encode(bad)) <= good + 2


@pytest.mark.parametrize("how", ["arrays", "strided", "bytes"])
def test_naming_what_is_not_data_in_a_large_payload_takes_no_more_memory_either(how: str) -> None:
    parts = _parts(how)
    good = _peak_of(lambda: data.encode(parts))
    bad = [{"deep": [parts, {"lock": LOCK}]}]
    with pytest.raises(pickling.CannotEncode, match=r"\['deep'\]\[1\]\['lock'\] \(a lock\)"):
        data.encode(bad)
    assert _peak_of(lambda: data.encode(bad)) <= good + 2

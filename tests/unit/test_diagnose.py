"""Naming what does not pickle."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from lazycast.diagnose import describe_unpicklable, find_unpicklable

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
    text = describe_unpicklable({"a": LOCK}, TypeError("unused"))
    assert text.startswith("dict['a'] (a lock) does not pickle: ")
    assert "lock" in text.rpartition(":")[2]

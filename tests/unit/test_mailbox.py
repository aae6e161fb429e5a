"""The mailbox against the simplest model there is: per key, the n-th ask meets the n-th arrival."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.mailbox import Mailbox
from lazycast.net.wire import Key

KEYS = st.sampled_from([None, "1", 1, b"1", "a"])
STEPS = st.lists(st.tuples(st.booleans(), KEYS), max_size=60)


@given(STEPS)
def test_per_key_the_nth_ask_meets_the_nth_arrival_whichever_comes_first(steps: list[tuple[bool, Key | None]]) -> None:
    box: Mailbox[tuple[str, Key | None, int], tuple[str, Key | None, int]] = Mailbox()
    asked: Counter[Key | None] = Counter()
    arrived: Counter[Key | None] = Counter()
    for is_ask, key in steps:
        mine, other = (asked, arrived) if is_ask else (arrived, asked)
        number = mine[key]
        mine[key] += 1
        got = box.ask(key, ("ask", key, number)) if is_ask else box.arrive(key, ("arrival", key, number))
        met = ("arrival" if is_ask else "ask", key, number) if other[key] > number else None
        assert got == met
    waiting = {key: asked[key] - arrived[key] for key in asked | arrived}
    assert Counter(key for _, key, _ in box.asks()) == Counter({k: n for k, n in waiting.items() if n > 0})
    assert Counter(key for _, key, _ in box.arrivals()) == Counter({k: -n for k, n in waiting.items() if n < 0})


@given(STEPS)
def test_clearing_asks_forgets_them_and_leaves_arrivals(steps: list[tuple[bool, Key | None]]) -> None:
    box: Mailbox[int, int] = Mailbox()
    for number, (is_ask, key) in enumerate(steps):
        if is_ask:
            box.ask(key, number)
        else:
            box.arrive(key, number)
    arrivals = box.arrivals()
    box.clear_asks()
    assert box.asks() == []
    assert box.arrivals() == arrivals


def test_taking_finds_what_waits_and_remembers_nothing() -> None:
    box: Mailbox[int, int] = Mailbox()
    assert box.take("k") is None
    assert box.asks() == []
    box.arrive("k", 1)
    box.arrive("k", 2)
    assert [box.take("k"), box.take("k"), box.take("k")] == [1, 2, None]


@pytest.mark.parametrize("ask_first", [True, False])
def test_a_key_that_has_been_served_leaves_nothing_behind(ask_first: bool) -> None:
    box: Mailbox[str, str] = Mailbox()
    for number in range(1000):
        steps = [box.ask, box.arrive] if ask_first else [box.arrive, box.ask]
        for step in steps:
            step(f"key {number}", "x")
    assert box.asks() == box.arrivals() == []
    assert not any(table for table in vars(box).values())


def test_things_wait_in_the_order_they_came() -> None:
    box: Mailbox[str, int] = Mailbox()
    for number in range(5):
        box.arrive("k", number)
    assert [box.ask("k", "a") for _ in range(6)] == [0, 1, 2, 3, 4, None]


@given(STEPS)
def test_what_is_taken_as_it_came_is_the_oldest_and_of_its_key_the_next(steps: list[tuple[bool, Key | None]]) -> None:
    box: Mailbox[str, tuple[int, Key | None]] = Mailbox()
    waiting: list[tuple[int, Key | None]] = []
    for number, (is_ask, key) in enumerate(steps):
        if is_ask:
            got = box.take(key)
            assert got == next((one for one in waiting if type(one[1]) is type(key) and one[1] == key), None)
            if got is not None:
                waiting.remove(got)
        else:
            box.arrive(key, (number, key))
            waiting.append((number, key))
        assert box.arrivals() == waiting
        assert box.first(keyed=False) == (waiting[0] if waiting else None)
        assert box.first(keyed=True) == next((one for one in waiting if one[1] is not None), None)

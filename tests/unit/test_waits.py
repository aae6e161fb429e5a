"""Waits: each stage comes due once, in time order; ended waits are forgotten."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.waits import Plan, Stage, Waits, plan

WARN, ASK, GIVE_UP = Stage.WARN, Stage.ASK, Stage.GIVE_UP


@pytest.mark.parametrize(
    ("timeout_s", "warn_after_s", "ask", "stages"),
    [
        (300, 30, True, [(29, ASK), (30, WARN), (299, ASK), (300, GIVE_UP)]),
        (300, 30, False, [(30, WARN), (300, GIVE_UP)]),
        (5, 30, True, [(4, ASK), (5, GIVE_UP)]),
        (5, 5, False, [(5, GIVE_UP)]),
        (10, 4, True, [(3.2, ASK), (4, WARN), (9, ASK), (10, GIVE_UP)]),
        (300, 299.5, True, [(298.5, ASK), (299, ASK), (299.5, WARN), (300, GIVE_UP)]),
    ],
)
def test_the_plan_of_a_wait(timeout_s: float, warn_after_s: float, ask: bool, stages: object) -> None:
    assert list(plan(timeout_s, warn_after_s, ask=ask)) == stages


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_every_plan_ends_with_giving_up_at_the_time_limit(timeout_s: float, warn_after_s: float, ask: bool) -> None:
    stages = plan(timeout_s, warn_after_s, ask=ask)
    assert list(stages) == sorted(stages)
    assert stages[-1] == (timeout_s, GIVE_UP)
    assert all(due_s >= 0.0 for due_s, _ in stages)


@dataclass(eq=False)
class Call:
    """What waits."""

    name: object
    since_s: float
    stages: Plan
    passed: int = 0
    next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.next_s = self.since_s + self.stages[0][0]


def _wait(name: object, *due: tuple[float, Stage], since_s: float = 0.0) -> Call:
    return Call(name, since_s, tuple((due_s - since_s, stage) for due_s, stage in due))


def _due(waits: Waits[Call], now_s: float) -> list[tuple[Stage, object]]:
    return [(stage, call.name) for stage, call in waits.due(now_s)]


def _names(waits: Waits[Call]) -> list[object]:
    return [call.name for call in waits.waiting()]


def test_stages_come_due_once_and_in_time_order_over_all_waits() -> None:
    waits: Waits[Call] = Waits()
    waits.add(_wait("a", (1, WARN), (5, GIVE_UP)))
    waits.add(_wait("b", (2, ASK), (3, GIVE_UP)))
    assert _due(waits, 0.5) == []
    assert _due(waits, 4) == [(WARN, "a"), (ASK, "b"), (GIVE_UP, "b")]
    assert _due(waits, 4) == []
    assert _due(waits, 5) == [(GIVE_UP, "a")], "a stage is due at its very time"
    assert waits.next_s > 5, "nothing is due any more"


def test_stages_of_one_time_come_in_the_order_they_were_added() -> None:
    waits: Waits[Call] = Waits()
    for name in "cab":
        waits.add(_wait(name, (1, GIVE_UP)))
    assert [name for _, name in _due(waits, 1)] == ["c", "a", "b"]


def test_add_tells_whether_the_next_due_time_moved_forward() -> None:
    waits: Waits[Call] = Waits()
    assert waits.add(_wait("first", (5, GIVE_UP)))
    assert not waits.add(_wait("later", (6, GIVE_UP)))
    assert not waits.add(_wait("same", (5, GIVE_UP)))
    earlier = _wait("earlier", (4, GIVE_UP))
    assert waits.add(earlier)
    waits.end(earlier)
    assert not waits.add(_wait("between", (4.5, GIVE_UP))), "one that has ended keeps its time"
    assert waits.next_s == 4
    assert _due(waits, 4) == []
    assert waits.next_s == 4.5


def test_an_ended_wait_is_never_due_and_lets_go_of_what_it_is_about() -> None:
    class Thing:
        pass

    waits: Waits[Call] = Waits()
    thing = Thing()
    gone = weakref.ref(thing)
    wait = Call(thing, 0.0, ((1.0, GIVE_UP),))
    waits.add(wait)
    waits.end(wait)
    del thing, wait
    gc.collect()
    assert gone() is None
    assert _due(waits, 10) == []
    assert len(waits) == 0


def test_ending_is_idempotent_and_fine_for_a_wait_that_was_never_added() -> None:
    waits: Waits[Call] = Waits()
    waits.add(_wait("a", (1, GIVE_UP)))
    b = _wait("b", (1, GIVE_UP))
    waits.end(b)
    assert len(waits) == 1
    waits.add(b2 := _wait("b", (1, GIVE_UP)))
    waits.end(b2)
    waits.end(b2)
    assert len(waits) == 1
    assert _names(waits) == ["a"]


def test_who_waits_is_told_oldest_first_and_once() -> None:
    waits: Waits[Call] = Waits()
    for name, since_s in (("young", 3.0), ("old", 1.0), ("middle", 2.0)):
        waits.add(_wait(name, (10, WARN), (20, ASK), (30, GIVE_UP), since_s=since_s))
    assert _names(waits) == ["old", "middle", "young"]
    waits.due(20)
    assert _names(waits) == ["old", "middle", "young"]


def test_with_thousands_that_end_one_after_another_it_looks_seldom() -> None:
    waits: Waits[Call] = Waits()
    for number in range(3000):
        waits.add(_wait(number, (1.0 + number * 1e-6, GIVE_UP)))
    looks, now_s, ended = 0, 1.0, 0
    while len(waits) > ended and looks < 100:
        ended += len(waits.due(now_s))
        now_s, looks = waits.next_s, looks + 1
    assert ended == 3000
    assert looks < 5


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.integers(0, 20), min_size=1, max_size=3)),
            st.tuples(st.just("end"), st.integers(0, 30)),
            st.tuples(st.just("time"), st.integers(0, 20)),
        ),
        max_size=60,
    )
)
def test_the_books_agree_with_a_plain_list(steps: list[tuple[str, object]]) -> None:
    waits: Waits[Call] = Waits()
    every: list[Call] = []
    left: list[tuple[float, int, int, Stage]] = []  # due, order of adding, wait, stage
    for what, arg in steps:
        if what == "add":
            number = len(every)
            due_s = sorted(zip(map(float, arg), Stage, strict=False))  # type: ignore[call-overload]
            every.append(Call(number, float(number), tuple((at_s - number, stage) for at_s, stage in due_s)))
            waits.add(every[-1])
            for time_s, stage in due_s:
                left.append((time_s, len(every) * 10 + len(left), number, stage))
        elif what == "end" and every:
            number = arg % len(every)  # type: ignore[operator]
            waits.end(every[number])
            left = [item for item in left if item[2] != number]
        elif what == "time":
            expected = sorted(item for item in left if item[0] <= arg)  # type: ignore[operator]
            left = [item for item in left if item not in expected]
            got = [(stage, call.name) for stage, call in waits.due(float(arg))]  # type: ignore[arg-type]
            assert sorted(got) == sorted((stage, number) for _, _, number, stage in expected)
            times = [next(n + t for t, s in every[n].stages if s is stage) for stage, n in got]  # type: ignore
            assert times == sorted(times)
            assert waits.next_s > arg, "what is due does not come again"  # type: ignore[operator]
        if left:
            # Whoever has just looked looks again a grain later at the earliest.
            assert waits.next_s <= min(item[0] for item in left) + 0.01

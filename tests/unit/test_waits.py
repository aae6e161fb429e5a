"""Waits: each stage comes due once, in time order; ended waits are forgotten."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.waits import Stage, Wait, Waits, plan

WARN, ASK, GIVE_UP = Stage.WARN, Stage.ASK, Stage.GIVE_UP


@pytest.mark.parametrize(
    ("timeout_s", "warn_after_s", "ask", "stages"),
    [
        (300, 30, True, [(129, ASK), (130, WARN), (399, ASK), (400, GIVE_UP)]),
        (300, 30, False, [(130, WARN), (400, GIVE_UP)]),
        (5, 30, True, [(104, ASK), (105, GIVE_UP)]),
        (5, 5, False, [(105, GIVE_UP)]),
        (10, 4, True, [(103.2, ASK), (104, WARN), (109, ASK), (110, GIVE_UP)]),
        (300, 299.5, True, [(398.5, ASK), (399, ASK), (399.5, WARN), (400, GIVE_UP)]),
    ],
)
def test_the_plan_of_a_wait(timeout_s: float, warn_after_s: float, ask: bool, stages: object) -> None:
    assert list(plan(100.0, timeout_s, warn_after_s, ask=ask)) == stages


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_every_plan_ends_with_giving_up_at_the_time_limit(timeout_s: float, warn_after_s: float, ask: bool) -> None:
    stages = plan(100.0, timeout_s, warn_after_s, ask=ask)
    assert list(stages) == sorted(stages)
    assert stages[-1] == (100.0 + timeout_s, GIVE_UP)
    assert Wait("x", 100.0, stages).deadline_s == 100.0 + timeout_s
    assert all(due_s >= 100.0 for due_s, _ in stages)


def _wait(name: str, *due: tuple[float, Stage], since_s: float = 0.0) -> Wait[str]:
    return Wait(name, since_s, due)


def test_stages_come_due_once_and_in_time_order_over_all_waits() -> None:
    waits: Waits[str] = Waits()
    waits.add(_wait("a", (1, WARN), (5, GIVE_UP)))
    waits.add(_wait("b", (2, ASK), (3, GIVE_UP)))
    assert waits.due(0.5) == []
    assert waits.due(4) == [(WARN, "a"), (ASK, "b"), (GIVE_UP, "b")]
    assert waits.due(4) == []
    assert waits.due(5) == [(GIVE_UP, "a")], "a stage is due at its very time"
    assert waits.next_s() is None


def test_stages_of_one_time_come_in_the_order_they_were_added() -> None:
    waits: Waits[str] = Waits()
    for name in "cab":
        waits.add(_wait(name, (1, GIVE_UP)))
    assert [what for _, what in waits.due(1)] == ["c", "a", "b"]


def test_add_tells_whether_the_next_due_time_moved_forward() -> None:
    waits: Waits[str] = Waits()
    assert waits.add(_wait("first", (5, GIVE_UP)))
    assert not waits.add(_wait("later", (6, GIVE_UP)))
    assert not waits.add(_wait("same", (5, GIVE_UP)))
    earlier = _wait("earlier", (4, GIVE_UP))
    assert waits.add(earlier)
    waits.end(earlier)
    assert not waits.add(_wait("between", (4.5, GIVE_UP))), "one that has ended keeps its time"
    assert waits.next_s() == 4
    assert waits.due(4) == []
    assert waits.next_s() == 4.5


def test_an_ended_wait_is_never_due_and_lets_go_of_what_it_is_about() -> None:
    class Thing:
        pass

    waits: Waits[Thing] = Waits()
    thing = Thing()
    gone = weakref.ref(thing)
    wait = Wait(thing, 0.0, [(1.0, GIVE_UP)])
    waits.add(wait)
    del thing
    waits.end(wait)
    gc.collect()
    assert gone() is None
    assert waits.due(10) == []
    assert len(waits) == 0


def test_ending_is_idempotent_and_fine_for_a_wait_that_was_never_added() -> None:
    waits: Waits[str] = Waits()
    waits.add(_wait("a", (1, GIVE_UP)))
    b = _wait("b", (1, GIVE_UP))
    waits.end(b)
    assert len(waits) == 1
    waits.add(b2 := _wait("b", (1, GIVE_UP)))
    waits.end(b2)
    waits.end(b2)
    assert len(waits) == 1
    assert waits.waiting() == ["a"]


def test_who_waits_is_told_oldest_first_and_once() -> None:
    waits: Waits[str] = Waits()
    for name, since_s in (("young", 3.0), ("old", 1.0), ("middle", 2.0)):
        waits.add(_wait(name, (10, WARN), (20, ASK), (30, GIVE_UP), since_s=since_s))
    assert waits.waiting() == ["old", "middle", "young"]
    waits.due(20)
    assert waits.waiting() == ["old", "middle", "young"]


def test_memory_follows_live_waits_however_many_have_ended() -> None:
    waits: Waits[int] = Waits()
    stay = [Wait(-n, 0.0, plan(0.0, 1e9, 1.0, ask=True)) for n in range(10)]
    for wait in stay:
        waits.add(wait)
    for number in range(5000):
        wait = Wait(number, 0.0, plan(float(number), 300.0, 30.0, ask=True))
        waits.add(wait)
        waits.end(wait)
        assert len(waits._heap) <= 6 * (len(waits) + 1) + 64 + 3
    assert len(waits) == 10
    assert len(waits.waiting()) == 10


def test_a_burst_that_has_ended_is_purged() -> None:
    waits: Waits[int] = Waits()
    burst = [Wait(n, 0.0, plan(0.0, 300.0, 30.0, ask=True)) for n in range(2000)]
    for wait in burst:
        waits.add(wait)
    for wait in burst:
        waits.end(wait)
    assert len(waits._heap) <= 64


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
    waits: Waits[int] = Waits()
    every: list[Wait[int]] = []
    left: list[tuple[float, int, int, Stage]] = []  # due, order of adding, wait, stage
    for what, arg in steps:
        if what == "add":
            number = len(every)
            due_s = sorted(zip(map(float, arg), Stage, strict=False))  # type: ignore[call-overload]
            every.append(Wait(number, float(number), due_s))
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
            got = waits.due(float(arg))  # type: ignore[arg-type]
            assert sorted(got) == sorted((stage, number) for _, _, number, stage in expected)
            times = [next(t for t, s in every[n].due_s if s is stage) for stage, n in got]
            assert times == sorted(times)
            next_s = waits.next_s()
            assert next_s is None or next_s > arg, "what is due does not come again"  # type: ignore[operator]
        if left:
            next_s = waits.next_s()
            assert next_s is not None
            assert next_s <= min(item[0] for item in left)

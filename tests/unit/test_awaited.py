"""What owners say of casts counts in whatever order it comes, and whoever says too much fills no memory."""

from __future__ import annotations

import itertools

import pytest

from lazycast.core.arrival import Arrival
from lazycast.core.awaited import Awaited
from lazycast.net.wire import Cast, Failure, MaterializerRef, Pass, Value

ME, FIRST, SECOND = 3, 1, 2
NOTHING = memoryview(b"")
GONE = Failure("closed", FIRST, "h", "has closed")


def cast(seq: int, owner: int = FIRST, *, replicated: bool = True) -> Arrival:
    ref = MaterializerRef("builtins:len", "len", ("builtins", "len"))
    mark = b"all have the payload" if replicated else None
    return Arrival(Cast(seq, None, "shard", True, ref, fingerprint=mark), NOTHING, owner=owner)


def value(seq: int, owner: int = FIRST, passes: int = 0) -> Value:
    return Value(owner, seq, passes)


@pytest.mark.parametrize("early", [True, False])
def test_a_value_is_given_to_its_cast_whichever_comes_first(early: bool) -> None:
    awaited, arrival = Awaited(ME), cast(1)
    steps = [lambda: awaited.hear(value(1), NOTHING, keep=True), lambda: awaited.admit(arrival)]
    for step in steps if early else reversed(steps):
        step()
    assert arrival.shared == (value(1), NOTHING)
    assert len(awaited) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_cast_that_was_left_to_another_leaves_nothing_behind_in_any_order(order: tuple[int, ...]) -> None:
    awaited, arrival = Awaited(ME), cast(1)
    steps = [
        lambda: awaited.admit(arrival),
        lambda: awaited.hear(Pass(FIRST, 1, SECOND, [FIRST]), NOTHING, keep=True),
        lambda: awaited.hear(value(1, SECOND, passes=1), NOTHING, keep=True),
    ]
    for step in order:
        steps[step]()
    assert arrival.shared == (value(1, SECOND, passes=1), NOTHING)
    assert len(awaited) == 0


@pytest.mark.parametrize("early", [True, False])
def test_a_value_of_another_than_the_owner_is_dropped(early: bool, caplog: pytest.LogCaptureFixture) -> None:
    awaited, arrival = Awaited(ME), cast(1, replicated=False)
    steps = [lambda: awaited.hear(value(1, SECOND), NOTHING, keep=True), lambda: awaited.admit(arrival)]
    for step in steps if early else reversed(steps):
        step()
    assert arrival.shared is None
    assert "rank 2 has sent a value of cast #1, which rank 1 owns" in caplog.text
    awaited.hear(value(1), NOTHING, keep=True)
    assert arrival.shared == (value(1), NOTHING)
    assert len(awaited) == 0


def test_a_value_that_came_before_its_owner_went_counts_though_the_cast_comes_last() -> None:
    awaited, arrival = Awaited(ME), cast(1)
    awaited.hear(Pass(FIRST, 1, SECOND, [FIRST]), NOTHING, keep=True)
    awaited.hear(value(1, SECOND, passes=1), NOTHING, keep=True)
    awaited.gone(SECOND, GONE)
    awaited.admit(arrival)
    assert arrival.shared == (value(1, SECOND, passes=1), NOTHING)
    assert len(awaited) == 0


@pytest.mark.parametrize("early", [True, False])
def test_a_value_that_is_sent_twice_counts_once(early: bool) -> None:
    awaited, arrival = Awaited(ME), cast(1)
    if not early:
        awaited.admit(arrival)
    for body in (NOTHING, memoryview(b"again")):
        awaited.hear(value(1), body, keep=early)
    if early:
        awaited.admit(arrival)
    assert arrival.shared == (value(1), NOTHING)
    assert len(awaited) == 0


def test_who_is_left_a_cast_that_it_has_given_up_is_told_so() -> None:
    awaited, arrival = Awaited(ME), cast(1)
    arrival.begun = True
    awaited.admit(arrival)
    assert awaited.hear(Pass(FIRST, 1, ME, [FIRST]), NOTHING, keep=True) == (arrival, True)
    assert len(awaited) == 0
    awaited.pass_on(arrival, SECOND)
    assert (arrival.owner, arrival.passed, arrival.passes) == (SECOND, [FIRST, ME], 2)
    assert awaited.lines() == ["#1: rank 2 materializes it"]


def test_what_a_rank_that_has_gone_was_to_make_fails() -> None:
    awaited, before, after = Awaited(ME), cast(1), cast(2)
    awaited.admit(before)
    assert awaited.gone(FIRST, GONE) == [before]
    awaited.admit(after)
    assert after.shared is not None
    assert after.shared[0].failure == GONE
    assert len(awaited) == 0


def test_what_a_rank_had_sent_before_it_went_still_counts() -> None:
    awaited, arrival = Awaited(ME), cast(1)
    awaited.hear(value(1), NOTHING, keep=True)
    awaited.gone(FIRST, GONE)
    awaited.admit(arrival)
    assert arrival.shared == (value(1), NOTHING)


def test_nothing_is_kept_for_casts_that_will_not_come() -> None:
    awaited = Awaited(ME)
    awaited.hear(value(1), NOTHING, keep=False)
    assert len(awaited) == 0


def test_a_rank_that_speaks_of_casts_that_never_come_fills_no_memory_and_harms_no_other() -> None:
    awaited, mine, theirs = Awaited(ME), cast(1, SECOND), cast(20_000)
    awaited.hear(value(1, SECOND), NOTHING, keep=True)
    for seq in range(2, 20_001):
        awaited.hear(value(seq), NOTHING, keep=True)
    assert len(awaited) == 4096 + 1
    for arrival in (mine, theirs):
        awaited.admit(arrival)
        assert arrival.shared is not None
    for seq in range(20_001, 20_101):
        awaited.hear(value(seq), NOTHING, keep=True)
    assert len(awaited) == 4096


def test_news_that_comes_after_this_rank_was_left_a_cast_is_not_kept() -> None:
    """That the second owner left it to this rank may be here before that the first had left it to the second."""
    awaited, arrival = Awaited(ME), cast(1)
    awaited.admit(arrival)
    awaited.hear(Pass(SECOND, 1, ME, [FIRST, SECOND]), NOTHING, keep=True)
    awaited.hear(Pass(FIRST, 1, SECOND, [FIRST]), NOTHING, keep=True)
    assert len(awaited) == 0
    assert arrival.owner == ME


def test_news_that_comes_after_this_rank_has_left_a_cast_to_another_is_counted_once() -> None:
    awaited, arrival = Awaited(ME), cast(1)
    awaited.admit(arrival)
    awaited.hear(Pass(SECOND, 1, ME, [FIRST, SECOND]), NOTHING, keep=True)
    awaited.pass_on(arrival, 4)
    awaited.hear(value(1, 4, passes=3), NOTHING, keep=True)
    assert len(awaited) == 1
    awaited.hear(Pass(FIRST, 1, SECOND, [FIRST]), NOTHING, keep=True)
    assert len(awaited) == 0
    assert arrival.shared == (value(1, 4, passes=3), NOTHING)


@pytest.mark.parametrize("early", [True, False])
def test_an_owner_that_declines_a_failed_cast_leaves_the_others_to_the_roots_word(early: bool) -> None:
    awaited, arrival = Awaited(ME), cast(1)
    declined = Value(FIRST, 1, failure=Failure("refused", FIRST, "h", "the cast had failed before its owner began"))
    steps = [lambda: awaited.hear(declined, NOTHING, keep=True), lambda: awaited.admit(arrival)]
    for step in steps if early else reversed(steps):
        step()
    assert arrival.declined
    assert arrival.shared is None
    assert not arrival.ready(ME)
    assert len(awaited) == 0

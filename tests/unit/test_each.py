"""`Each` by itself, the state of a cast that several make, and threads that make the parts of one value."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast import Each, Staged
from lazycast.core.arrival import Arrival
from lazycast.core.awaited import Awaited
from lazycast.core.items.alone import Crew
from lazycast.core.items.gathering import Gathering, Step
from lazycast.core.performer import Result
from lazycast.core.succession import sharers
from lazycast.here import here
from lazycast.materialize.each import Some, in_order, place_of_failure
from lazycast.materialize.materializers import name_of
from lazycast.materialize.staged import each_of, unusable
from lazycast.net.wire import Cast, Failure, MaterializerRef, Value

NOTHING = memoryview(b"")
BAD = Failure("materialize", 1, "h", "bad")
REFUSED = Failure("refused", 1, "h", "had failed")


def double(item: int) -> int:
    return 2 * item


async def later(item: int) -> int:
    return item


# The materializer


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_parts_are_what_a_loop_makes(items: list[int], parts: int) -> None:
    made = [Some(Each(double), part, parts)(items) for part in range(parts)]
    assert in_order([one for one in made if one is not None]) == [2 * item for item in items]
    assert Each(double, split=list, join=sum)(tuple(items)) == sum(2 * item for item in items)


@pytest.mark.parametrize(
    ("payload", "split", "said"),
    [
        ([1], iter, "split must return a sequence of items, such as a list, got list_iterator"),
        ([1], lambda _: itertools.count(), "got count; an iterator may not end"),
        ([1], set, "got set"),
        (b"jpeg", None, "without split the payload must be a sequence of items, such as a list, got bytes"),
        ({"a": 1}, None, "got dict"),
        (3, None, "got int"),
    ],
)
def test_what_is_no_sequence_is_refused(payload: Any, split: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        Each(double, split)(payload)
    assert said in str(caught.value)


def test_parts_that_were_made_of_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="has found 3 and 4 items in one payload"):
        in_order([(3, [0, 2]), (4, [1, 3])])


@pytest.mark.parametrize("part", ["fn", "split", "join"])
def test_each_part_must_be_callable(part: str) -> None:
    with pytest.raises(TypeError, match=f"Each: {part} must be callable, got int"):
        Each(**{"fn": double, part: 3})  # type: ignore[arg-type]


def test_no_part_may_be_async() -> None:
    assert unusable(Each(double)) is None
    for fn in (Each(later), Each(double, join=later), Staged(Each(later), print)):  # type: ignore[arg-type]
        assert "gives something to await" in (unusable(fn) or "")


def test_it_is_called_by_what_it_calls() -> None:
    assert name_of(Each(double)) == name_of(Some(Each(double))) == "Each(double)"
    assert each_of(Staged(each := Each(double), print)) is each
    assert each_of(double) is None


def test_the_item_is_known_once_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        Each(functools.partial(divmod, 1))([1, 2, 0])
    assert place_of_failure() == " at item 2"
    assert place_of_failure() == ""


def test_nothing_more_is_made_once_nobody_waits() -> None:
    made: list[int] = []

    def fn(item: int) -> None:
        made.append(item)
        here.unwanted = lambda: item == 1

    try:
        assert Each(fn, join=pytest.fail)(range(10)) is None
    finally:
        here.unwanted = None
    assert made == [0, 1]


# Who makes what


@given(st.integers(1, 6), st.sets(st.integers(0, 5)), st.integers(0, 20))
def test_sharers_are_the_owners_from_whose_turn_it_is(size: int, owners: set[int], turn: int) -> None:
    host = list(range(size))
    found = sharers(host, owners, turn)
    assert sorted(found) == (sorted(owners & set(host)) or host)
    assert sorted(sharers(host, None, turn)) == host
    assert sharers(host, None, turn)[0] == turn % size


def value(rank: int, part: int, failure: Failure | None = None) -> Value:
    return Value(rank, 7, stream_nbytes=1, failure=failure, part=part)


def test_a_value_is_made_once_all_parts_are_there() -> None:
    items = Gathering([1, 0, 2], rank=0)
    assert items.step(over=False, wanted=True) is Step.MAKE
    assert items.take_todo() == [1]
    items.busy = 1
    assert items.take(value(1, 0), NOTHING)
    assert not items.take(value(1, 0), NOTHING), "again"
    assert not items.take(value(1, 2), NOTHING), "another rank's"
    assert not items.take(value(1, 3), NOTHING), "there is no such part"
    assert items.take(value(2, 2), NOTHING)
    assert items.step(over=False, wanted=True) is None, "its own part is not there"
    items.done(1, Result((3, [])))
    assert items.step(over=False, wanted=True) is Step.END
    assert items.step(over=False, wanted=True) is None, "it ends once"
    assert not items.end()


def test_the_first_failure_ends_it_at_once() -> None:
    items = Gathering([1, 0, 0], rank=0)
    items.take_todo()
    items.busy = 2
    items.take(value(1, 0, BAD), NOTHING)
    assert items.step(over=True, wanted=True) is Step.END, "whatever is still being made"
    items.done(1, Result(failure=Failure("materialize", 0, "h", "later")))
    assert items.failure is BAD


def test_a_part_that_was_refused_is_waited_for_no_more_and_is_no_failure() -> None:
    items = Gathering([1, 0], rank=0)
    items.take_todo()
    items.take(value(1, 0, REFUSED), NOTHING)
    assert not items.awaits
    assert items.failure is None
    assert items.step(over=False, wanted=True) is None, "the root has the word"
    assert items.step(over=True, wanted=True) is Step.END


def test_nobody_waits_for_parts_that_nobody_wants() -> None:
    items = Gathering([1, 2], rank=0)
    assert items.step(over=False, wanted=True) is None
    assert items.step(over=False, wanted=False) is Step.END


def arrival(seq: int, makers: list[int]) -> Arrival:
    ref = MaterializerRef("x", "x")
    return Arrival(Cast(seq, None, "shard", True, ref, each=True), None, owner=0, items=Gathering(makers, 0))


def test_parts_that_come_before_their_cast_count() -> None:
    awaited = Awaited(0)
    awaited.hear(value(1, 0), NOTHING, keep=True)
    awaited.admit(cast := arrival(7, [1, 0, 2]))
    assert cast.items is not None
    assert cast.items.awaits
    assert awaited.hear(value(2, 2), NOTHING, keep=True) == (cast, False)
    assert not cast.items.awaits
    assert len(awaited) == 0, "a cast of which all was heard is off"


@pytest.mark.parametrize("first", [True, False])
def test_parts_of_a_rank_that_has_gone_fail(first: bool) -> None:
    awaited = Awaited(0)
    lost = Failure("lost", 2, "h", "gone")
    cast = arrival(7, [1, 0, 2])
    if first:
        assert awaited.gone(2, lost) == []
        awaited.admit(cast)
    else:
        awaited.admit(cast)
        assert awaited.gone(2, lost) == [cast]
    assert cast.items is not None
    assert cast.items.failure == lost
    awaited.hear(value(1, 0), NOTHING, keep=True)
    assert len(awaited) == 0


# Alone, with helpers


def test_a_crew_makes_each_part_once_on_whatever_threads() -> None:
    both = threading.Barrier(2, timeout=30)
    threads: dict[int, int] = {}

    def make(part: int, has_failed: Callable[[], bool]) -> int:
        assert not has_failed()
        if part < 2:
            both.wait()
        threads[part] = threading.get_ident()
        return part

    crew = Crew(6, make)
    helper = threading.Thread(target=crew.help)
    helper.start()
    assert crew.work() == list(range(6))
    helper.join(30)
    assert not helper.is_alive()
    assert len({threads[0], threads[1]}) == 2


def test_a_crew_begins_nothing_after_a_failure() -> None:
    begun: list[int] = []

    def make(part: int, has_failed: Callable[[], bool]) -> None:
        assert not has_failed()
        begun.append(part)
        raise LookupError(part)

    with pytest.raises(LookupError, match="0"):
        Crew(5, make).work()
    assert begun == [0]

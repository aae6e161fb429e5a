"""Who owns a cast: every rank of a host once, owners first, and everybody in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.succession import heir, succession

ORDERS = {
    "the first turn": ([0, 1, 2], None, 0, [0, 1, 2]),
    "the next": ([0, 1, 2], None, 1, [1, 2, 0]),
    "once round": ([0, 1, 2], None, 3, [0, 1, 2]),
    "ranks are not indices": ([4, 7], None, 1, [7, 4]),
    "one owner": ([0, 1, 2], [1], 5, [1, 0, 2]),
    "owners in the order of the host": ([0, 1, 2, 3], {3, 1}, 1, [3, 1, 0, 2]),
    "owners elsewhere do not count": ([4, 5], [0, 5], 0, [5, 4]),
    "a host without owners": ([4, 5], [0, 1], 1, [5, 4]),
    "a rank alone": ([6], None, 9, [6]),
    "a rank alone that is no owner": ([6], [0], 9, [6]),
}


@pytest.mark.parametrize(("host", "owners", "turn", "order"), ORDERS.values(), ids=ORDERS)
def test_the_order_of_a_host(host: list[int], owners: list[int] | None, turn: int, order: list[int]) -> None:
    assert succession(host, owners, turn) == order


HEIRS = {
    "nobody has passed": ([0, 1, 2], None, 1, [], 1),
    "the owner has": ([0, 1, 2], None, 1, [1], 2),
    "round the end": ([0, 1, 2], None, 1, [1, 2], 0),
    "in any order": ([0, 1, 2], None, 1, [2, 1], 0),
    "all have": ([0, 1, 2], None, 1, [1, 2, 0], None),
    "after the owners the others": ([0, 1, 2, 3], [2], 0, [2], 0),
    "other hosts' ranks do not matter": ([0, 1], None, 0, [7], 0),
}


@pytest.mark.parametrize(("host", "owners", "turn", "passed", "to"), HEIRS.values(), ids=HEIRS)
def test_the_heir_is_the_first_who_has_not_passed(
    host: list[int], owners: list[int] | None, turn: int, passed: list[int], to: int | None
) -> None:
    assert heir(host, owners, turn, passed) == to


hosts = st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True).map(sorted)
some_owners = st.none() | st.sets(st.integers(0, 99), min_size=1)
turns = st.integers(0, 10_000)


@given(hosts, some_owners, turns)
def test_every_rank_comes_once_and_owners_first(host: list[int], owners: set[int] | None, turn: int) -> None:
    order = succession(host, owners, turn)
    assert sorted(order) == host
    here = [rank for rank in host if owners is None or rank in owners]
    assert set(order[: len(here)]) == set(here)


@given(hosts, some_owners, turns)
def test_the_turn_is_fair(host: list[int], owners: set[int] | None, turn: int) -> None:
    here = [rank for rank in host if owners is None or rank in owners] or host
    rounds = 3
    first = Counter(succession(host, owners, turn + n)[0] for n in range(rounds * len(here)))
    assert first == dict.fromkeys(here, rounds)


@given(hosts, some_owners, turns)
def test_a_cast_that_is_passed_on_goes_through_the_succession_and_ends(
    host: list[int], owners: set[int] | None, turn: int
) -> None:
    passed: list[int] = []
    while (to := heir(host, owners, turn, passed)) is not None:
        passed.append(to)
    assert passed == succession(host, owners, turn)

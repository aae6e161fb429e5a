"""Which ranks form a host, from who has reached whom."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.net.host.hosts import hosts, leader


def reached(size: int, pairs: set[tuple[int, int]]) -> list[set[int]]:
    return [{low for low in range(rank) if (low, rank) in pairs} for rank in range(size)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, set[tuple[int, int]]]:
    size = draw(st.integers(1, 9))
    pairs = list(itertools.combinations(range(size), 2))
    return size, set(draw(st.lists(st.sampled_from(pairs), unique=True))) if pairs else set()


@given(graphs())
def test_every_rank_is_in_one_host_and_all_of_a_host_reach_each_other(graph: tuple[int, set[tuple[int, int]]]) -> None:
    size, pairs = graph
    found = hosts(reached(size, pairs))
    assert sorted(rank for host in found for rank in host) == list(range(size))
    assert all(host == sorted(host) for host in found)
    assert found == sorted(found)
    for host in found:
        assert set(itertools.combinations(host, 2)) <= pairs


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_machines_are_found_as_they_are(machine_of: list[int]) -> None:
    pairs = {(a, b) for a, b in itertools.combinations(range(len(machine_of)), 2) if machine_of[a] == machine_of[b]}
    expected = [[r for r, m in enumerate(machine_of) if m == machine] for machine in dict.fromkeys(machine_of)]
    assert hosts(reached(len(machine_of), pairs)) == expected


def test_reach_that_is_not_transitive_splits_a_host() -> None:
    assert hosts(reached(3, {(0, 1), (1, 2)})) == [[0, 1], [2]]
    assert hosts(reached(4, {(0, 1), (1, 2), (2, 3)})) == [[0, 1], [2, 3]]
    assert hosts(reached(4, {(0, 2), (1, 2), (0, 3), (2, 3), (1, 3)})) == [[0, 2, 3], [1]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_nobody_and_everybody(size: int) -> None:
    assert hosts([set() for _ in range(size)]) == [[rank] for rank in range(size)]
    assert hosts([set(range(rank)) for rank in range(size)]) == [list(range(size))]


def test_the_root_leads_its_own_host_and_the_lowest_rank_any_other() -> None:
    assert leader([2, 4, 7], root=4) == 4
    assert leader([2, 4, 7], root=3) == 2

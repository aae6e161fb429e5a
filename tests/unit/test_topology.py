"""The topology: for any hosts and any root it reaches every rank once, and its functions are each other's inverse."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.net import tree
from lazycast.net.topology import Topology, place

Hosts = list[list[int]]


@st.composite
def partitions(draw: st.DrawFn) -> Hosts:
    machine_of = draw(st.lists(st.integers(0, 7), min_size=1, max_size=16))
    return [[r for r, m in enumerate(machine_of) if m == machine] for machine in dict.fromkeys(machine_of)]


def everywhere(hosts: Hosts, root: int) -> list[Topology]:
    return [place(rank, root, hosts) for rank in range(sum(map(len, hosts)))]


def each_root(hosts: Hosts) -> list[list[Topology]]:
    return [everywhere(hosts, root) for root in range(sum(map(len, hosts)))]


@given(partitions())
def test_every_rank_is_reached_exactly_once_from_every_root(hosts: Hosts) -> None:
    for root, places in enumerate(each_root(hosts)):
        reached, queue = [], [root]
        while queue:
            rank = queue.pop(0)
            reached.append(rank)
            queue += places[rank].children
        assert sorted(reached) == list(range(len(places)))


@given(partitions())
def test_parent_is_the_inverse_of_children(hosts: Hosts) -> None:
    for root, places in enumerate(each_root(hosts)):
        for me in places:
            assert (me.parent is None) == (me.rank == root)
            assert me.parent is None or me.rank in places[me.parent].children
            assert all(places[child].parent == me.rank for child in me.children)


@given(partitions())
def test_next_hop_walks_from_the_root_to_the_target_and_is_none_elsewhere(hosts: Hosts) -> None:
    for root, places in enumerate(each_root(hosts)):
        for to in range(len(places)):
            walk = [root]
            while (hop := places[walk[-1]].next_hop(to)) is not None:
                assert hop in places[walk[-1]].children
                walk.append(hop)
                assert len(walk) <= len(places)
            assert walk[-1] == to
            assert set(walk[:-1]) == places[to].upstream
            for rank in set(range(len(places))) - set(walk[:-1]):
                assert places[rank].next_hop(to) is None


@given(partitions())
def test_only_leaders_talk_to_other_hosts(hosts: Hosts) -> None:
    for root, places in enumerate(each_root(hosts)):
        for host in hosts:
            leader = root if root in host else min(host)
            for rank in host:
                me = places[rank]
                assert me.host == tuple(host)
                if rank != leader:
                    assert (me.parent, me.children, me.remote_neighbours) == (leader, (), ())
                    continue
                assert me.local == tuple(r for r in host if r != leader)
                assert len(me.remote) <= tree.FANOUT
                assert not set(me.remote_neighbours) & set(host)
                for neighbour in me.remote_neighbours:
                    assert rank in places[neighbour].remote_neighbours
                if root not in host:
                    assert me.remote_neighbours[0] == me.parent
        used = sum(len(me.remote) for me in places)
        assert used == len(hosts) - 1  # each host but the root's is reached once


def test_two_hosts_of_two_as_an_example() -> None:
    places = everywhere([[0, 1], [2, 3]], root=1)
    assert places[1] == Topology(1, 1, ((0, 1), (2, 3)), None, (0,), (2,), frozenset())
    assert places[0] == Topology(0, 1, ((0, 1), (2, 3)), 1, (), (), frozenset({1}))
    assert places[2] == Topology(2, 1, ((0, 1), (2, 3)), 1, (3,), (), frozenset({1}))
    assert places[3] == Topology(3, 1, ((0, 1), (2, 3)), 2, (), (), frozenset({1, 2}))


@pytest.mark.parametrize("size", [1, 2, 13])
def test_one_host_is_a_star_and_hosts_of_one_are_the_tree(size: int) -> None:
    for root in range(size):
        for rank in range(size):
            star = place(rank, root, [list(range(size))])
            assert star.children == (tuple(r for r in range(size) if r != root) if rank == root else ())
            alone = place(rank, root, [[r] for r in range(size)])
            assert list(alone.children) == list(tree.children(rank, size=size, root=root))
            assert alone.parent == tree.parent(rank, size=size, root=root)


@pytest.mark.parametrize("root", [0, 3, 7])
def test_the_way_up_ends_at_the_root(root: int) -> None:
    hosts = [[0, 1], [2, 3], [4], [5, 6], [7, 8]]
    for rank in range(9):
        mine = place(rank, root, hosts)
        way = mine.way_up()
        assert set(way) == mine.upstream
        assert way[:1] == ([mine.parent] if mine.parent is not None else [])
        assert way[-1:] == ([root] if rank != root else [])


@given(partitions())
def test_below_is_who_has_a_rank_above_it(hosts: Hosts) -> None:
    for topologies in each_root(hosts):
        for asked in topologies:
            for rank in range(len(topologies)):
                assert asked.below(rank) == [r for host in hosts for r in host if rank in topologies[r].upstream]


def test_who_is_below_costs_little_in_a_large_group() -> None:
    """It is asked for each silent rank, with the lock held, and for each child at construction."""
    hosts = [range(8 * host, 8 * host + 8) for host in range(128)]
    began_s = time.process_time()
    root = place(0, 0, hosts)
    assert sum(len(root.below(rank)) for rank in range(1024)) > 1024
    assert time.process_time() - began_s < 2.0  # by asking for the place of each rank it took minutes

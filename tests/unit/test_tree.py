"""The tree: it reaches every rank once, and its functions are each other's inverse."""

from __future__ import annotations

import pytest

from lazycast.net import tree

SIZES = range(1, 41)


@pytest.mark.parametrize("fanout", [1, 2, 3, 7])
def test_every_rank_is_reached_exactly_once_from_every_root(fanout: int) -> None:
    for size, root in ((n, root) for n in SIZES for root in range(n)):
        reached, queue = [], [root]
        while queue:
            rank = queue.pop(0)
            reached.append(rank)
            queue += tree.children(rank, size=size, root=root, fanout=fanout)
        assert sorted(reached) == list(range(size)), (size, root)


def test_parent_is_the_inverse_of_children() -> None:
    for size, root in ((n, root) for n in SIZES for root in range(n)):
        for rank in range(size):
            below = tree.children(rank, size=size, root=root)
            assert len(below) <= tree.FANOUT, (size, root, rank)
            assert all(tree.parent(child, size=size, root=root) == rank for child in below), (size, root, rank)
            above = tree.parent(rank, size=size, root=root)
            assert (above is None) == (rank == root), (size, root, rank)
            assert above is None or rank in tree.children(above, size=size, root=root), (size, root, rank)


@pytest.mark.parametrize(("size", "hops"), [(1, 0), (2, 1), (4, 1), (5, 2), (13, 2), (14, 3), (40, 3), (64, 4)])
def test_depth_is_logarithmic(size: int, hops: int) -> None:
    for root in (0, size // 2, size - 1):
        assert max(len(tree.path(rank, size=size, root=root)) - 1 for rank in range(size)) == hops

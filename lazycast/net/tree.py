"""Who passes messages on to whom: a tree with the root on top. Plain functions on plain numbers."""

from __future__ import annotations

#: Children per rank. Up to four ranks everybody is one hop from the root; 64 ranks are four hops deep.
FANOUT = 3


def parent(rank: int, *, size: int, root: int, fanout: int = FANOUT) -> int | None:
    """Return the rank from which `rank` gets casts; None for the root."""
    place = (rank - root) % size
    return None if place == 0 else (root + (place - 1) // fanout) % size


def children(rank: int, *, size: int, root: int, fanout: int = FANOUT) -> list[int]:
    """Return the ranks to which `rank` passes casts on."""
    place = (rank - root) % size
    first = place * fanout + 1
    return [(root + child) % size for child in range(first, min(first + fanout, size))]


def path(rank: int, *, size: int, root: int, fanout: int = FANOUT) -> list[int]:
    """Return the ranks that a message from the root to `rank` meets, root first, `rank` last."""
    way = [rank]
    while (above := parent(way[0], size=size, root=root, fanout=fanout)) is not None:
        way.insert(0, above)
    return way

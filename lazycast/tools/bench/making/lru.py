"""What a memory of so many bytes should do with a sequence of requests: in plain Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple


class Remembered(NamedTuple):
    """What came of a sequence: how many were had again, what is kept at its end, and how many went to make room."""

    hits: int
    values: int
    nbytes: int
    evictions: int


def simulate(requests: Iterable[tuple[int, int]], most_nbytes: int) -> Remembered:
    """Take requests one after the other: each is (what is asked for, how many bytes its value takes)."""
    kept: OrderedDict[int, int] = OrderedDict()
    hits = evictions = 0
    for name, nbytes in requests:
        if name in kept:
            hits += 1
            kept.move_to_end(name)
            continue
        if nbytes > most_nbytes:
            continue
        kept[name] = nbytes
        while sum(kept.values()) > most_nbytes:
            kept.popitem(last=False)
            evictions += 1
    return Remembered(hits, len(kept), sum(kept.values()), evictions)

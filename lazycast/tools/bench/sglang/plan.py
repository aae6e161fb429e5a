"""What a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One run. Each round of a cell takes every way in turn, and begins with another one.

    Attributes:
        ranks: how many, one after the other.
        images: how many images a request has, one cell each.
        rounds: how many, beside a first one that does not count.
        burst: requests in a row, for throughput and processor time.
        requests: whether to measure the broadcast of whole requests too.
        splitting: whether to measure the mode of 0.5.9 in which a bundle of images becomes an item each.
    """

    ranks: tuple[int, ...] = (2, 4)
    images: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 7
    burst: int = 4
    requests: bool = True
    splitting: bool = True

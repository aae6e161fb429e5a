"""Which rank of a host materializes a cast for the others: plain functions, so all ranks come to the same answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def succession(host: Sequence[int], owners: Collection[int] | None, turn: int) -> list[int]:
    """Return the ranks of a host in the order in which they are asked to own a cast.

    The turn goes round the host's `owners` (all its ranks if there are none among them); the others come last, for
    casts that no owner will take.
    """
    eligible = [rank for rank in host if owners is None or rank in owners] or list(host)
    first = turn % len(eligible)
    return eligible[first:] + eligible[:first] + [rank for rank in host if rank not in eligible]


def sharers(host: Sequence[int], owners: Collection[int] | None, turn: int) -> list[int]:
    """Return the ranks of a host that share the items of a cast, in their order: its owners, from whose turn it is."""
    ranks = succession(host, owners, turn)
    return [rank for rank in ranks if owners is None or rank in owners] or ranks


def heir(host: Sequence[int], owners: Collection[int] | None, turn: int, passed: Collection[int]) -> int | None:
    """Return who owns a cast after the ranks in `passed` would not; None if nobody is left."""
    return next((rank for rank in succession(host, owners, turn) if rank not in passed), None)

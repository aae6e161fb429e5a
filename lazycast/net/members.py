"""Sets of ranks as bits of one number: rank 3 is bit 3. What many ranks have done is then booked in one step."""

from __future__ import annotations

from collections.abc import Iterable


def bits(ranks: Iterable[int]) -> int:
    """Return the set of these ranks."""
    found = 0
    for rank in ranks:
        found |= 1 << rank
    return found


def ranks_of(members: int) -> list[int]:
    """Return the ranks of a set, in order."""
    found = []
    while members:
        lowest = members & -members
        found.append(lowest.bit_length() - 1)
        members ^= lowest
    return found


def packed(members: int) -> bytes:
    """Return a set as it travels."""
    return members.to_bytes((members.bit_length() + 7) // 8, "little")


def unpacked(said: bytes) -> int:
    """Read what `packed` wrote."""
    return int.from_bytes(said, "little")

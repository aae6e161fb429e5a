"""Which ranks form a host: those that can hand each other descriptors. Plain functions on what every rank found out."""

from __future__ import annotations

from collections.abc import Sequence


def hosts(reached: Sequence[set[int]]) -> list[list[int]]:
    """Partition the ranks into hosts.

    Args:
        reached: for each rank, the lower ranks with which it has exchanged a descriptor.
    Returns: the hosts as ascending lists of ranks, by their lowest rank. All members of a host reach each other.
    """
    found: list[list[int]] = []
    for rank, below in enumerate(reached):
        for host in found:
            if below.issuperset(host):
                host.append(rank)
                break
        else:
            found.append([rank])
    return found


def leader(host: Sequence[int], root: int) -> int:
    """Return the rank of a host that talks to other hosts: the root on its own, else the lowest."""
    return root if root in host else host[0]

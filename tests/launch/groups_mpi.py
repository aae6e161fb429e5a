"""Run by mpirun with 4 ranks: communicators of a part of the ranks, in another order, and two of them at once.

Prints one line a rank, "rank N fine"; anything else is an error.
"""

from __future__ import annotations

import sys

from mpi4py import MPI

from lazycast import LazyBroadcast
from lazycast.backends.mpi import MPIBackend


def main() -> None:
    world = MPI.COMM_WORLD
    me = world.Get_rank()
    # Two groups, each in reverse order: rank 0 of a group has its highest world rank.
    group = world.Split(color=me % 2, key=-me)
    members = [r for r in range(3, -1, -1) if r % 2 == me % 2]
    for root in (0, 1):
        with LazyBroadcast(backend=MPIBackend(group) if root else group, root=root) as lazy:
            assert (lazy.rank, lazy.size) == (members.index(me), 2)
            assert lazy.broadcast(f"from {me}") == f"from {members[root]}"
    with LazyBroadcast(backend="mpi", root=3) as outer, LazyBroadcast(backend=MPIBackend(group)) as inner:
        assert outer.broadcast(me) == 3
        assert inner.broadcast(me) == members[0]
    group.Free()
    sys.stdout.write(f"rank {me} fine\n")


main()

"""Who passes messages on to whom: a tree of hosts with the root's on top, and on each host a star around its leader.

Plain functions on plain numbers; every rank computes the same from the same hosts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from lazycast.net import tree
from lazycast.net.host.hosts import leader
from lazycast.net.members import bits


@dataclass(frozen=True)
class Topology:
    """One rank's place.

    Attributes:
        parent: from whom this rank gets casts; None for the root.
        local: the ranks of its own host that it passes casts on to.
        remote: the leaders of other hosts that it passes casts on to.
        upstream: all ranks on the way from the root to this rank, this one left out.
    """

    rank: int
    root: int
    hosts: tuple[tuple[int, ...], ...]
    parent: int | None
    local: tuple[int, ...]
    remote: tuple[int, ...]
    upstream: frozenset[int]

    @property
    def children(self) -> tuple[int, ...]:
        return self.local + self.remote

    @property
    def remote_neighbours(self) -> tuple[int, ...]:
        """The leaders of other hosts with which this rank exchanges messages, parent first."""
        above = () if self.parent is None or self.parent in self.host else (self.parent,)
        return above + self.remote

    @functools.cached_property
    def host(self) -> tuple[int, ...]:
        """The ranks of this rank's host, in order."""
        return next(host for host in self.hosts if self.rank in host)

    def way_up(self) -> list[int]:
        """Return the ranks between this one and the root, the root last."""
        way, rank = [], self.parent
        while rank is not None:
            way.append(rank)
            rank = place(rank, self.root, self.hosts).parent
        return way

    def below(self, rank: int) -> list[int]:
        """Return the ranks that get their casts by way of `rank`."""
        return list(self._below.get(rank, ()))

    def members(self, rank: int) -> int:
        """Return `rank` and those below it, as a set of `net.members`."""
        return self._members.get(rank) or 1 << rank

    @functools.cached_property
    def _members(self) -> dict[int, int]:
        return {rank: bits((rank, *below)) for rank, below in self._below.items()}

    @functools.cached_property
    def _below(self) -> dict[int, list[int]]:
        """For all ranks at once: to ask for one after the other takes seconds where there are a thousand."""
        found: dict[int, list[int]] = {}
        leaders = [leader(host, self.root) for host in self.hosts]
        for index, host in enumerate(self.hosts):
            for rank in host:
                for above in _above(rank, index, leaders, self.root):
                    found.setdefault(above, []).append(rank)
        return found

    def next_hop(self, to: int) -> int | None:
        """Return the child on the way to `to`; None if `to` is not below this rank."""
        below = place(to, self.root, self.hosts).upstream | {to}
        return next((child for child in self.children if child in below), None)


def _above(rank: int, index: int, leaders: Sequence[int], root: int) -> list[int]:
    """Return the ranks from the root to `rank`, this one left out, which is on the host with this index."""
    way = [leaders[i] for i in tree.path(index, size=len(leaders), root=leaders.index(root))]
    return way[:-1] if rank == leaders[index] else way


def place(rank: int, root: int, hosts: Sequence[Sequence[int]]) -> Topology:
    """Return the place of `rank` in a group whose ranks lie on `hosts`."""
    leaders = [leader(host, root) for host in hosts]
    size, top = len(hosts), leaders.index(root)
    mine = next(index for index, host in enumerate(hosts) if rank in host)
    above = _above(rank, mine, leaders, root)
    if rank == leaders[mine]:
        local = tuple(r for r in hosts[mine] if r != rank)
        remote = tuple(leaders[index] for index in tree.children(mine, size=size, root=top))
    else:
        local, remote = (), ()
    return Topology(rank, root, tuple(map(tuple, hosts)), above[-1] if above else None, local, remote, frozenset(above))

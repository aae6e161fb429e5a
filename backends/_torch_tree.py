"""Gives what every rank has to every rank, along a tree of gloo's connections: up to rank 0, and down to all.

A rank and its children are a group of gloo of their own. So a rank is in two of them at most, and has as many
connections in a large group as in a small one.

Guarantees:

* Nobody is through with a round before all have come to it: what rank 0 sends down has something of everybody.
* Who dies, or lets go of its groups, is seen at once by the neighbours that wait for it. They raise and let go of
  theirs, and so on: all learn of it that wait.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from lazycast.net.tree import children, parent

_TAG = 3
_NBYTES = struct.Struct("<Q")
_FIRST_NBYTES = 8 << 10  # of all messages, since what they take is turns of gloo's thread: a second one has the rest


class Broken(Exception):
    """A round that came to nothing, as gloo tells, while this rank waited for that one."""

    def __init__(self, peer: int, why: str) -> None:
        super().__init__(why)
        self.peer = peer


class _Neighbour(NamedTuple):
    rank: int
    head: int  # of the group that both are in
    place: int  # in that group


class Tree:
    """One rank's part."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        # What keeps connections open, and nobody else keeps, tracebacks included: groups of gloo, by their heads, and
        # what is under way. They go when the failure has been said: others see it at once.
        self._groups: dict[int, Any] = {}
        self._works: list[Any] = []
        above = parent(rank, size=size, root=0)
        self._parent = [] if above is None else [_Neighbour(above, above, 0)]
        below = children(rank, size=size, root=0)
        self._children = [_Neighbour(child, rank, place) for place, child in enumerate(below, start=1)]

    def connect(self, store: Store, deadline_s: float) -> None:
        """Make this rank's groups: first its parent's, so that those above never wait for those below.

        Args:
            store: where the ranks tell each other their addresses.
            deadline_s: until when to wait for the others (monotonic seconds).
        Raises: RuntimeError, gloo's.
        Collective: every rank.
        """
        for head in [*(above.rank for above in self._parent), self._rank]:
            members = [head, *children(head, size=self._size, root=0)]
            if len(members) > 1:
                place = members.index(self._rank)
                self._groups[head] = _group(PrefixStore(f"gloo/{head}", store), place, len(members), deadline_s)

    def swap(self, blob: bytes, deadline_s: float) -> list[bytes]:
        """Return everybody's blob, in rank order.

        Raises: Broken.
        Collective: every rank. Blocking: until the deadline (monotonic seconds).
        """
        found = {self._rank: blob}
        for said in self._receive(self._children, deadline_s):
            found |= msgspec.msgpack.decode(said, type=dict[int, bytes])
        table = msgspec.msgpack.encode(found)
        self._send(self._parent, table, deadline_s)
        for table in self._receive(self._parent, deadline_s):
            found = msgspec.msgpack.decode(table, type=dict[int, bytes])
        self._send(self._children, table, deadline_s)
        return [found[rank] for rank in range(self._size)]

    def close(self) -> None:
        """Let go of all connections. Those that wait for this rank learn of it. Idempotent."""
        self._works.clear()
        self._groups.clear()

    def _send(self, to: Sequence[_Neighbour], data: bytes, deadline_s: float) -> None:
        data = _NBYTES.pack(len(data)) + data
        self._do("send", to, [bytearray(data[:_FIRST_NBYTES].ljust(_FIRST_NBYTES))] * len(to), deadline_s)
        if len(data) > _FIRST_NBYTES:
            self._do("send", to, [bytearray(data[_FIRST_NBYTES:])] * len(to), deadline_s)

    def _receive(self, of: Sequence[_Neighbour], deadline_s: float) -> list[bytes]:
        firsts = [bytearray(_FIRST_NBYTES) for _ in of]
        self._do("recv", of, firsts, deadline_s)
        sizes = [_NBYTES.size + _NBYTES.unpack_from(first)[0] for first in firsts]
        rests = [bytearray(max(0, size - _FIRST_NBYTES)) for size in sizes]
        longer = [place for place, rest in enumerate(rests) if rest]
        self._do("recv", [of[place] for place in longer], [rests[place] for place in longer], deadline_s)
        return [bytes(f + r)[_NBYTES.size : size] for f, r, size in zip(firsts, rests, sizes, strict=True)]

    def _do(self, what: str, neighbours: Sequence[_Neighbour], buffers: Sequence[bytearray], deadline_s: float) -> None:
        """Send a buffer to each, or receive one from each."""
        peer = self._rank
        try:
            # Each statement may raise, about the peer of the moment.
            for (peer, head, place), buffer in zip(neighbours, buffers, strict=True):  # noqa: B007
                tensor = torch.frombuffer(buffer, dtype=torch.uint8)
                self._works.append(getattr(self._groups[head], what)([tensor], place, _TAG))
            for number, (peer, _, _) in enumerate(neighbours):  # noqa: B007
                self._works[number].wait(until(deadline_s))
        except RuntimeError as exc:
            raise Broken(peer, str(exc).splitlines()[0]) from exc
        self._works.clear()


def _group(store: Store, place: int, size: int, deadline_s: float) -> Any:
    return dist.ProcessGroupGloo(store, place, size, until(deadline_s))


def until(deadline_s: float) -> timedelta:
    """Return how long it is to a moment, and a millisecond: torch drops what is less, and would come back before."""
    return timedelta(seconds=max(0.0, deadline_s - time.monotonic()) + 0.001)

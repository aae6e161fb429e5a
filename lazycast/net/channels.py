"""One mesh and one link for several trees: where every rank is a root, each root's casts have a tree of their own.

Guarantees:

* In front of each header two bytes say whose tree it belongs to; a header that names none of them is a lost peer.
* Within a tree the order of messages is that of the mesh and the link; between trees there is none.
* Who is a neighbour in any tree is connected. Its end is told in those trees where it is one, or on this host: in the
  others the news comes the way of all news, and overtakes nothing.
* What is closed in one tree is closed in fact when all have closed it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from lazycast.net.backend import Context, Link
from lazycast.net.host.arena import Slot
from lazycast.net.host.mesh import Mesh
from lazycast.net.relay import Relay
from lazycast.net.topology import Topology
from lazycast.net.wire import WireError

_ROOT = struct.Struct("<H")
#: How many roots two bytes can tell apart.
MOST_ROOTS = 1 << 16
_EMPTY = memoryview(b"")


class Channels:
    """See the module's text. A `Sink` and a `HostSink`, in front of the relays that it is given by `attach`.

    Args:
        trees: this rank's place in the tree of each root, by root.
    """

    def __init__(self, context: Context, mesh: Mesh | None, trees: Sequence[Topology]) -> None:
        self._context, self.trees = context, list(trees)
        self.mesh: Mesh | None = mesh
        self.link: Link | None = None
        self.neighbours = tuple(sorted({rank for tree in trees for rank in tree.remote_neighbours}))
        self._relays: list[Relay] = []
        self._left: dict[str, set[int]] = {"mesh": set(), "link": set(), "context": set()}  # who has closed what

    def context_of(self, root: int) -> Context:
        """Return what the relay of one root's tree connects with."""
        return _ContextOf(self, root)

    def mesh_of(self, root: int) -> Mesh | None:
        """Return what it sends and shares by on this host."""
        return None if self.mesh is None else _MeshOf(self, root)  # type: ignore[return-value]  # all that a relay uses

    def connect(
        self, relays: Sequence[Relay], *, timeout_s: float, name: str, turn: Callable[[], float | None]
    ) -> None:
        """Connect to the neighbours of all trees. Each relay's own `connect` follows. Collective."""
        self._relays = list(relays)
        heard_s: dict[int, float] = {}
        for relay in relays:
            relay.heard_s = heard_s  # whoever is heard in one tree lives
            relay.expect()
        if len(self.trees[0].hosts) > 1:
            self.link = self._context.connect(self.neighbours, self, timeout_s=timeout_s)
        if self.mesh is not None:
            self.mesh.start(self, name, turn)

    def give_up(self) -> None:
        """They could not all be connected: nobody waits for that any more, and the link, if there is one, is closed."""
        for relay in self._relays:
            relay.give_up()
        if self.link is not None:
            self.link.close(timeout_s=0.0)

    def is_last(self, what: str, root: int) -> bool:
        """Note that one tree has closed something; return whether all have, and this is the last."""
        left = self._left[what]
        new = root not in left
        left.add(root)
        return new and len(left) == len(self.trees)

    def close_context(self) -> None:
        self._context.close()

    # From this host, and from others

    def _relay(self, peer: int, header: bytes) -> Relay:
        root = _ROOT.unpack_from(header)[0] if len(header) > _ROOT.size else MOST_ROOTS
        if root >= len(self._relays):
            raise WireError(f"rank {peer} sent a header of {len(header)} bytes that belongs to no root's casts")
        return self._relays[root]

    def host_message(self, peer: int, header: bytes, body: memoryview) -> None:
        self._relay(peer, header).host_message(peer, header[_ROOT.size :], body)

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        return self._relay(peer, header).place(peer, header[_ROOT.size :], nbytes)

    def deliver(self, peer: int, header: bytes) -> None:
        self._relay(peer, header).deliver(peer, header[_ROOT.size :])

    def gone(self, peer: int, reason: str | None) -> None:
        for tree, relay in zip(self.trees, self._relays, strict=True):
            if peer in tree.host or peer in tree.remote_neighbours:
                relay.gone(peer, reason)


class _MeshOf:
    """The mesh as one tree sees it. What is not here is the mesh's own."""

    def __init__(self, channels: Channels, root: int) -> None:
        assert channels.mesh is not None
        self._channels, self._root, self._mesh = channels, root, channels.mesh
        self._tag = _ROOT.pack(root)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mesh, name)

    def start(self, sink: object, name: str, turn: object) -> None:
        """It has been started: see `Channels.connect`."""

    def share(self, peers: list[int], header: bytes, slot: Slot) -> None:
        self._mesh.share(peers, self._tag + header, slot)

    def send(self, rank: int, header: bytes, body: memoryview = _EMPTY) -> None:
        self._mesh.send(rank, self._tag + header, body)

    def send_all(self, ranks: Sequence[int], header: bytes, body: memoryview = _EMPTY) -> None:
        self._mesh.send_all(ranks, self._tag + header, body)

    def close(self, *, timeout_s: float) -> None:
        if self._channels.is_last("mesh", self._root):
            self._mesh.close(timeout_s=timeout_s)


class _LinkOf(Link):
    """The link as one tree sees it."""

    def __init__(self, channels: Channels, link: Link, root: int) -> None:
        self._channels, self._link, self._root = channels, link, root
        self._tag = _ROOT.pack(root)
        self.max_body_nbytes, self.kind = link.max_body_nbytes, link.kind

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        self._link.send(peer, self._tag + header, body)

    def close(self, *, timeout_s: float) -> None:
        if self._channels.is_last("link", self._root):
            self._link.close(timeout_s=timeout_s)

    def state(self) -> list[str]:
        return self._link.state()

    def close_after_fork(self) -> None:
        self._link.close_after_fork()


class _ContextOf(Context):
    """The context as one tree sees it, once all have been connected."""

    def __init__(self, channels: Channels, root: int) -> None:
        self._channels, self._root = channels, root

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        raise NotImplementedError("all has been exchanged before there are trees")

    def connect(self, neighbours: Sequence[int], sink: object, *, timeout_s: float) -> Link:
        link = self._channels.link
        assert link is not None, "the trees are connected together, first"
        return _LinkOf(self._channels, link, self._root)

    def close(self) -> None:
        if self._channels.is_last("context", self._root):
            self._channels.close_context()

"""Who may send what: a rank speaks for itself, and for those whose messages come by way of it. Plain data.

A rank that has been taken over, or has a defect, can so not speak in the name of another: its connection is ended, and
it is the one that everybody hears of as lost.
"""

from __future__ import annotations

from lazycast.topology import Topology
from lazycast.wire import AnyMessage, Relayed, Status, WireError


class Senders:
    """What one rank takes from each of its neighbours."""

    def __init__(self, topology: Topology) -> None:
        self._parent, self._host = topology.parent, frozenset(topology.host)
        self._reached = frozenset((topology.rank, *topology.below(topology.rank)))
        self._speaks_for = {child: frozenset((child, *topology.below(child))) for child in topology.children}

    def check(self, peer: int, message: AnyMessage) -> None:
        """Raise WireError if `message` cannot honestly come from `peer`."""
        route = message.route
        if route in ("down", "one"):
            if peer != self._parent:
                raise WireError(f"rank {peer} sent {_name(message)}, which only comes from rank {self._parent}")
            if isinstance(message, (Status, Relayed)) and message.to not in self._reached:
                raise WireError(f"rank {peer} sent {_name(message)} for rank {message.to}, which is not this way")
        elif route == "up":
            rank: int = message.rank  # type: ignore[union-attr]  # all that go up say whose they are
            if rank not in self._speaks_for.get(peer, ()):
                raise WireError(f"rank {peer} sent {_name(message)} in the name of rank {rank}")
        elif route == "host":
            rank = message.rank  # type: ignore[union-attr]
            if rank != peer or peer not in self._host:
                raise WireError(f"rank {peer} sent {_name(message)} in the name of rank {rank}")


def _name(message: AnyMessage) -> str:
    return f"a {type(message).__name__.lower()}"

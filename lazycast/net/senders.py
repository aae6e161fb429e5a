"""Who may send what: a rank speaks for itself, and for those whose messages come by way of it. Plain data.

A rank that has been taken over, or has a defect, can so not speak in the name of another: its connection is ended, and
it is the one that everybody hears of as lost.
"""

from __future__ import annotations

import msgspec

from lazycast.net.members import unpacked
from lazycast.net.topology import Topology
from lazycast.net.wire import ENDS, AnyMessage, Failure, Gone, Read, Relayed, Report, Status, Value, WireError


class Senders:
    """What one rank takes from each of its neighbours."""

    def __init__(self, topology: Topology) -> None:
        self._root, self._hosts = topology.root, topology.hosts
        self._parent, self._host = topology.parent, frozenset(topology.host)
        self._children = frozenset(topology.children)
        self._reached = frozenset((topology.rank, *topology.below(topology.rank)))
        self._speaks_for = {child: frozenset((child, *topology.below(child))) for child in topology.children}
        self._members = {child: topology.members(child) for child in topology.children}

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
            if isinstance(message, Report):
                if message.failure is not None:
                    self._check_report(peer, message, message.failure)
            elif isinstance(message, Read) and message.who and unpacked(message.who) & ~self._members[peer]:
                raise WireError(f"rank {peer} sent a read in the name of ranks that are not behind it")
        elif route == "host":
            rank = message.rank  # type: ignore[union-attr]
            if rank != peer or peer not in self._host:
                raise WireError(f"rank {peer} sent {_name(message)} in the name of rank {rank}")
            failure = message.failure if isinstance(message, Value) else None
            if failure is not None and (failure.kind in ENDS or not self._own_or_code(failure, rank)):
                raise WireError(f"rank {peer} sent a value with a failure in the name of rank {failure.rank}")
        elif isinstance(message, Gone):
            if peer != self._parent and peer not in self._children:
                raise WireError(f"rank {peer} sent {_name(message)}, which only comes from neighbours in the tree")
            if message.failure.rank != message.rank or message.failure.kind not in ("lost", "closed"):
                raise WireError(f"rank {peer} sent {_name(message)} of rank {message.rank} that makes no sense")

    def _check_report(self, peer: int, message: Report, failure: Failure) -> None:
        """A rank reports what went wrong with itself; and, second hand, with an owner of its host, or the root's code.

        What is said of others the root compares with their own word: see `lazycast.core.ledger`.
        """
        rank = message.rank
        if message.whole:
            raise WireError(f"rank {peer} sent a failure in the name of many")
        if failure.kind in ENDS if failure.rank == rank else not self._second_hand(failure, rank):
            raise WireError(f"rank {peer} sent a report that says of rank {failure.rank} what rank {rank} cannot know")

    def _own_or_code(self, failure: Failure, rank: int) -> bool:
        return failure.rank == rank or (failure.rank == self._root and failure.kind == "encode")

    def _second_hand(self, failure: Failure, rank: int) -> bool:
        on_host = any(rank in host and failure.rank in host for host in self._hosts)
        return on_host or self._own_or_code(failure, rank)

    def attributed(self, peer: int, message: Gone) -> Gone | None:
        """Return what the word of a neighbour on somebody's end is worth here; None for nothing.

        What comes from above is taken as it is, and so is what a child says of itself and those behind it. Of others it
        can only know what it has noticed itself: then the error says who says so. All else it has from us.
        """
        speaks_for = self._speaks_for.get(peer)
        if speaks_for is None or message.rank in speaks_for:
            return message
        failure = message.failure
        if failure.kind != "lost" or failure.loss is None or failure.loss.by not in speaks_for:
            return None
        says = f"; so says rank {failure.loss.by}"
        text = failure.message if failure.message.endswith(says) else failure.message + says  # we are not the first
        return msgspec.structs.replace(message, failure=msgspec.structs.replace(failure, message=text))


def _name(message: AnyMessage) -> str:
    return f"a {type(message).__name__.lower()}"

"""Moves messages through the topology: down to everybody, up to the root, or to everybody from anywhere.

Guarantees:

* Down messages leave in the order of `down`, and reach each rank in that order.
* On a host a body lies once, in the shared memory of the leader, and every rank gets a view of its own.
* Between hosts a body larger than the link takes travels in chunks, from memory to memory. A leader passes each on as
  it arrives, so a tree of any depth costs about one transfer, not one per level; the message is delivered, and shared
  with the ranks of the host, when its last byte is in.
* A header or body that does not make sense, or that its sender may not send, is a lost peer with a reason, never an
  exception that goes unseen.
* Whatever comes from a neighbour, a part of a body included, stamps when it was last heard.
* What ranks below say of casts is put together on its way up: see `upwards`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from lazycast.codec.pickling import allocate, copy
from lazycast.net import wire
from lazycast.net.backend import Context, Link
from lazycast.net.combining import Combining
from lazycast.net.host.arena import Slot
from lazycast.net.host.mesh import INLINE_NBYTES, Mesh
from lazycast.net.senders import Senders
from lazycast.net.topology import Topology
from lazycast.net.upwards import Upwards
from lazycast.net.wire import (
    AnyMessage,
    Beat,
    Cast,
    Chunk,
    Code,
    Drop,
    Gone,
    Pass,
    Query,
    Read,
    Relayed,
    Report,
    RollCall,
    Status,
    Value,
)

_EMPTY = memoryview(b"")


class Receiver(Protocol):
    """What the engine offers to its relay. Called from the threads of the link and the mesh."""

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        """Take a message that is meant for this rank; its body is this rank's own, to write to as well."""
        ...

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        """Learn that a rank sends no more: closed (None) or lost (why)."""
        ...

    @property
    def on_turn(self) -> Callable[[], float | None] | None:
        """Does what is due, on the thread that receives from this host; returns when to be called again, or None."""
        ...


class Room(msgspec.Struct, eq=False):
    """Memory for the body of a message: in the shared memory of the host, or on the heap if nobody shares it."""

    view: memoryview
    slot: Slot | None = None


@dataclass
class _Transfer:
    """A message whose body is on its way from another host."""

    message: Cast | Code
    room: Room | None  # None: there is no memory for it; it is passed on, and delivered as empty
    missing: int


class Relay:
    """This rank's place in the topology. A `Sink` and a `HostSink`. What sends may be called from any thread.

    Args:
        combining: of what ranks below this one say, if there are any and it is not the root.
        wake: see `Upwards`.
    """

    def __init__(
        self,
        topology: Topology,
        receiver: Receiver,
        mesh: Mesh | None,
        combining: Combining | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._topology = topology
        self.upwards = Upwards(combining, topology.rank, self._send_up, wake) if combining is not None else None
        self._receiver = receiver
        self._mesh = mesh
        #: Whether what comes from this host may go on to somebody.
        self._passes_on = topology.parent is not None and bool(topology.children)
        self._senders = Senders(topology)
        self._near = frozenset(mesh.peers if mesh is not None else ())
        self._link: Link | None = None
        self._connecting = False
        self._connected = threading.Event()  # or that it has failed
        self._transfers: dict[int, _Transfer] = {}  # by seq; touched only by the listener of the parent
        self._placed: dict[int, memoryview] = {}  # by peer: where the message under way puts its body
        self.heard_s: dict[int, float] = {}  # by neighbour: when something came from it last (monotonic)
        self.nbytes_sent = 0  # to other hosts
        self._nbytes_from_away = 0
        self.nbytes_from_host = 0
        self._count_lock = threading.Lock()
        self._down_lock = threading.Lock()
        self._leaving = False

    def expect(self) -> None:
        """Neighbours may be connected, and send, from now on; `connect` follows."""
        self._connecting = True

    def give_up(self) -> None:
        """`connect` does not follow, or has failed: nobody is to wait for it."""
        self._connected.set()

    def connect(self, context: Context, *, timeout_s: float, name: str) -> None:
        """Connect to the neighbours. Collective."""
        self.expect()
        try:
            if len(self._topology.hosts) > 1:
                self._link = context.connect(self._topology.remote_neighbours, self, timeout_s=timeout_s)
            else:
                context.close()  # all has been exchanged, and connections that nobody uses cost descriptors and threads
            if self._mesh is not None:
                self._mesh.start(self, f"lazycast-{name}-host", self._receiver.on_turn)
            for peer in (*self._near, *self.away):  # they have had their say while the group was constructed
                self.heard_s.setdefault(peer, time.monotonic())
        finally:
            self._connected.set()

    def close(self, *, timeout_s: float) -> None:
        self._leaving = True
        deadline_s = time.monotonic() + timeout_s
        if self._mesh is not None:
            self._mesh.close(timeout_s=timeout_s)
        if self._link is not None:
            self._link.close(timeout_s=max(0.0, deadline_s - time.monotonic()))

    def close_after_fork(self) -> None:
        if self._mesh is not None:
            self._mesh.close_after_fork()
        if self._link is not None:
            self._link.close_after_fork()

    def in_use(self) -> tuple[int, int]:
        """Return slots and bytes of this rank's shared memory that somebody holds."""
        return self._mesh.in_use() if self._mesh is not None else (0, 0)

    @property
    def nbytes_received(self) -> int:
        """Bytes from anybody, headers included."""
        return self._nbytes_from_away + self.nbytes_from_host

    def taken_nbytes(self) -> int:
        """Return the bytes of shared memory that this rank has taken, held or not."""
        return self._mesh.taken_nbytes() if self._mesh is not None else 0

    # Looking at neighbours

    @property
    def away(self) -> tuple[int, ...]:
        """The neighbours on other hosts."""
        return self._topology.remote_neighbours

    def link_to(self, rank: int) -> str | None:
        """Return in a word what connects this rank with a neighbour; None for a rank that is none."""
        if rank in self._near:
            return "unix socket"
        return self._link.kind if self._link is not None and rank in self.away else None

    def shortage(self) -> str:
        """Return what this rank lacked when it could not take a body, last."""
        return (self._mesh.shortage if self._mesh is not None else None) or "there was no memory for it"

    def is_near(self, rank: int | None) -> bool:
        """Whether messages of a rank come by the sockets of this host."""
        return rank in self._near

    def is_far(self, rank: int) -> bool:
        """Whether messages of a rank come by way of others."""
        return rank not in self._near and rank not in self.away

    def members(self, rank: int) -> int:
        """Return a rank and those below it, as a set of `net.members`."""
        return self._topology.members(rank)

    def heard_ago_s(self, rank: int) -> float | None:
        """Return since when nothing has come from a neighbour (seconds); None if nothing ever has."""
        heard_s = self.heard_s.get(rank)
        return None if heard_s is None else time.monotonic() - heard_s

    def pid_of(self, rank: int) -> int | None:
        """Return the process of a rank of this host, if it can be seen from here."""
        return self._mesh.pids.get(rank) if self._mesh is not None else None

    def state(self) -> list[str]:
        """Return lines on the links to all neighbours. Never blocks."""
        near = [f"unix socket: {line}" for line in self._mesh.state()] if self._mesh is not None else []
        link = self._link
        return near + ([f"{link.kind}: {line}" for line in link.state()] if link is not None else [])

    def leases(self) -> list[str] | None:
        """Return who holds which slots of this rank's shared memory. None if that is locked just now."""
        return self._mesh.leases() if self._mesh is not None else []

    # Sending

    def _send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        if not self._connected.is_set() and self._connecting:
            self._connected.wait()  # a neighbour may be connected, and send, before `connect` has returned here
        if peer in self._near:
            assert self._mesh is not None
            self._mesh.send(peer, header, body if body is not None else _EMPTY)
        elif self._link is not None:  # else it was never connected, and closes: there is nobody to tell
            self._link.send(peer, header, body)
            with self._count_lock:
                self.nbytes_sent += len(header) + (body.nbytes if body is not None else 0)

    def room(self, nbytes: int, *, host: bool = False) -> Room:
        """Return memory for a body that this rank will send down, or, with `host`, share with its host.

        Raises: MemoryError with the reason.
        """
        if self._mesh is None or nbytes <= INLINE_NBYTES or not (host or self._topology.local):
            return Room(allocate(nbytes))
        slot = self._mesh.allocate(nbytes)
        return Room(slot.view, slot)

    def down(self, message: AnyMessage, room: Room | None = None, header: bytes | None = None) -> None:
        """Root only: send to all other ranks. The room's bytes must not change any more.

        Args: `header`: the message encoded, by whoever had to know that it can be.
        """
        header = wire.encode(message) if header is None else header
        mesh, topology = self._mesh, self._topology
        with self._down_lock:  # nothing overtakes a body's later chunks: not even the verdict that its failure brings
            if mesh is not None and topology.local:
                if room is None or room.slot is None:
                    mesh.send_all(topology.local, header, _EMPTY if room is None else room.view)
                else:
                    mesh.share(list(topology.local), header, room.slot)
            if topology.remote:
                self._send_away(message, header, room.view if room is not None else _EMPTY)

    def share(self, message: Value | Pass, room: Room | None = None) -> None:
        """Send to the other ranks of this host. The room's bytes must not change any more."""
        if self._mesh is not None:
            self._send_near(self._mesh.peers, wire.encode(message), room, self._mesh)

    def _send_here(self, header: bytes, room: Room | None) -> None:
        """Send to the ranks of this host."""
        if self._mesh is not None and self._topology.local:
            self._send_near(self._topology.local, header, room, self._mesh)

    @staticmethod
    def _send_near(peers: Sequence[int], header: bytes, room: Room | None, mesh: Mesh) -> None:
        if room is not None and room.slot is not None:
            mesh.share(list(peers), header, room.slot)
        else:
            mesh.send_all(peers, header, room.view if room is not None else _EMPTY)

    def _send_away(self, message: AnyMessage, header: bytes, body: memoryview) -> None:
        """Send to the leaders of other hosts, in chunks."""
        remote = self._topology.remote
        if not remote:
            return
        assert self._link is not None
        limit = self._link.max_body_nbytes
        for peer in remote:
            self._send(peer, header, body[:limit])
        if isinstance(message, (Cast, Code)):
            for offset in range(limit, body.nbytes, limit):
                part = body[offset : offset + limit]
                chunk = wire.encode(Chunk(message.seq, offset, part.nbytes))
                for peer in remote:
                    self._send(peer, chunk, part)

    def up(self, message: AnyMessage) -> None:
        """Send towards the root; on the root itself, straight to the receiver."""
        parent, mesh = self._topology.parent, self._mesh
        if parent is None:
            self._receiver.on_message(message, _EMPTY)
        elif self.upwards is not None and isinstance(message, (Report, Read)):
            self.upwards.take(message)
        elif parent in self._near and mesh is not None:
            mesh.send_all((parent,), wire.encode(message))
        else:
            self._send(parent, wire.encode(message))

    def _send_up(self, header: bytes) -> None:
        parent = self._topology.parent
        assert parent is not None
        self._send(parent, header)

    def one(self, message: Status | Relayed) -> None:
        """Send to the rank the message names, which is below this one."""
        self._pass_to_one(message, wire.encode(message))

    def beat(self) -> None:
        """Give the neighbours on other hosts a sign of life."""
        header = wire.encode(Beat())
        for peer in self.away:
            self._send(peer, header)

    def flood(self, message: Gone) -> None:
        """Send to every neighbour; each passes it on if it is news."""
        header = wire.encode(message)
        above = () if self._topology.parent is None else (self._topology.parent,)
        for peer in above + self._topology.children:
            self._send(peer, header)

    def _pass_to_one(self, message: Status | Relayed, header: bytes) -> None:
        hop = self._topology.next_hop(message.to)
        if hop is not None:
            self._send(hop, header)

    # Receiving from this host

    def host_message(self, peer: int, header: bytes, body: memoryview) -> None:
        message = wire.decode(header)
        self._senders.check(peer, message)
        self.nbytes_from_host += len(header) + body.nbytes  # by one thread only
        self.heard_s[peer] = time.monotonic()
        if self._passes_on:
            self._pass_on(message, header, _EMPTY)
        if isinstance(message, Gone):
            self._tell_gone(peer, message)
        elif not self._passes_on or self._is_mine(message):
            self._receiver.on_message(message, body)

    def _tell_gone(self, peer: int, message: Gone) -> None:
        news = self._senders.attributed(peer, message)
        if news is not None:
            self._receiver.on_message(news, _EMPTY)

    # Receiving from other hosts: the Sink. One thread per peer at a time.

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        message = wire.decode(header)
        self._senders.check(peer, message)
        self.heard_s[peer] = time.monotonic()
        if isinstance(message, (Cast, Code)):
            try:
                room = self.room(message.nbytes)
            except MemoryError:
                room = None
            transfer = self._transfers[message.seq] = _Transfer(message, room, message.nbytes)
            offset = 0
        elif isinstance(message, Chunk) and message.seq in self._transfers:
            transfer, offset = self._transfers[message.seq], message.offset
            if offset != transfer.message.nbytes - transfer.missing:
                raise wire.WireError(
                    f"{message!r} does not follow what has arrived, {transfer.missing} bytes are missing"
                )
        else:
            raise wire.WireError(f"{nbytes} bytes of body for {type(message).__name__}")
        where = allocate(nbytes) if transfer.room is None else transfer.room.view[offset : offset + nbytes]
        if where.nbytes != nbytes:
            raise wire.WireError(f"{nbytes} bytes of body do not fit into {message!r}")
        self._placed[peer] = where
        return where

    def deliver(self, peer: int, header: bytes) -> None:
        message = wire.decode(header)
        self._senders.check(peer, message)
        body = self._placed.pop(peer, _EMPTY)
        self.heard_s[peer] = time.monotonic()
        with self._count_lock:
            self._nbytes_from_away += len(header) + body.nbytes
        if self.upwards is not None and isinstance(message, (Cast, Drop, RollCall)):
            self.upwards.look_at(message)
        self._pass_on(message, header, body)
        if isinstance(message, (Cast, Code, Chunk)):
            self._assemble(message, header, body.nbytes)
        elif isinstance(message, Gone):
            self._tell_gone(peer, message)
        elif self._is_mine(message) and not isinstance(message, Beat):
            self._receiver.on_message(message, _EMPTY)

    def gone(self, peer: int, reason: str | None) -> None:
        self._placed.pop(peer, None)
        if peer == self._topology.parent:
            self._transfers.clear()
        self._receiver.on_neighbour_gone(peer, reason)

    def _is_mine(self, message: AnyMessage) -> bool:
        if isinstance(message, (Status, Relayed)):
            return message.to == self._topology.rank
        return message.route != "up" or self._topology.parent is None

    def _pass_on(self, message: AnyMessage, header: bytes, body: memoryview) -> None:
        if message.route == "down":
            for child in self._topology.remote:
                self._send(child, header, body)
            if not isinstance(message, (Cast, Code, Chunk)):  # these go to the host when they are complete
                self._send_here(header, None)
        elif message.route == "up" and self._topology.parent is not None:
            if self.upwards is not None and isinstance(message, (Report, Read)):
                self.upwards.take(message)
            else:
                self._send(self._topology.parent, header)
            if isinstance(message, Query):  # whoever asks learns how far it has come
                self.one(Relayed(message.rank, message.token, self._topology.rank))
        elif isinstance(message, (Status, Relayed)):
            self._pass_to_one(message, header)
        # Gone is passed on by the engine, which knows whether it is news.

    def _assemble(self, message: Cast | Code | Chunk, header: bytes, nbytes: int) -> None:
        transfer = self._transfers.get(message.seq)
        if transfer is None:
            if isinstance(message, Chunk) or message.nbytes:
                raise wire.WireError(f"body of {message!r} did not arrive")
            self._send_here(header, None)
            self._receiver.on_message(message, _EMPTY)
            return
        transfer.missing -= nbytes
        if transfer.missing <= 0:
            del self._transfers[message.seq]
            if self._leaving:  # nobody here wants it any more; those behind this rank have had it passed on
                return
            body = self._own(transfer.room)
            self._send_here(header if transfer.message is message else wire.encode(transfer.message), transfer.room)
            self._receiver.on_message(transfer.message, body)

    def locate(self, body: memoryview) -> tuple[int, int, int] | None:
        """Return where a body lies in this rank's shared memory: see `Mesh.locate`. None if it does not."""
        return self._mesh.locate(body) if self._mesh is not None else None

    def own(self, room: Room) -> memoryview:
        """Return memory on which this rank's value may be made, of what it has shared with its host."""
        if room.slot is None:
            return room.view
        assert self._mesh is not None
        return self._mesh.own_view(room.slot)

    def _own(self, room: Room | None) -> memoryview:
        """Return memory on which this rank's value may be made."""
        if room is None:
            return _EMPTY
        if room.slot is not None:
            assert self._mesh is not None
            return self._mesh.own_view(room.slot)
        if not self._topology.children:
            return room.view
        # Others still read these bytes, and the value is the user's to write to.
        try:
            mine = allocate(room.view.nbytes)
        except MemoryError:
            return _EMPTY
        copy(mine, room.view)
        return mine

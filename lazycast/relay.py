"""Moves messages along the tree: down to everybody, up to the root, or to everybody from anywhere.

Guarantees:

* Down messages leave in the order of `down`, and reach each rank in that order.
* A body larger than the link takes travels in chunks. A relay passes each on as it arrives, so a tree of any depth
  costs about one transfer, not one per level; the message is delivered when its last byte is in.
* A body is received straight into the memory that the message's object will use.
* A header or body that does not make sense is a lost peer with a reason, never an exception that goes unseen.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from lazycast import tree, wire
from lazycast.backend import Context, Link
from lazycast.codec import allocate, copy
from lazycast.wire import AnyMessage, Cast, Chunk, Code, Gone, Status

_EMPTY = memoryview(b"")


class Receiver(Protocol):
    """What the engine offers to its relay. Called from the link's threads."""

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        """Take a message that is meant for this rank."""
        ...

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        """Learn that a neighbour sends no more: closed (None) or lost (why)."""
        ...


@dataclass
class _Transfer:
    """A message whose body is on its way."""

    message: Cast | Code
    body: memoryview | None  # None: there is no memory for it; it is passed on, and delivered as empty
    missing: int


class Relay:
    """This rank's place in the tree. A `lazycast.backend.Sink`. `down`, `up`, `flood` and `one`: any thread."""

    def __init__(self, rank: int, size: int, root: int, receiver: Receiver) -> None:
        self._rank, self._size, self._root = rank, size, root
        self._receiver = receiver
        self.parent = tree.parent(rank, size=size, root=root)
        self.children = tree.children(rank, size=size, root=root)
        self._link: Link | None = None
        self._connected = threading.Event()
        self._transfers: dict[int, _Transfer] = {}  # by seq; touched only by the listener of the parent
        self._placed: dict[int, memoryview] = {}  # by peer: where the message under way puts its body
        self.nbytes_sent = 0
        self.nbytes_received = 0
        self._count_lock = threading.Lock()
        self._down_lock = threading.Lock()

    @property
    def neighbours(self) -> list[int]:
        return [*([] if self.parent is None else [self.parent]), *self.children]

    def connect(self, context: Context, *, timeout_s: float) -> None:
        """Connect to the neighbours. Collective."""
        self._link = context.connect(self.neighbours, self, timeout_s=timeout_s)
        self._connected.set()

    def close(self, *, timeout_s: float) -> None:
        if self._link is not None:
            self._link.close(timeout_s=timeout_s)

    def close_after_fork(self) -> None:
        if self._link is not None:
            self._link.close_after_fork()

    # Sending

    def _send(self, peer: int, header: bytes, body: memoryview | None) -> None:
        self._connected.wait()  # a neighbour may be connected, and send, before `connect` has returned here
        assert self._link is not None
        self._link.send(peer, header, body)
        with self._count_lock:
            self.nbytes_sent += len(header) + (body.nbytes if body is not None else 0)

    def _send_all(self, peers: list[int], message: AnyMessage, body: memoryview | None = None) -> None:
        if peers:
            header = wire.encode(message)
            for peer in peers:
                self._send(peer, header, body)

    def down(self, message: AnyMessage, body: memoryview = _EMPTY) -> None:
        """Root only: send to all other ranks. `body` must not change while anybody holds it."""
        assert self._link is not None
        limit = self._link.max_body_nbytes
        with self._down_lock:  # nothing overtakes a body's later chunks: not even the verdict that its failure brings
            self._send_all(self.children, message, body[:limit])
            if isinstance(message, (Cast, Code)):
                for offset in range(limit, body.nbytes, limit):
                    part = body[offset : offset + limit]
                    self._send_all(self.children, Chunk(message.seq, offset, part.nbytes), part)

    def up(self, message: AnyMessage) -> None:
        """Send towards the root; on the root itself, straight to the receiver."""
        if self.parent is None:
            self._receiver.on_message(message, _EMPTY)
        else:
            self._send_all([self.parent], message)

    def one(self, message: Status) -> None:
        """Root only: send to the rank the message names."""
        self._pass_to_one(message)

    def flood(self, message: Gone, *, but: int | None = None) -> None:
        """Send to every neighbour except `but`; each passes it on."""
        self._send_all([peer for peer in self.neighbours if peer != but], message)

    def _pass_to_one(self, message: Status) -> None:
        hop = tree.next_hop(self._rank, message.to, size=self._size, root=self._root)
        if hop is not None:
            self._send_all([hop], message)

    # Receiving: the Sink. One thread per peer at a time.

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        message = wire.decode(header)
        if isinstance(message, (Cast, Code)):
            try:
                whole = allocate(message.nbytes)
            except MemoryError:
                whole = None
            transfer = self._transfers[message.seq] = _Transfer(message, whole, message.nbytes)
            where = allocate(nbytes) if transfer.body is None else transfer.body[:nbytes]
        elif isinstance(message, Chunk) and message.seq in self._transfers:
            transfer = self._transfers[message.seq]
            if message.offset != transfer.message.nbytes - transfer.missing:
                raise wire.WireError(
                    f"{message!r} does not follow what has arrived, {transfer.missing} bytes are missing"
                )
            end = message.offset + nbytes
            where = allocate(nbytes) if transfer.body is None else transfer.body[message.offset : end]
        else:
            raise wire.WireError(f"{nbytes} bytes of body for {type(message).__name__}")
        if where.nbytes != nbytes:
            raise wire.WireError(f"{nbytes} bytes of body do not fit into {message!r}")
        self._placed[peer] = where
        return where

    def deliver(self, peer: int, header: bytes) -> None:
        message = wire.decode(header)
        body = self._placed.pop(peer, _EMPTY)
        with self._count_lock:
            self.nbytes_received += len(header) + body.nbytes
        self._pass_on(peer, message, header, body)
        if isinstance(message, (Cast, Code, Chunk)):
            self._assemble(message, body.nbytes)
        elif self._is_mine(message):
            self._receiver.on_message(message, _EMPTY)

    def _own(self, body: memoryview | None) -> memoryview:
        """Return memory on which a value may be made."""
        if body is None or not self.children:
            return _EMPTY if body is None else body
        # The links to the children may still be reading `body`, and the value is the user's to write to.
        try:
            mine = allocate(body.nbytes)
        except MemoryError:
            return _EMPTY
        copy(mine, body)
        return mine

    def _is_mine(self, message: AnyMessage) -> bool:
        if isinstance(message, Status):
            return message.to == self._rank
        return message.route != "up" or self._rank == self._root

    def gone(self, peer: int, reason: str | None) -> None:
        self._placed.pop(peer, None)
        if peer == self.parent:
            self._transfers.clear()
        self._receiver.on_neighbour_gone(peer, reason)

    def _pass_on(self, peer: int, message: AnyMessage, header: bytes, body: memoryview) -> None:
        if message.route == "down":
            for child in self.children:
                self._send(child, header, body)
        elif message.route == "up" and self.parent is not None:
            self._send(self.parent, header, None)
        elif isinstance(message, Status):
            self._pass_to_one(message)
        # Gone is passed on by the engine, which knows whether it is news.

    def _assemble(self, message: Cast | Code | Chunk, nbytes: int) -> None:
        transfer = self._transfers.get(message.seq)
        if transfer is None:
            if isinstance(message, Chunk) or message.nbytes:
                raise wire.WireError(f"body of {message!r} did not arrive")
            self._receiver.on_message(message, _EMPTY)
            return
        transfer.missing -= nbytes
        if transfer.missing <= 0:
            del self._transfers[message.seq]
            self._receiver.on_message(transfer.message, self._own(transfer.body))

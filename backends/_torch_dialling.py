"""How ranks on different hosts get a TCP connection to each other, once they have exchanged where they listen.

The higher of two ranks calls the lower one, at all of its addresses at a time, and keeps the first that connects.

Guarantees:

* A caller proves that it knows the secrets of both ranks before anything else of it is read, and so does who answers.
  The secrets themselves do not travel here.
* Strangers hold nobody up: one that is silent waits beside the others, one that says something wrong is closed, and of
  too many that are silent the oldest is closed.
* `call` needs nothing of the ranks that are called but their kernels: whoever has returned from it is in the others'
  queues, dead or alive. So if all have, `finish` waits for no one but the frozen.
* One thread, no locks. All descriptors are close-on-exec, and `close` closes those that were not handed over.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Sequence

import msgspec

from . import _torch_addresses as addresses

_SECRET_NBYTES = PROOF_NBYTES = 32
_PAIR = struct.Struct("<II")  # who calls, who is called
_SILENT = 64  # how many callers may wait without having said who they are
_BACKLOG = 4096  # the kernel takes its own limit if that is less


class Card(msgspec.Struct):
    """What a rank tells the others: where it listens, and what a caller must know."""

    addresses: list[tuple[str, int]]
    secret: bytes
    machine: str  # see `_torch_addresses.machine`
    problem: str | None = None  # why it listens nowhere though it should
    refused: str | None = None  # what the system said when it made its sockets


def _socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


class Lost(Exception):
    """A neighbour went away while it was being connected."""

    def __init__(self, peer: int, why: str) -> None:
        super().__init__(why)
        self.peer = peer


class Late(Exception):
    """Neighbours that did not come in time."""

    def __init__(self, peers: Sequence[int]) -> None:
        super().__init__(peers)
        self.peers = peers


class Dialling:
    """One rank's part. `call`, and when all ranks have called, `finish`.

    Args:
        rank: this one.
        neighbours: the ranks that it is to be connected with.
        store_host: where the group's store is, if that is known.
    Raises: OSError if there are no descriptors left.
    """

    def __init__(self, rank: int, neighbours: Sequence[int], store_host: str | None) -> None:
        self._rank = rank
        self._lower = [peer for peer in neighbours if peer < rank]
        self._higher = [peer for peer in neighbours if peer > rank]
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._dials: dict[socket.socket, tuple[int, tuple[str, int]]] = {}  # that are not connected yet
        self._failed: dict[int, list[str]] = {
            peer: [] for peer in self._lower
        }  # the addresses that did not do, and why
        self._called: dict[int, socket.socket] = {}  # connected to; the answer has not come yet
        self._heard: dict[socket.socket, bytes] = {}  # of callers, and of who answers: what it has said of its proof
        self._connected: dict[int, socket.socket] = {}
        self._cards: list[Card] = []
        #: What the others need to know.
        self.card = Card([], secrets.token_bytes(_SECRET_NBYTES), addresses.machine())
        if self._higher:
            try:
                self._listen(store_host)
            except BaseException:
                self.close()
                raise

    def _listen(self, store_host: str | None) -> None:
        problem = None
        for host in addresses.candidates(store_host):
            self._listeners.append(sock := _socket(host))
            try:
                sock.bind((host, 0))
                sock.listen(_BACKLOG)
            except OSError as exc:
                problem = f"it cannot listen at {host}: {exc}"
                self._listeners.pop().close()
                continue
            self.card.addresses.append((host, sock.getsockname()[1]))
        if not self._listeners:
            self.card.problem = problem or addresses.why_none()

    def call(self, cards: Sequence[Card], deadline_s: float) -> dict[int, str]:
        """Call the lower neighbours.

        Args:
            cards: what all ranks have said, in rank order.
            deadline_s: until when to wait for their hosts to answer (monotonic seconds).
        Returns: for each that could not be reached, at which addresses it was tried, and why not.
        """
        self._cards = list(cards)
        for peer in self._lower:
            for address in addresses.worth_calling(cards[peer].addresses, cards[peer].machine, self.card.machine):
                self._dial(peer, address)
        while any(peer not in self._called and self._pending(peer) for peer in self._lower):
            if not self._turn(deadline_s):
                break
        for sock, (peer, address) in list(self._dials.items()):
            self._failed[peer].append(f"{addresses.text([address])} (no answer)")
            self._drop(sock)
        nowhere = "it listens at no address that can be reached from another machine"
        return {p: "; ".join(self._failed[p]) or nowhere for p in self._lower if p not in self._called}

    def finish(self, deadline_s: float) -> dict[int, socket.socket]:
        """Wait until the lower neighbours have answered and the higher ones have called.

        Returns: a socket for each neighbour; they are the caller's to close.
        Raises:
            Lost: a lower neighbour has ended, or is not who it should be.
            Late: some did not come until `deadline_s`.
        """
        for listener in self._listeners:  # not before all have called: no caller is silent now but strangers
            self._selector.register(listener, selectors.EVENT_READ)
        while missing := [peer for peer in (*self._lower, *self._higher) if peer not in self._connected]:
            if not self._turn(deadline_s):
                raise Late(missing)
        connected, self._connected = self._connected, {}
        return connected

    def close(self) -> None:
        """Listen no more, and hang up on those that were not handed over. Idempotent."""
        self._selector.close()
        for sock in (*self._listeners, *self._dials, *self._heard, *self._connected.values()):
            sock.close()
        self._listeners.clear()

    # One turn

    def _turn(self, deadline_s: float) -> bool:
        """Wait for something, and act on it; return whether there is time left."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        for key, _ in self._selector.select(left_s):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock in self._dials:
                self._connect(sock)
            elif sock in self._heard:
                self._hear(sock, key.data)
            elif sock in self._listeners:
                self._accept(sock)
            # else an earlier turn of this loop has closed it
        return True

    def _pending(self, peer: int) -> bool:
        return any(peer == other for other, _ in self._dials.values())

    # Calling

    def _dial(self, peer: int, address: tuple[str, int]) -> None:
        try:
            sock = _socket(address[0])
        except OSError as exc:
            if exc.errno != errno.EAFNOSUPPORT:
                raise
            self._failed[peer].append(f"{addresses.text([address])} ({exc.strerror})")
            return
        self._dials[sock] = (peer, address)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self._refused(sock, code)
            return
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _refused(self, sock: socket.socket, code: int) -> None:
        peer, address = self._dials[sock]
        self._failed[peer].append(f"{addresses.text([address])} ({os.strerror(code)})")
        self._drop(sock)

    def _connect(self, sock: socket.socket) -> None:
        """One of the addresses of a rank answers: say who calls, and let go of the others."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._refused(sock, code)
            return
        peer, _ = self._dials[sock]
        try:
            sock.send(self._proof(b"calls", self._rank, peer), socket.MSG_NOSIGNAL)  # a new socket has room for it
        except OSError as exc:
            self._refused(sock, exc.errno or errno.EIO)
            return
        del self._dials[sock]
        for other in [other for other, (its, _) in self._dials.items() if its == peer]:
            self._drop(other)
        self._called[peer] = sock
        self._heard[sock] = b""
        self._selector.modify(sock, selectors.EVENT_READ, peer)

    # Being called

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it has hung up
        sock.setblocking(False)
        silent = [other for other in self._heard if other not in self._called.values()]
        if len(silent) >= _SILENT:
            self._drop(silent[0])
        self._heard[sock] = b""
        self._selector.register(sock, selectors.EVENT_READ)

    def _hear(self, sock: socket.socket, peer: int | None) -> None:
        """Take what has come of a proof: of rank `peer`, or of a caller, who may be anybody."""
        try:
            said = sock.recv(PROOF_NBYTES - len(self._heard[sock]))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._hung_up(sock, peer, str(exc))
            return
        self._heard[sock] += said
        if not said:
            self._hung_up(sock, peer, "it hung up")
        elif len(self._heard[sock]) == PROOF_NBYTES:
            self._judge(sock, peer, self._heard[sock])

    def _hung_up(self, sock: socket.socket, peer: int | None, why: str) -> None:
        self._drop(sock)
        if peer is not None:
            raise Lost(peer, why)

    def _judge(self, sock: socket.socket, peer: int | None, said: bytes) -> None:
        """All of a proof is there."""
        if peer is not None:
            if not hmac.compare_digest(said, self._proof(b"answers", self._rank, peer)):
                self._hung_up(sock, peer, "who listens at its address is somebody else")
            self._keep(peer, sock)
            return
        for caller in self._higher:
            if hmac.compare_digest(said, self._proof(b"calls", caller, self._rank)) and caller not in self._connected:
                self._keep(caller, sock)
                with contextlib.suppress(OSError):  # it has died since it called: its connection tells of that
                    sock.send(self._proof(b"answers", caller, self._rank), socket.MSG_NOSIGNAL)
                return
        self._drop(sock)

    def _keep(self, peer: int, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._heard[sock]
        self._connected[peer] = sock

    def _drop(self, sock: socket.socket) -> None:
        """Close a socket that is of no use."""
        with contextlib.suppress(KeyError):  # it was refused at once
            self._selector.unregister(sock)
        self._dials.pop(sock, None)
        self._heard.pop(sock, None)
        sock.close()

    def _proof(self, what: bytes, caller: int, called: int) -> bytes:
        key = self._cards[caller].secret + self._cards[called].secret
        return hmac.digest(key, what + _PAIR.pack(caller, called), "sha256")

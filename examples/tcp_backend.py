"""A backend of one's own: ranks that reach each other by TCP, at addresses that are given. To copy from.

    $ python examples/tcp_backend.py

starts three ranks and checks the contract of backends; with "" for a word, the whole conformance suite.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from lazycast import BackendError, BackendUnavailableError, CastTimeoutError, launch, testing
from lazycast.net.backend import MAX_HEADER_NBYTES, Backend, Context, Link, Sink
from lazycast.net.threaded_link import Pipe, PipeClosed, ThreadedLink

PREFIX, PREFIX_NBYTES = "<IQ", 12  # before all that is sent: bytes of the header, bytes of the body
GREETING, GREETING_NBYTES = "<II", 8  # rank and number of the context
PROOF_NBYTES = 32
RETRY_S = 0.01
HELLO_S = 1.0  # for a caller to say who it is; a rank that is slower than that calls again
MAX_BLOB_NBYTES = 16 << 20  # of an exchange: what is larger comes from nobody who keeps the contract

#: A host that has lost power sends no end. Its connection is given up after so long (seconds); a frozen process is not,
#: since its kernel still answers.
DEAD_AFTER_S = 30

T = TypeVar("T")


def recv_into(sock: socket.socket, into: memoryview) -> None:
    while into.nbytes:
        n = sock.recv_into(into)
        if n == 0:
            raise ConnectionError("the connection was closed without a farewell")
        into = into[n:]


def recv(sock: socket.socket, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    recv_into(sock, memoryview(buffer))
    return bytes(buffer)


def prepare(sock: socket.socket) -> None:
    """Send small messages at once, and notice a host that is gone."""
    sock.settimeout(None)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_AFTER_S // 3),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_AFTER_S // 6),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * DEAD_AFTER_S),
    ):
        sock.setsockopt(level, option, value)


def missing_ranks(what: str, ranks: Collection[int], timeout_s: float) -> CastTimeoutError:
    said = ", ".join(map(str, sorted(ranks)))
    text = f"{what} over TCP: rank {said} did not come within {timeout_s:g} s"
    return CastTimeoutError(text, rank=min(ranks), missing=ranks)


class TCPPipe(Pipe):
    """Carries messages; knows nothing of threads, farewells or other ranks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, header: bytes, body: memoryview | None) -> None:
        rest = b"" if body is None else body
        try:
            self.sock.sendall(struct.pack(PREFIX, len(header), len(rest)) + header)
            if rest:
                self.sock.sendall(rest)
        except OSError as exc:
            raise PipeClosed(f"sending failed: {exc}") from exc

    def recv_header(self) -> tuple[bytes, int]:
        try:
            prefix = recv(self.sock, PREFIX_NBYTES)
            header_nbytes, body_nbytes = struct.unpack(PREFIX, prefix)
            if header_nbytes > MAX_HEADER_NBYTES:
                raise PipeClosed(f"no message: a header of {header_nbytes} bytes")
            return recv(self.sock, header_nbytes), body_nbytes
        except OSError as exc:
            raise PipeClosed(f"receiving failed: {exc}") from exc

    def recv_body(self, into: memoryview) -> None:
        try:
            recv_into(self.sock, into)
        except OSError as exc:
            raise PipeClosed(f"receiving failed: {exc}") from exc

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have gone first
            # wakes a thread that is blocked in recv or send; close() would not
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()

    def close_after_fork(self) -> None:
        self.sock.close()  # no shutdown: the connection is the parent's


class TCPContext(Context):
    """A connection to every other rank; `connect` keeps those to the neighbours."""

    def __init__(self, rank: int, size: int, socks: dict[int, socket.socket]) -> None:
        self.rank, self.size, self.socks = rank, size, socks

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        deadline_s = time.monotonic() + timeout_s
        self.with_each(lambda sock: sock.sendall(struct.pack(PREFIX, len(blob), 0) + blob), deadline_s, timeout_s)
        blobs = self.with_each(self.recv_blob, deadline_s, timeout_s) | {self.rank: blob}
        return [blobs[rank] for rank in range(self.size)]

    def with_each(self, action: Callable[[socket.socket], T], deadline_s: float, timeout_s: float) -> dict[int, T]:
        """Do something with the connection to every other rank; return what came of it."""
        done = {}
        for peer, sock in self.socks.items():
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            try:
                done[peer] = action(sock)
            except TimeoutError:
                continue  # all who are missing are to be named, and nobody else
            except OSError as exc:
                raise BackendError(f"rank {peer} went away during an exchange: {exc}", rank=peer) from exc
        if late := self.socks.keys() - done:
            raise missing_ranks("an exchange", late, timeout_s)
        return done

    @staticmethod
    def recv_blob(sock: socket.socket) -> bytes:
        nbytes, _ = struct.unpack(PREFIX, recv(sock, PREFIX_NBYTES))
        if nbytes > MAX_BLOB_NBYTES:
            raise ConnectionError(f"what arrived is no part of an exchange: {nbytes} bytes")
        return recv(sock, nbytes)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        pipes = {peer: TCPPipe(self.socks.pop(peer)) for peer in neighbours}
        self.close()  # the others were for exchanges only
        for pipe in pipes.values():
            prepare(pipe.sock)
        return ThreadedLink(pipes, sink, name=f"lazycast-tcp-{self.rank}", kind="TCP")

    def close(self) -> None:
        while self.socks:
            self.socks.popitem()[1].close()


class TCPBackend(Backend):
    """Connects ranks by TCP.

    Args:
        rank: this process's place, 0-based.
        addresses: "host:port" of every rank, in rank order. Each rank listens at its own.
        token: the same on all ranks, and nobody else's: whoever knows it may pose as a rank. It is never sent.
    """

    name = "tcp"

    def __init__(self, rank: int, addresses: Sequence[str], token: str) -> None:
        self.rank, self.size, self.token = rank, len(addresses), token.encode()
        self.addresses = [(host, int(port)) for host, _, port in (a.rpartition(":") for a in addresses)]
        self.numbers = itertools.count()  # contexts pair up by order
        self.came: dict[tuple[int, int], socket.socket] = {}  # by context and rank, also of a context that is to come
        try:
            self.listener = socket.create_server(self.addresses[rank], backlog=2 * self.size)
        except OSError as exc:
            raise BackendUnavailableError(f"the tcp backend cannot listen at {addresses[rank]}: {exc}") from exc

    @classmethod
    def from_environment(cls) -> TCPBackend:
        """Use TCP_RANK, TCP_ADDRESSES (with commas between them) and TCP_TOKEN."""
        try:
            addresses = os.environ["TCP_ADDRESSES"].split(",")
            return cls(int(os.environ["TCP_RANK"]), addresses, os.environ["TCP_TOKEN"])
        except KeyError as exc:
            names = "TCP_RANK, TCP_ADDRESSES and TCP_TOKEN"
            raise BackendUnavailableError(f"the tcp backend needs {names}; not set: {exc}") from exc

    def close(self) -> None:
        """Listen no more, once no context is to be opened."""
        self.listener.close()
        while self.came:
            self.came.popitem()[1].close()

    def open(self, *, timeout_s: float) -> Context:
        number, deadline_s = next(self.numbers), time.monotonic() + timeout_s
        socks: dict[int, socket.socket] = {}
        try:
            for peer in range(self.rank):
                socks[peer] = self.dial(peer, number, deadline_s, timeout_s)
            higher = range(self.rank + 1, self.size)
            while missing := [peer for peer in higher if (number, peer) not in self.came]:
                self.accept(missing, deadline_s, timeout_s)
            socks |= {peer: self.came.pop((number, peer)) for peer in higher}
        except BaseException:
            TCPContext(self.rank, self.size, socks).close()
            raise
        return TCPContext(self.rank, self.size, socks)

    def dial(self, peer: int, number: int, deadline_s: float, timeout_s: float) -> socket.socket:
        """Call a lower rank until it answers."""
        hint = ""
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise missing_ranks(f"opening a context{hint}", [peer], timeout_s)
            try:
                sock = socket.create_connection(self.addresses[peer], timeout=left_s)
            except OSError:  # its listener is not there yet
                time.sleep(min(RETRY_S, left_s))
                continue
            try:
                greeting, challenge = struct.pack(GREETING, self.rank, number), recv(sock, PROOF_NBYTES)
                proof = self.proof(b"caller", challenge, greeting)
                sock.sendall(greeting + proof)
                if hmac.compare_digest(recv(sock, PROOF_NBYTES), self.proof(b"listener", proof)):
                    return sock
                sock.close()
                address = "{}:{}".format(*self.addresses[peer])
                raise BackendError(f"who listens at {address} is not rank {peer}: it has another token", rank=peer)
            except TimeoutError:  # it is busy, or gone: the next turn finds that the time is over
                sock.close()
            except OSError:  # it did not hear us in time, or did not like what it heard
                sock.close()
                hint = f" (rank {peer} hung up: has it another token?)"
                time.sleep(min(RETRY_S, left_s))

    def accept(self, missing: Sequence[int], deadline_s: float, timeout_s: float) -> None:
        """Take one caller, if it is a rank: what others say is not looked at."""
        try:
            self.listener.settimeout(max(0.001, deadline_s - time.monotonic()))
            sock, _ = self.listener.accept()
        except TimeoutError as exc:
            raise missing_ranks("opening a context", missing, timeout_s) from exc
        challenge = secrets.token_bytes(PROOF_NBYTES)
        try:
            sock.settimeout(max(0.001, min(HELLO_S, deadline_s - time.monotonic())))
            sock.sendall(challenge)
            greeting, proof = recv(sock, GREETING_NBYTES), recv(sock, PROOF_NBYTES)
            if hmac.compare_digest(proof, self.proof(b"caller", challenge, greeting)):
                sock.sendall(self.proof(b"listener", proof))
                peer, number = struct.unpack(GREETING, greeting)
                self.came[number, peer] = sock
                return
        except OSError:  # it hung up or said nothing; if it was a rank, it calls again
            pass
        sock.close()

    def proof(self, *parts: bytes) -> bytes:
        return hmac.digest(self.token, b"".join(parts), "sha256")


def free_addresses(count: int) -> list[str]:
    """Return addresses of this machine where nobody listens now."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{sock.getsockname()[1]}" for sock in socks]


def check(addresses: Sequence[str], token: str, only: str) -> list[str]:
    """On one rank: run the conformance suite without shared memory, so that TCP carries all. Returns what failed."""
    with contextlib.closing(TCPBackend(int(os.environ["LAZYCAST_RANK"]), addresses, token)) as backend:
        outcomes: Iterable[testing.Outcome] = testing.run(backend, only=only, shared_memory=False)
    for outcome in outcomes:
        if backend.rank == 0:
            print("ok    " if outcome.passed else "FAILED", outcome.name, *filter(None, outcome.errors))
    return [outcome.name for outcome in outcomes if not outcome.passed]


if __name__ == "__main__":
    only = sys.argv[1] if len(sys.argv) > 1 else "contract."
    arguments = free_addresses(3), secrets.token_hex(), only
    failed = launch(check, ranks=3, args=arguments, timeout_s=600)
    sys.exit(1 if any(failed) else 0)

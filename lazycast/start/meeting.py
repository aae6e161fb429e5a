"""Finds out, at construction, with which ranks this one can share memory: by trying it.

Three exchanges among all ranks: addresses and secrets; who has dialled whom; who has passed whose test. What is tried
is what will be used: a packet socket that carries a descriptor of memory, which the other side reads.
"""

from __future__ import annotations

import array
import contextlib
import os
import secrets
import socket
import struct
import time

import msgspec

from lazycast.net.backend import Context
from lazycast.net.host.hosts import hosts
from lazycast.net.host.memory import create

#: Ranks with different labels in this environment variable share no memory though they could: for NUMA nodes, tests.
LABEL = "LAZYCAST_HOST"

_CREDENTIALS = struct.Struct("3i")
_HELLO = struct.Struct("<I32s")
_TEST_NBYTES = 4096
_ACCEPT_S = 5.0


class Host(msgspec.Struct):
    """What came of it: the ranks of this host in order, a socket to each of the others, and all hosts."""

    ranks: list[int]
    sockets: dict[int, socket.socket]
    hosts: list[list[int]]
    reason: str | None  # why this rank shares nothing, if so
    reached: list[set[int]]  # for each rank, the lower ones with which it has exchanged a descriptor
    refused: dict[int, str]  # the lower ranks that this one could not reach, and why not


class _Card(msgspec.Struct):
    """What a rank tells the others: where it listens and what callers must know; or why it does not."""

    address: str | None
    secret: bytes = b""
    reason: str | None = None
    label: str = ""


def meet(context: Context, rank: int, size: int, *, wanted: bool, timeout_s: float) -> Host:
    """Group the ranks into hosts and connect this one with those of its own.

    Collective: every rank, also those that want no shared memory. Blocking: up to `timeout_s` per exchange.
    """
    listener, card = _listen() if wanted else (None, _Card(None, reason="shared_memory=False"))
    sockets: dict[int, socket.socket] = {}
    refused: dict[int, str] = {}
    try:
        blobs = context.exchange(msgspec.msgpack.encode(card), timeout_s=timeout_s)
        cards = [msgspec.msgpack.decode(blob, type=_Card) for blob in blobs]
        for peer in range(rank):
            try:
                sockets[peer] = _dial(cards[peer], card, rank)
            except OSError as exc:
                refused[peer] = str(exc)
        dialled = _exchange_ranks(context, sockets, timeout_s)
        callers = {r for r in range(size) if rank in dialled[r]}
        if listener is not None:
            sockets |= _accept(listener, callers, card.secret)
        for peer in [p for p in sockets if p < rank and not _answered(sockets[p])]:
            sockets.pop(peer).close()
            refused[peer] = "it did not take this rank's descriptor"
        passed = _exchange_ranks(context, {p: s for p, s in sockets.items() if p < rank}, timeout_s)
        found = hosts(passed)
        mine = next(host for host in found if rank in host)
        for peer in [p for p in sockets if p not in mine]:
            sockets.pop(peer).close()
    except BaseException:
        for sock in sockets.values():
            sock.close()
        raise
    finally:
        if listener is not None:
            listener.close()
    reason = card.reason or (None if len(mine) > 1 else "no other rank can be reached by a local socket")
    return Host(mine, sockets, found, reason, passed, refused)


def _exchange_ranks(context: Context, ranks: dict[int, socket.socket], timeout_s: float) -> list[set[int]]:
    blobs = context.exchange(msgspec.msgpack.encode(sorted(ranks)), timeout_s=timeout_s)
    return [msgspec.msgpack.decode(blob, type=set[int]) for blob in blobs]


def _listen() -> tuple[socket.socket | None, _Card]:
    """Listen on an abstract address: it belongs to the network namespace, and nothing is left behind."""
    address, secret = secrets.token_hex(16), secrets.token_bytes(32)
    try:
        os.close(create(_TEST_NBYTES))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (OSError, AttributeError) as exc:
        return None, _Card(None, reason=f"no shared memory on this platform or in this sandbox: {exc}")
    try:
        listener.bind(f"\0lazycast-{address}")
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        return None, _Card(None, reason=f"no abstract Unix sockets here: {exc}")
    return listener, _Card(address, secret, label=os.environ.get(LABEL, ""))


def _dial(theirs: _Card, mine: _Card, rank: int) -> socket.socket:
    """Call a rank and hand it a descriptor of memory that holds its own secret. OSError if it cannot be reached."""
    for card, whose in ((mine, "this rank"), (theirs, "it")):
        if card.address is None:
            raise OSError(f"{whose} shares no memory: {card.reason}")
    if theirs.label != mine.label:
        raise OSError(f"{LABEL} is {theirs.label!r} there and {mine.label!r} here")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(5.0)
        sock.connect(f"\0lazycast-{theirs.address}")
        fd = create(_TEST_NBYTES)
        try:
            os.pwrite(fd, theirs.secret, 0)
            sock.sendmsg(
                [_HELLO.pack(rank, theirs.secret)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            )
        finally:
            os.close(fd)
    except BaseException:
        sock.close()
        raise
    return sock


def _accept(listener: socket.socket, callers: set[int], secret: bytes) -> dict[int, socket.socket]:
    """Take the calls that are known to have been made, and test what they brought."""
    sockets: dict[int, socket.socket] = {}
    deadline_s = time.monotonic() + _ACCEPT_S  # though strangers call without end
    while len(sockets) < len(callers) and time.monotonic() < deadline_s:
        try:
            listener.settimeout(0.0)  # all have called by now, also whoever has died since: nobody is waited for
            sock, _ = listener.accept()
        except OSError:
            break
        try:
            caller = _test(sock, secret)
            if caller not in callers or caller in sockets:
                raise ValueError("a caller that has not called, or has called before")
            sock.send(b"\1")
        except (OSError, struct.error, ValueError):  # a stranger, or a rank that has died since it called
            sock.close()
            continue
        sockets[caller] = sock
    return sockets


def _test(sock: socket.socket, secret: bytes) -> int:
    """Return the rank of a caller that runs as this user, knows the secret, and passed memory that can be read.

    All ranks have said whom they have called: what a rank has to say is here already, and whoever is silent is none.
    """
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.getuid():
        raise ValueError("a caller of another user")
    sock.settimeout(0.0)
    data, fds, _, _ = socket.recv_fds(sock, _HELLO.size, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        caller, said = _HELLO.unpack(data)
        good = secrets.compare_digest(said, secret) and len(fds) == 1
        if not good or os.pread(fds[0], len(secret), 0) != secret:
            raise ValueError("a caller that is not of this job")
    finally:
        for fd in fds:
            os.close(fd)
    sock.settimeout(None)
    return int(caller)


def _answered(sock: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return sock.recv(1) == b"\1"
    return False

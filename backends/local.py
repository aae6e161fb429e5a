"""Ranks on one machine with neither torch nor MPI: processes that share a rendezvous folder, or threads of one process.

Guarantees:

* Every pair of ranks meets over its own Unix stream socket; the kernel tells the death of a process at once.
* The listening sockets lie in the rendezvous folder, are mode 0600, serve one context each and are removed when it is
  complete. Callers of another user are refused.
* All descriptors are close-on-exec, and a forked child closes its copies: nobody but the two ends keeps a socket open.
* Threads use the same sockets and the same code as processes; only the meeting differs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from select import select
from typing import ClassVar, TypeVar

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError
from lazycast.net.backend import MAX_HEADER_NBYTES, Backend, Context, Link, Sink
from lazycast.net.threaded_link import Pipe, PipeClosed, ThreadedLink

_PREFIX = struct.Struct("<IQ")  # header bytes, body bytes
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_RETRY_S = 0.005
_HELLO_S = 0.5  # for a caller to say who it is; a rank that is slower than that calls again
_MAX_BLOB_NBYTES = 16 << 20  # of a handshake; a larger one is none

T = TypeVar("T")


def _recv_into(sock: socket.socket, into: memoryview) -> None:
    while into.nbytes:
        try:
            n = sock.recv_into(into)
        except TimeoutError:
            raise
        except OSError as exc:
            raise PipeClosed(f"receiving failed: {exc}") from exc
        if n == 0:
            raise PipeClosed("the connection was closed without a farewell")
        into = into[n:]


def _recv(sock: socket.socket, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    _recv_into(sock, memoryview(buffer))
    return bytes(buffer)


def _send(sock: socket.socket, *parts: bytes | memoryview) -> None:
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    try:
        while views:
            n = sock.sendmsg(views)
            while views and n >= views[0].nbytes:
                n -= views.pop(0).nbytes
            if views:
                views[0] = views[0][n:]
    except TimeoutError:
        raise
    except OSError as exc:
        raise PipeClosed(f"sending failed: {exc}") from exc


class _SocketPipe(Pipe):
    """A stream socket. Close-on-exec, as all of Python's are."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._sock = sock

    def send(self, header: bytes, body: memoryview | None) -> None:
        rest = body if body is not None else b""
        _send(self._sock, _PREFIX.pack(len(header), len(rest)), header, rest)

    def recv_header(self) -> tuple[bytes, int]:
        header_nbytes, body_nbytes = _PREFIX.unpack(_recv(self._sock, _PREFIX.size))
        if header_nbytes > MAX_HEADER_NBYTES:
            raise PipeClosed(f"what arrived is no message: a header of {header_nbytes} bytes")
        return _recv(self._sock, header_nbytes), body_nbytes

    def recv_body(self, into: memoryview) -> None:
        _recv_into(self._sock, into)

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have gone first
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.interrupt()
        self._sock.close()

    def close_after_fork(self) -> None:
        self._sock.close()  # no shutdown: the connection is the parent's


class _Meeting:
    """Waits for several ranks until a deadline."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def error(self, missing: Sequence[int]) -> CastTimeoutError:
        ranks = ", ".join(map(str, sorted(missing)))
        return CastTimeoutError(
            f"{self._what}: rank {ranks} did not come within {self._timeout_s:g} s; every rank must construct its "
            "object, in the same order",
            rank=min(missing),
            missing=missing,
        )


class _LocalContext(Context):
    """A socket to every other rank; `connect` keeps those of the neighbours."""

    def __init__(self, rank: int, size: int, sockets: dict[int, socket.socket]) -> None:
        self._rank, self._size = rank, size
        self._sockets = sockets

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        meeting = _Meeting("lazycast handshake over local sockets", timeout_s)
        blobs = {self._rank: blob}
        for peer in sorted(self._sockets):
            self._io(meeting, peer, lambda sock: _send(sock, _PREFIX.pack(len(blob), 0), blob), blobs)
        for peer in sorted(self._sockets):
            blobs[peer] = self._io(meeting, peer, self._recv_blob, blobs)
        return [blobs[rank] for rank in range(self._size)]

    @staticmethod
    def _recv_blob(sock: socket.socket) -> bytes:
        nbytes, _ = _PREFIX.unpack(_recv(sock, _PREFIX.size))
        if nbytes > _MAX_BLOB_NBYTES:
            raise PipeClosed(f"what arrived is no part of a handshake: {nbytes} bytes")
        return _recv(sock, nbytes)

    def _io(self, meeting: _Meeting, peer: int, action: Callable[[socket.socket], T], blobs: Collection[int]) -> T:
        sock = self._sockets[peer]
        sock.settimeout(max(0.001, meeting.left_s()))
        try:
            return action(sock)
        except TimeoutError as exc:
            silent = [p for p in self._sockets if p not in blobs and not select([self._sockets[p]], [], [], 0)[0]]
            raise meeting.error(silent or [peer]) from exc
        except PipeClosed as exc:
            raise BackendError(f"rank {peer} went away during the handshake: {exc}", rank=peer) from exc

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        pipes: dict[int, Pipe] = {}
        for peer, sock in self._sockets.items():
            if peer in neighbours:
                pipes[peer] = _SocketPipe(sock)
            else:
                sock.close()
        self._sockets = {}
        return ThreadedLink(pipes, sink, name=f"lazycast-local-{self._rank}", kind="unix socket")

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}


class _Hub:
    """Where the threads of one process meet: the n-th context of each rank gets the n-th mesh of socket pairs."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._meshes: dict[int, dict[int, dict[int, socket.socket]]] = {}

    def take(self, number: int, rank: int) -> dict[int, socket.socket]:
        with self._lock:
            mesh = self._meshes.get(number)
            if mesh is None:
                mesh = self._meshes[number] = {r: {} for r in range(self._size)}
                for a, b in itertools.combinations(range(self._size), 2):
                    mesh[a][b], mesh[b][a] = socket.socketpair()
            mine = mesh.pop(rank)
            if not mesh:
                del self._meshes[number]
        return mine

    def close(self) -> None:
        """Close what ranks that never came have left."""
        with self._lock:
            for mesh in self._meshes.values():
                for sockets in mesh.values():
                    for sock in sockets.values():
                        sock.close()
            self._meshes.clear()


class LocalBackend(Backend):
    """Connects ranks on one machine over Unix sockets.

    Args:
        rank: this process's place, 0-based.
        size: the number of ranks.
        rendezvous: a folder that all ranks of the job can write and that no other job uses; not needed for one rank.
    """

    name = "local"
    _counts: ClassVar[dict[str, Iterator[int]]] = {}
    _counts_lock: ClassVar = threading.Lock()

    def __init__(self, rank: int = 0, size: int = 1, rendezvous: str | os.PathLike[str] | None = None) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is not between 0 and {size - 1}")
        if size > 1 and rendezvous is None:
            raise BackendUnavailableError(
                f"the local backend with {size} ranks needs a rendezvous folder (LAZYCAST_RENDEZVOUS, or "
                "LocalBackend(rank, size, rendezvous)); lazycast.launch() makes one"
            )
        self.rank, self.size = rank, size
        self._folder = Path(rendezvous) if rendezvous is not None else None
        self._hub: _Hub | None = None
        self._numbers: Iterator[int] = itertools.count()
        if self._folder is not None:
            with self._counts_lock:  # all backends of this process on one folder count together
                self._numbers = self._counts.setdefault(str(self._folder), itertools.count())

    @classmethod
    def from_environment(cls) -> LocalBackend:
        """Use LAZYCAST_RANK, LAZYCAST_WORLD_SIZE and LAZYCAST_RENDEZVOUS; without them, be the only rank."""
        names = ("LAZYCAST_RANK", "LAZYCAST_WORLD_SIZE", "LAZYCAST_RENDEZVOUS")
        values = [os.environ.get(name) for name in names]
        rank, size, folder = values
        if rank is None and size is None and folder is None:
            return cls()
        if rank is None or size is None or folder is None:
            unset = ", ".join(n for n, v in zip(names, values, strict=True) if v is None)
            raise BackendUnavailableError(f"the local backend needs all of {', '.join(names)}; not set: {unset}")
        try:
            return cls(int(rank), int(size), folder)
        except ValueError as exc:
            raise BackendUnavailableError(f"LAZYCAST_RANK={rank!r}, LAZYCAST_WORLD_SIZE={size!r}: {exc}") from exc

    @classmethod
    def threads(cls, size: int) -> list[LocalBackend]:
        """Return one backend for each of `size` threads of this process that act as ranks."""
        hub = _Hub(size)
        backends = []
        for rank in range(size):
            backend = cls.__new__(cls)
            backend.rank, backend.size = rank, size
            backend._folder, backend._hub, backend._numbers = None, hub, itertools.count()
            backends.append(backend)
        return backends

    def close_hub(self) -> None:
        """After all threads have ended: close what ranks that never came have left behind. Nothing for processes."""
        if self._hub is not None:
            self._hub.close()

    def open(self, *, timeout_s: float) -> Context:
        number = next(self._numbers)
        if self._hub is not None:
            return _LocalContext(self.rank, self.size, self._hub.take(number, self.rank))
        if self._folder is None:
            return _LocalContext(self.rank, self.size, {})
        meeting = _Meeting(f"lazycast context {number} in {self._folder}", timeout_s)
        return _LocalContext(self.rank, self.size, _meet(self._folder, number, self.rank, self.size, meeting))


def _meet(folder: Path, number: int, rank: int, size: int, meeting: _Meeting) -> dict[int, socket.socket]:
    """Connect to all other ranks: to the lower ones actively, to the higher ones by accepting."""
    sockets: dict[int, socket.socket] = {}
    try:
        with _listen(folder / f"{number}.{rank}", size) as listener:
            for peer in range(rank):
                sockets[peer] = _dial(folder / f"{number}.{peer}", rank, meeting, missing=range(rank))
            while len(sockets) < size - 1:
                missing = [r for r in range(rank + 1, size) if r not in sockets]
                peer, sock = _accept(listener, meeting, missing)
                sockets[peer] = sock
    except BaseException:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


@contextlib.contextmanager
def _listen(path: Path, backlog: int) -> Iterator[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of an earlier process with this rank, which is dead if the folder is ours alone
        try:
            sock.bind(str(path))
            os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
            sock.listen(backlog)
        except OSError as exc:
            raise BackendUnavailableError(
                f"cannot listen on {path}: {exc}; the rendezvous must be a writable folder with a path of at most "
                "some 90 bytes, on a file system that has Unix sockets"
            ) from exc
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            path.unlink()


def _dial(path: Path, rank: int, meeting: _Meeting, missing: Sequence[int]) -> socket.socket:
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, meeting.left_s()))
            sock.connect(str(path))
            _send(sock, _PREFIX.pack(rank, 0))
            _recv(sock, 1)  # welcomed: not just queued behind a listener that is about to close
            return sock
        except (OSError, PipeClosed) as exc:  # it is not there yet
            sock.close()
            if meeting.left_s() <= 0:
                peer = int(path.name.rpartition(".")[2])
                absent = [p for p in missing if p >= peer and not path.with_name(f"{path.stem}.{p}").exists()]
                raise meeting.error(absent or [peer]) from exc
            time.sleep(_RETRY_S)


def _accept(listener: socket.socket, meeting: _Meeting, missing: Sequence[int]) -> tuple[int, socket.socket]:
    while True:
        try:
            listener.settimeout(max(0.001, meeting.left_s()))
            sock, _ = listener.accept()
        except TimeoutError as exc:
            raise meeting.error(missing) from exc
        try:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
            _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
            if uid == os.getuid():  # only then listen to what it says
                sock.settimeout(max(0.001, min(_HELLO_S, meeting.left_s())))
                peer, _ = _PREFIX.unpack(_recv(sock, _PREFIX.size))
                if peer in missing:
                    _send(sock, b"\1")
                    return peer, sock
        except (OSError, PipeClosed):  # it hung up; whoever it was may come again
            pass
        sock.close()

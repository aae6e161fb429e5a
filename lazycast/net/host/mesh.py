"""Messages between the ranks of a host: packets over Unix sockets, bodies in shared memory.

Guarantees:

* Messages between two ranks arrive whole, once, in order. A body of up to `INLINE_NBYTES` rides in its packet.
* `send` never blocks: what a full socket does not take waits in an outbox, and one thread sends it when it can. The
  same thread receives. It sleeps in `epoll_wait` and wakes for nothing else
  but what it is to do at a time that it has been given.
* A dead process is an end-of-file at once. All descriptors are close-on-exec; a forked child closes its copies.
* A body below `COPY_NBYTES` is copied to memory of its own and its slot is free at once.
* A rank that lacks memory or descriptors for a body gives the slot back, and gets the message with an empty body: what
  it lacks is that message's failure, and no peer is lost for it. An arena that was lost so is brought again.
* Lock order: a peer's lock may be taken while nothing else is held; nothing is called under it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lazycast.codec.pickling import allocate, copy
from lazycast.here import own_thread
from lazycast.net.host import limits
from lazycast.net.host.arena import Arena, Slot
from lazycast.net.host.memory import PAGE
from lazycast.net.host.processes import pid_behind
from lazycast.net.host.views import Views
from lazycast.tracebacks import forget_frames, left, log

logger = logging.getLogger("lazycast")

INLINE_NBYTES = 12 << 10
COPY_NBYTES = 64 << 10

# kind, header bytes; then for bodies elsewhere: row, offset, bytes, the arena's bytes
_PREFIX = struct.Struct("<BxxxIIxxxxQQQ")
_MESSAGE, _FAREWELL, _GIVES_BACK = 1, 2, 4
_IN_ARENA, _IN_SEGMENT, _BRINGS_ARENA = 16, 32, 64
_KINDS = _MESSAGE | _IN_ARENA | _IN_SEGMENT | _BRINGS_ARENA
_PACKET_NBYTES = 64 << 10
_MAX_FDS = 3
_JOIN_S = 1.0  # how long `close` waits for the thread, which may be in a sink
_FULL = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)  # of the machine, not of the socket
# As plain numbers: socket's own are enums, and to combine two of those takes 1.5 µs, half of what sending does.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECV_FLAGS = int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF, _FDS_CUT_OFF = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
_ANCILLARY_NBYTES = socket.CMSG_SPACE(4 * _MAX_FDS)
_EMPTY = memoryview(b"")


class _Descriptor:
    """A descriptor that is closed when nobody needs it any more: a copy for each who waits could fail (EMFILE)."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _check(header: bytes, inline_nbytes: int) -> None:
    if _PREFIX.size + len(header) + inline_nbytes > _PACKET_NBYTES:
        raise ValueError(f"a header of {len(header)} bytes and a body of {inline_nbytes} do not fit into a packet")


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    return [fd for _, kind, data in ancillary if kind == socket.SCM_RIGHTS for fd in array.array("i", data)]


class HostSink(Protocol):
    """What the mesh calls, from its thread."""

    def host_message(self, peer: int, header: bytes, body: memoryview) -> None:
        """Take a message; the body is this rank's own to keep and to write to."""
        ...

    def gone(self, peer: int, reason: str | None) -> None:
        """Learn that a peer sends nothing any more: a farewell (None) or a loss (why)."""
        ...


@dataclass(eq=False)
class _Peer:
    rank: int
    sock: socket.socket
    lock: threading.Lock = field(default_factory=threading.Lock)
    outbox: deque[tuple[bytes, list[int], _Descriptor | None]] = field(default_factory=deque)  # see `_put`
    knows_arena: bool = False
    lost_arena: str | None = None  # why its arena could not be taken here, until it brings it again
    gone: bool = False


class Mesh:
    """This rank's sockets and shared memory on its host. `send` and `share`: any thread."""

    def __init__(
        self, ranks: list[int], me: int, sockets: dict[int, socket.socket], arena_nbytes: int, *, copy_all: bool = False
    ) -> None:
        self.ranks, self._me = ranks, me
        self.peers = sorted(sockets)
        self._peers = {rank: _Peer(rank, sock) for rank, sock in sockets.items()}
        #: The processes behind the sockets, as far as they can be seen from here.
        self.pids = {rank: pid for rank, sock in sockets.items() if (pid := pid_behind(sock)) is not None}
        self._copy_below = 1 << 62 if copy_all else COPY_NBYTES
        self._arena = Arena(ranks, me, arena_nbytes)
        self._views = Views(ranks, me)
        self._poller = select.epoll()  # `poll` takes no more sockets than a process may have descriptors
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._leaving = self._closing = False
        #: What this rank lacked when a body could not be taken last.
        self.shortage: str | None = None
        self._thread: threading.Thread | None = None
        # A number of a descriptor may be another's as soon as it is closed: so never while the thread may use it.
        self._serving = self._left_to_thread = False
        self._release_lock = threading.Lock()

    def start(self, sink: HostSink, name: str, turn: Callable[[], float | None] | None = None) -> None:
        """Begin to receive.

        `turn` is called, by the thread that receives, whenever it has taken what has come; it returns when to be called
        again at the latest (monotonic seconds), or None.
        """
        for peer in self._peers.values():
            peer.sock.setblocking(False)
        thread = threading.Thread(target=self._run, args=(sink, turn), name=name, daemon=True)
        self._serving = True
        try:
            thread.start()
        except BaseException:  # no thread can be had: `close` is still to close everything
            self._serving = False
            raise
        self._thread = thread

    # Sending

    def allocate(self, nbytes: int) -> Slot:
        """Return room in this rank's shared memory. Raises MemoryError with the reason."""
        return self._arena.allocate(nbytes)

    def share(self, peers: list[int], header: bytes, slot: Slot) -> None:
        """Send a message whose body lies, complete, in a slot of this rank."""
        _check(header, 0)
        live = [rank for rank in peers if not self._peers[rank].gone]
        self._arena.share(slot, live)
        place = (slot.row, slot.offset, slot.nbytes, self._arena.nbytes)
        fd = self._arena.hand_over(slot)
        segment = _Descriptor(fd) if fd is not None else None
        for rank in live:
            peer, kind = self._peers[rank], _MESSAGE | _IN_ARENA
            fds: list[int] = []
            with peer.lock:
                if peer.gone:  # since then; if this rank closes, so are the descriptors
                    continue
                if not peer.knows_arena:
                    peer.knows_arena = True
                    kind |= _BRINGS_ARENA
                    fds += self._arena.fds
                if segment is not None:
                    kind |= _IN_SEGMENT
                    fds.append(segment.fd)
                self._put(peer, _PREFIX.pack(kind, len(header), *place) + header, fds, segment)

    def send(self, rank: int, header: bytes, body: memoryview = _EMPTY) -> None:
        """Send a message whose body, of up to `INLINE_NBYTES`, rides along."""
        self.send_all((rank,), header, body)

    def send_all(self, ranks: Sequence[int], header: bytes, body: memoryview = _EMPTY) -> None:
        """Send one such message to several ranks."""
        packet = b"".join((_PREFIX.pack(_MESSAGE, len(header), 0, 0, body.nbytes, 0), header, body))
        if len(packet) > _PACKET_NBYTES:
            _check(header, body.nbytes)
        for rank in ranks:
            peer = self._peers[rank]
            with peer.lock:
                if not peer.outbox and not peer.gone:
                    try:  # what most messages do: `_put` tries again, and knows what an error means
                        peer.sock.send(packet, _SEND_FLAGS)
                        continue
                    except OSError:
                        pass
                self._put(peer, packet, [])

    def _put(self, peer: _Peer, packet: bytes, fds: list[int], segment: _Descriptor | None = None) -> None:
        """With the peer's lock held: send a packet, or queue it behind what waits.

        Of its descriptors the arena's live as long as the queue; that of a segment is kept by `segment`.
        """
        if peer.gone:
            return
        if not peer.outbox and self._try(peer, packet, fds):
            return
        peer.outbox.append((packet, fds, segment))
        os.eventfd_write(self._wake_fd, 1)

    @staticmethod
    def _try(peer: _Peer, packet: bytes, fds: list[int]) -> bool:
        """Send a packet now if the socket takes it. True also for a peer that is dead: its end is told elsewhere."""
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                peer.sock.sendmsg([packet], rights, _SEND_FLAGS)
            else:
                peer.sock.send(packet, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            if exc.errno in _FULL:
                time.sleep(0.001)  # there is nothing to wait for
                return False
        return True

    def _flush(self, peer: _Peer) -> bool:
        """Send what waits for a peer; return whether something still does."""
        with peer.lock:
            while peer.outbox and (peer.gone or self._try(peer, *peer.outbox[0][:2])):
                peer.outbox.popleft()
            return bool(peer.outbox)

    # The thread

    def _run(self, sink: HostSink, turn: Callable[[], float | None] | None) -> None:
        own_thread()
        try:
            self._serve(sink, turn)
        finally:
            with self._release_lock:
                self._serving = False
                release = self._left_to_thread
            if release:
                self._release()

    def _serve(self, sink: HostSink, turn: Callable[[], float | None] | None) -> None:
        poller = self._poller
        poller.register(self._wake_fd, select.EPOLLIN)
        by_fd = {peer.sock.fileno(): peer for peer in self._peers.values()}
        for fd in by_fd:
            poller.register(fd, select.EPOLLIN)
        buffer = bytearray(_PACKET_NBYTES)
        due_s: float | None = None
        while not self._closing:
            for fd, events in poller.poll(None if due_s is None else max(0.0, due_s - time.monotonic())):
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
                    for other, peer in by_fd.items():
                        if not peer.gone and self._flush(peer):
                            poller.modify(other, select.EPOLLIN | select.EPOLLOUT)
                    continue
                peer = by_fd[fd]
                if events & select.EPOLLOUT and not self._flush(peer):
                    poller.modify(fd, select.EPOLLIN)
                if events & ~select.EPOLLOUT and not self._receive(peer, buffer, sink):
                    poller.unregister(fd)
                if left.frames:
                    forget_frames()
            due_s = turn() if turn is not None else None

    def _receive(self, peer: _Peer, buffer: bytearray, sink: HostSink) -> bool:
        """Take one packet; return whether more may come."""
        try:
            n, ancillary, flags, _ = peer.sock.recvmsg_into([buffer], _ANCILLARY_NBYTES, _RECV_FLAGS)
        except (BlockingIOError, InterruptedError):
            return True
        except ConnectionResetError:
            return True  # it ended with something unread; the kernel says so once, and then gives what it had sent
        except OSError as exc:
            return self._end(peer, f"the connection failed: {exc}", sink)
        fds = _descriptors(ancillary) if ancillary else []
        try:
            if n == 0:
                # Whoever has our farewell need not answer it.
                return self._end(peer, None if self._leaving else "it ended without a farewell", sink)
            if flags & _CUT_OFF:
                return self._end(peer, "a packet did not fit", sink)
            if buffer[0] == _FAREWELL and n == 1:
                return self._end(peer, None, sink)
            if buffer[0] & _GIVES_BACK:
                self._take_back(peer, memoryview(buffer)[:n])
                return True
            header, body = self._take(peer, memoryview(buffer)[:n], fds, cut=bool(flags & _FDS_CUT_OFF))
            sink.host_message(peer.rank, header, body)
            return True
        except Exception as exc:  # a sink must not raise; if it does, this peer can no longer be served
            log(logger, f"lazycast: a message of rank {peer.rank} could not be taken", exc)
            return self._end(peer, f"receiving failed here: {exc!r}", sink)
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, peer: _Peer, packet: memoryview, fds: list[int], *, cut: bool) -> tuple[bytes, memoryview]:
        kind, header_nbytes, row, offset, nbytes, arena_nbytes = _PREFIX.unpack_from(packet)
        end = _PREFIX.size + header_nbytes
        header = bytes(packet[_PREFIX.size : end])
        brings = (2 if kind & _BRINGS_ARENA else 0) + (1 if kind & _IN_SEGMENT else 0)
        whole = len(fds) < brings if cut else len(fds) == brings  # the kernel cuts off what the table has no room for
        if end > packet.nbytes or not whole or kind & ~_KINDS or not kind & _MESSAGE:
            raise ValueError(f"a packet of {packet.nbytes} bytes and {len(fds)} descriptors makes no sense")
        if not kind & _IN_ARENA:
            if nbytes != packet.nbytes - end:
                raise ValueError(f"a packet holds {packet.nbytes - end} bytes of body, said to be {nbytes}")
            if not nbytes:
                return header, _EMPTY
            body = allocate(nbytes)
            body[:] = packet[end : end + nbytes]
            return header, body
        try:
            if cut:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return header, self._look_at(peer, kind, (row, offset, nbytes, arena_nbytes), fds)
        except (MemoryError, OSError) as exc:
            self._give_back(peer, kind, row, limits.lacked(exc))
            return header, _EMPTY

    def _look_at(self, peer: _Peer, kind: int, place: tuple[int, int, int, int], fds: list[int]) -> memoryview:
        """Return a body in shared memory. Raises MemoryError or OSError for what this rank lacks."""
        rank, (row, offset, nbytes, arena_nbytes) = peer.rank, place
        if kind & _BRINGS_ARENA:
            self._views.learn(rank, fds[0], fds[1], arena_nbytes)
            peer.lost_arena = None
        elif peer.lost_arena is not None:
            raise MemoryError(peer.lost_arena)  # sent before it could know
        if nbytes < self._copy_below and not kind & _IN_SEGMENT:
            body = allocate(nbytes)
            self._views.copy_into(body, rank, row, offset)
            return body
        return self._settle(self._views.view(rank, row, offset, nbytes, fds[-1] if kind & _IN_SEGMENT else None))

    def _give_back(self, peer: _Peer, kind: int, row: int, why: str) -> None:
        """Tell a writer that this rank cannot take what it has shared, and holds nothing of it."""
        self.shortage = why
        answer = _GIVES_BACK
        if kind & _BRINGS_ARENA and not self._views.knows(peer.rank):
            peer.lost_arena = why
            answer |= _BRINGS_ARENA
        with peer.lock:
            self._put(peer, _PREFIX.pack(answer, 0, row, 0, 0, 0), [])

    def _take_back(self, peer: _Peer, packet: memoryview) -> None:
        if packet.nbytes != _PREFIX.size:
            raise ValueError(f"a packet of {packet.nbytes} bytes gives nothing back")
        kind, _, row, *_ = _PREFIX.unpack(packet)
        self._arena.take_back(row, peer.rank)
        if kind & _BRINGS_ARENA:
            with peer.lock:
                peer.knows_arena = False

    def _settle(self, view: memoryview) -> memoryview:
        """Copy what is not worth a slot, or what the user wants in memory of its own."""
        if view.nbytes >= self._copy_below:
            return view
        body = allocate(view.nbytes)
        copy(body, view)
        return body

    def locate(self, body: memoryview) -> tuple[int, int, int] | None:
        """Return where a body lies in this rank's arena, for a process that is to look at it.

        That is the arena's descriptor, its bytes, and the offset of a page. None for a body that lies elsewhere.
        """
        address: int = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
        offset = self._arena.offset_of(address, body.nbytes)
        if offset is None:
            offset = self._views.offset_of(address, body.nbytes)
        if offset is None or offset % PAGE or self._closing:
            return None
        return self._arena.fds[0], self._arena.nbytes, offset

    def own_view(self, slot: Slot) -> memoryview:
        """Return this rank's own value of a slot that it wrote, private like anybody's."""
        if not self._views.knows(self._me):
            self._views.learn(self._me, *self._arena.fds, self._arena.nbytes)
        return self._settle(self._views.own(slot))

    def _end(self, peer: _Peer, reason: str | None, sink: HostSink) -> bool:
        if not peer.gone:
            sink.gone(peer.rank, reason)
            peer.gone = True
            self._flush(peer)
        return False

    # The end

    def close(self, *, timeout_s: float) -> None:
        """Send what is queued and a farewell; the kernel delivers it though the sockets are closed. Idempotent."""
        if self._leaving:
            return
        self._leaving = True
        deadline_s = time.monotonic() + timeout_s
        for peer in self._peers.values():
            with peer.lock:
                self._put(peer, bytes([_FAREWELL]), [])
        while any(self._flush(peer) for peer in self._peers.values()) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        self._closing = True
        os.eventfd_write(self._wake_fd, 1)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)
        for peer in self._peers.values():
            with peer.lock:
                peer.gone = True
            self._flush(peer)
        with self._release_lock:
            self._left_to_thread = self._serving and thread is not threading.current_thread()
        if not self._left_to_thread:
            self._release()

    def _release(self) -> None:
        for peer in self._peers.values():
            peer.sock.close()
        self._poller.close()
        os.close(self._wake_fd)
        self._arena.close()
        self._views.close()

    def close_after_fork(self) -> None:
        """In a forked child: close the copies of the descriptors. Memory that is held stays."""
        self._poller.close()
        for peer in self._peers.values():
            peer.sock.close()

    def state(self) -> list[str]:
        """Return a line for each peer, and one for the thread. Never blocks; takes no lock."""
        lines = [
            f"rank {peer.rank}: {len(peer.outbox)} to be sent{', ended' if peer.gone else ''}"
            for peer in self._peers.values()
        ]
        if self._thread is not None:
            lines.append(f"thread {self._thread.name} {'lives' if self._thread.is_alive() else 'has ended'}")
        return lines

    def leases(self) -> list[str] | None:
        """Return who holds which slots of this rank's shared memory. None if it is locked just now."""
        return self._arena.leases()

    def in_use(self) -> tuple[int, int]:
        """Return slots and bytes of this rank's shared memory that somebody holds."""
        return self._arena.in_use()

    def taken_nbytes(self) -> int:
        """Return the bytes of shared memory that this rank has taken, held or not."""
        return self._arena.taken_nbytes()

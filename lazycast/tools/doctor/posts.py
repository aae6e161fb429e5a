"""How ranks send each other what they have found: by the simplest means their launcher has, not by lazycast.

lazycast is what is examined; it may be what fails. Each post carries small blobs between rank 0 and the others, in
order for each pair.

Guarantees: nothing blocks, except that `flush` waits as long as it is told.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_NAP_S = 0.01
#: Away from the tags of lazycast's own messages, which travel in duplicates of the communicator anyway.
_TAG = 4711


class Post(Protocol):
    """One rank's side."""

    rank: int
    size: int

    def send(self, to: int, blob: bytes) -> None:
        """Send a blob to a rank."""
        ...

    def poll(self, source: int) -> bytes | None:
        """Return the next blob from a rank, or None if none has come."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Wait until what was sent needs this process no more."""
        ...


class StorePost:
    """By the store at which the ranks of torch.distributed meet."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._sent: dict[int, int] = defaultdict(int)
        self._seen: dict[int, int] = defaultdict(int)

    def send(self, to: int, blob: bytes) -> None:
        self._store.set(f"{self.rank}-{to}-{self._sent[to]}", blob)  # type: ignore[arg-type]  # it takes bytes
        self._sent[to] += 1

    def poll(self, source: int) -> bytes | None:
        key = f"{source}-{self.rank}-{self._seen[source]}"
        if not self._store.check([key]):
            return None
        self._seen[source] += 1
        return bytes(self._store.get(key))

    def flush(self, timeout_s: float) -> None:
        """The store has what was set."""


class FolderPost:
    """By files in a folder that all ranks share: the rendezvous folder of the local backend."""

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self._folder, self.rank, self.size = folder, rank, size
        self._sent: dict[int, int] = defaultdict(int)
        self._seen: dict[int, int] = defaultdict(int)

    def send(self, to: int, blob: bytes) -> None:
        name = f"doctor-{self.rank}-{to}-{self._sent[to]}"
        part = self._folder / f"{name}.part"
        part.write_bytes(blob)
        part.rename(self._folder / name)  # whole or not at all
        self._sent[to] += 1

    def poll(self, source: int) -> bytes | None:
        path = self._folder / f"doctor-{source}-{self.rank}-{self._seen[source]}"
        try:
            blob = path.read_bytes()
        except FileNotFoundError:
            return None
        path.unlink()
        self._seen[source] += 1
        return blob

    def flush(self, timeout_s: float) -> None:
        """The files are there."""


class MPIPost:
    """By point-to-point messages: those of MPI work at any thread level, from the thread that started it."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, comm.size
        self._requests: list[Any] = []

    def send(self, to: int, blob: bytes) -> None:
        self._requests.append(self._comm.isend(blob, dest=to, tag=_TAG))

    def poll(self, source: int) -> bytes | None:
        message = self._comm.improbe(source=source, tag=_TAG)
        return None if message is None else bytes(message.recv())

    def flush(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self._requests and time.monotonic() < deadline_s:
            self._requests = [request for request in self._requests if not request.test()[0]]
            time.sleep(_NAP_S)


class Gathering:
    """Waits for a blob from each of some ranks.

    Args:
        missing: kept up to date with who is still waited for; may be looked at from any thread.
    """

    def __init__(self, post: Post, missing: list[int] | None = None) -> None:
        self._post = post
        self.missing = [] if missing is None else missing

    def collect(self, ranks: list[int], timeout_s: float) -> dict[int, bytes]:
        """Return what has come from whom in time; `missing` says who has sent nothing."""
        deadline_s, blobs = time.monotonic() + timeout_s, dict[int, bytes]()
        self.missing[:] = ranks
        while self.missing:
            for rank in list(self.missing):
                blob = self._post.poll(rank)
                if blob is not None:
                    blobs[rank] = blob
                    self.missing.remove(rank)
            if time.monotonic() > deadline_s:
                break
            if self.missing:
                time.sleep(_NAP_S)
        return blobs

"""How the ranks of a run keep in step: over Unix sockets of their own, whatever backend is measured.

Guarantees: ranks that wait here sleep in the kernel and take no CPU from those that are measured, and nothing here
touches the group, the communicator or the `LazyBroadcast` objects under test. All ranks are on one machine.
"""

from __future__ import annotations

import struct
from pathlib import Path

from lazycast.errors import LazycastError
from lazycast.net.backend import Context
from lazycast.start import discovery

#: The slowest single broadcast that a run puts up with (seconds).
TIMEOUT_S = 300.0
_STAMPS = struct.Struct("<qq")
_MAX_TEXT = 2000


class WrongValueError(LazycastError):
    """A rank did not get what the root sent."""


class Sync:
    """Barriers and small gathers among the ranks of a run.

    Args:
        rank, size: this process's place and the number of ranks.
        folder: empty, shared by the ranks of this run alone.
    """

    def __init__(self, rank: int, size: int, folder: Path) -> None:
        self.rank = rank
        local = discovery.by_name("local")
        self._context: Context = local(rank, size, folder).open(timeout_s=TIMEOUT_S)  # type: ignore[call-arg]

    def gather(self, blob: bytes = b"") -> list[bytes]:
        """Give every rank's blob to every rank; without one, a barrier. Collective."""
        return self._context.exchange(blob, timeout_s=TIMEOUT_S)

    def stamps(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Give every rank's two moments (CLOCK_MONOTONIC) to every rank. Collective."""
        return [_STAMPS.unpack(blob) for blob in self.gather(_STAMPS.pack(start_ns, end_ns))]

    def agree(self, complaint: str | None) -> None:
        """Raise on every rank if any rank has a complaint; otherwise a barrier. Collective."""
        blobs = self.gather((complaint or "")[:_MAX_TEXT].encode(errors="replace"))
        for rank, blob in enumerate(blobs):
            if blob:
                raise WrongValueError(f"rank {rank}: {blob.decode()}", rank=rank)

    def close(self) -> None:
        """Give up the sockets."""
        self._context.close()

"""The group that a combination's ranks are in, and the one that survivors build after it."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lazycast.net.backend import Backend, Context, Link, Sink


class Group(ABC):
    """How this process is one of several ranks."""

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size

    @abstractmethod
    def backend(self) -> Backend: ...

    @abstractmethod
    def renewed(self, left: Sequence[int]) -> Backend | None:
        """Return a backend of a new group of some of the ranks; None if that cannot be had."""

    def leave(self) -> None:  # noqa: B027 - there may be nothing to do
        """End."""


class LocalGroup(Group):
    def backend(self) -> Backend:
        from lazycast.backends.local import LocalBackend

        return LocalBackend(self.rank, self.size, self.folder / "meeting")

    def renewed(self, left: Sequence[int]) -> Backend:
        from lazycast.backends.local import LocalBackend

        if len(left) == self.size:
            return self.backend()
        return LocalBackend(left.index(self.rank), len(left), self.folder / "again")


class TorchGroup(Group):
    def __init__(self, folder: Path, rank: int, size: int) -> None:
        super().__init__(folder, rank, size)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._join("store", rank, size)

    def _join(self, store: str, rank: int, size: int) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{self.folder}/{store}", rank=rank, world_size=size)

    def backend(self) -> Backend:
        from lazycast.backends.torch_distributed import TorchBackend

        return TorchBackend()

    def renewed(self, left: Sequence[int]) -> Backend:
        import torch.distributed as dist

        if len(left) < self.size:
            dist.destroy_process_group()
            self._join("store again", left.index(self.rank), len(left))
        return self.backend()

    def leave(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


class MPIGroup(Group):
    def backend(self) -> Backend:
        from lazycast.backends.mpi import MPIBackend

        return MPIBackend()

    def renewed(self, left: Sequence[int]) -> Backend | None:
        return self.backend() if len(left) == self.size else None

    def leave(self) -> None:
        sys.stdout.flush()
        os._exit(0)  # MPI_Finalize of Open MPI hangs now and then after a death


def join(backend: str, folder: Path, rank: int, size: int) -> Group:
    """Become one of the ranks."""
    return {"local": LocalGroup, "torch": TorchGroup, "mpi": MPIGroup}[backend](folder, rank, size)


class Interrupted(Backend):
    """A backend whose second exchange, in the middle of a construction, is interrupted by something."""

    def __init__(self, inner: Backend, interrupt: Callable[[], Any]) -> None:
        self._inner, self._interrupt = inner, interrupt
        self.name, self.rank, self.size = inner.name, inner.rank, inner.size

    @classmethod
    def from_environment(cls) -> Backend:
        raise NotImplementedError

    def open(self, *, timeout_s: float) -> Context:
        return _InterruptedContext(self._inner.open(timeout_s=timeout_s), self._interrupt)


class _InterruptedContext(Context):
    def __init__(self, inner: Context, interrupt: Callable[[], Any]) -> None:
        self._inner, self._interrupt, self._exchanges = inner, interrupt, 0

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        self._exchanges += 1
        if self._exchanges == 2:
            self._interrupt()
        return self._inner.exchange(blob, timeout_s=timeout_s)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        return self._inner.connect(neighbours, sink, timeout_s=timeout_s)

    def close(self) -> None:
        self._inner.close()

"""The ranks of the model, and the collectives that it needs besides lazycast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from lazycast import LazyBroadcast

Ints = npt.NDArray[np.int64]


class Ranks(ABC):
    """This process among the ranks of the model.

    Attributes:
        backend: how lazycast is to connect the same ranks.
        shards: among how many ranks the model's weights are split. 1 where there is no all-reduce: then each has all.
    """

    backend = "local"
    rank = 0
    size = 1
    shards = 1

    @abstractmethod
    def all_reduce(self, array: Ints) -> None:
        """Add up the ranks' arrays, in place. Collective."""

    @abstractmethod
    def broadcast_object(self, value: object) -> Any:
        """Return rank 0's object. Collective. Raises NotImplementedError where there is no such thing."""

    @abstractmethod
    def close(self) -> None:
        """End the group. After everything of lazycast has been closed."""

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order. Collective.

        A `LazyBroadcast` has one root, so each rank is the root of one.
        """
        gathered = []
        for root in range(self.size):
            with LazyBroadcast[Any, Any](backend=self.backend, root=root, name=f"gather from {root}") as lazy:
                gathered.append(lazy.broadcast(value))
        return gathered


class TorchRanks(Ranks):
    """The ranks of torch.distributed's default group, which is made here if it is not there."""

    backend = "torch"

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self._mine = not dist.is_initialized()
        if self._mine:
            dist.init_process_group("gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.shards = self.size

    def all_reduce(self, array: Ints) -> None:
        import torch

        self._dist.all_reduce(torch.from_numpy(array))

    def broadcast_object(self, value: object) -> Any:
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        if self._mine:
            self._dist.destroy_process_group()


class MPIRanks(Ranks):
    """The ranks of MPI's world."""

    backend = "mpi"

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        self.shards = self.size

    def all_reduce(self, array: Ints) -> None:
        self._comm.Allreduce(self._mpi.IN_PLACE, array)

    def broadcast_object(self, value: object) -> Any:
        return self._comm.bcast(value, root=0)

    def close(self) -> None:
        """mpi4py finalizes MPI when the process ends."""


class LocalRanks(Ranks):
    """Processes that `lazycast.launch` has started: no collectives, so no rank shares the model's work."""

    def __init__(self) -> None:
        with LazyBroadcast[Any, Any](backend="local", name="who am I") as lazy:
            self.rank, self.size = lazy.rank, lazy.size

    def all_reduce(self, array: Ints) -> None:
        """The array has everything already."""

    def broadcast_object(self, value: object) -> Any:
        raise NotImplementedError("plain processes have no broadcast_object_list: use torch or MPI")

    def close(self) -> None:
        """The processes end when their function returns."""


KINDS: dict[str, type[Ranks]] = {"torch": TorchRanks, "mpi": MPIRanks, "local": LocalRanks}

"""The ways that are compared. To add one: a class with a name, its backend, and `run`, and its place in `WAYS`.

Every way has its own group, communicator or object, so that none meets another's messages. Rank 0 is the root.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.bench.payloads import Source
from lazycast.bench.plan import COLUMNS, MIB
from lazycast.bench.sync import TIMEOUT_S
from lazycast.bench.touch import buffer_of


class Way(ABC):
    """One way to bring an object from rank 0 to all ranks. Constructed on every rank, in the same order."""

    name: ClassVar[str]
    #: The backend it needs; None runs on any.
    backend: ClassVar[str | None] = None
    #: What can be done with its values.
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    #: Whether only the root does anything: no broadcast, but a measure for one.
    root_only: ClassVar[bool] = False

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @classmethod
    def available(cls, backend: str) -> bool:
        """Whether it can run on ranks started with this backend."""
        return cls.backend in (None, backend)

    @classmethod
    def takes(cls, source: Source) -> bool:
        """Whether it can send such payloads."""
        return True

    def prepare(self, like: Any) -> None:  # noqa: B027  # most ways have nothing to prepare
        """Get ready for payloads like this one, outside the timed part."""

    @abstractmethod
    def run(self, payload: Any) -> Any:
        """Broadcast the root's `payload` (None elsewhere) and return this rank's value."""

    def shared_nbytes(self) -> int:
        """Return how much shared memory this rank has taken for it, free or not."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Give up what it holds."""


class Lazycast(Way):
    """This library, as it comes."""

    name = "lazycast"
    agree: ClassVar[bool] = True
    values: ClassVar[Literal["private", "copy"]] = "private"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._lazy: LazyBroadcast[Any, Any] = LazyBroadcast(
            name=self.name, agree=self.agree, values=self.values, timeout_s=TIMEOUT_S
        )

    def run(self, payload: Any) -> Any:
        return self._lazy.broadcast(payload)

    def shared_nbytes(self) -> int:
        return self._lazy.stats().arena_nbytes

    def close(self) -> None:
        self._lazy.close()


class LazycastNoAgree(Lazycast):
    """This library, without the round trip that makes ranks fail together."""

    name = "lazycast agree=False"
    agree = False


class LazycastCopy(Lazycast):
    """This library, with values in memory of their own: for what will be overwritten."""

    name = "lazycast values=copy"
    values = "copy"


class _Ready(Way):
    """A way into a buffer that every rank has ready, made like the payload and warm."""

    @classmethod
    def takes(cls, source: Source) -> bool:
        return source.is_buffer

    def prepare(self, like: Any) -> None:
        self._value = like.clone() if hasattr(like, "clone") else like.copy()


class _Torch(Way):
    """A way over a gloo group of its own."""

    backend = "torch"

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        super().__init__(rank)
        self._group = dist.new_group(backend="gloo")


class TorchObjectList(_Torch):
    """torch.distributed's object broadcast."""

    name = "broadcast_object_list"

    def run(self, payload: Any) -> Any:
        import torch.distributed as dist

        box = [payload]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class TorchRaw(_Ready, _Torch):
    """torch.distributed's broadcast of a tensor: no object, and receivers that know its size."""

    name = "dist.broadcast (ready buffer)"

    def run(self, payload: Any) -> Any:
        import torch
        import torch.distributed as dist

        value = payload if self.rank == 0 else self._value
        dist.broadcast(torch.from_numpy(buffer_of(value)), src=0, group=self._group)
        return value


class VllmQueue(_Torch):
    """vLLM's shared-memory queue as its groups make it: chunks of 4 MiB, and through a socket what is larger."""

    name = "vLLM MessageQueue"
    _MODULE: ClassVar[str] = "vllm.distributed.device_communicators.shm_broadcast"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._queue: Any = self._create(import_module(self._MODULE).MessageQueue)

    def _create(self, kind: Any) -> Any:
        return kind.create_from_process_group(self._group, 4 * MIB, 6)

    @classmethod
    def available(cls, backend: str) -> bool:
        if not super().available(backend) or find_spec("vllm") is None:
            return False
        try:
            module = import_module(cls._MODULE)
        except ImportError:  # it is installed, and not for this machine
            return False
        return cls._has(module.MessageQueue)

    @classmethod
    def _has(cls, kind: Any) -> bool:
        """Whether this version of it can do what is wanted."""
        return hasattr(kind, "create_from_process_group")

    def run(self, payload: Any) -> Any:
        return self._queue.broadcast_object(payload)

    def shared_nbytes(self) -> int:
        if self.rank != 0:
            return 0
        parts = [self._queue.buffer, getattr(self._queue, "tensor_arena", None)]
        names = [part.shared_memory.name for part in parts if part is not None]
        return sum(os.stat(f"/dev/shm/{name}").st_blocks * 512 for name in names)

    def close(self) -> None:
        self._queue = None  # the last reference: it has no other end


class VllmArena(VllmQueue):
    """The same with a shared arena for tensors of 8 MiB and more, as its executor makes one where that is switched on.

    Every rank gets the same memory, so nobody may overwrite a value.
    """

    name = "vLLM MessageQueue (tensor arena)"
    columns = ("holds", "read")
    _OPTION: ClassVar[str] = "enable_shm_tensor_arena"

    @classmethod
    def takes(cls, source: Source) -> bool:
        return source.kind == "tensor"

    @classmethod
    def _has(cls, kind: Any) -> bool:
        return cls._OPTION in inspect.signature(kind).parameters

    def _create(self, kind: Any) -> Any:
        import torch.distributed as dist

        readers = list(range(1, dist.get_world_size()))
        handle = [None]
        if self.rank == 0:
            many = len(readers)
            queue = kind(many, many, local_reader_ranks=readers, max_chunk_bytes=16 * MIB, **{self._OPTION: True})
            handle = [queue.export_handle()]
        dist.broadcast_object_list(handle, src=0, group=self._group)
        if self.rank != 0:
            queue = kind.create_from_handle(handle[0], self.rank)
        queue.wait_until_ready()
        return queue


class MpiBcast(Way):
    """mpi4py's object broadcast."""

    name = "mpi4py bcast"
    backend = "mpi"

    def __init__(self, rank: int) -> None:
        from mpi4py import MPI

        super().__init__(rank)
        self._comm = MPI.COMM_WORLD.Dup()

    def run(self, payload: Any) -> Any:
        return self._comm.bcast(payload, root=0)

    def close(self) -> None:
        self._comm.Free()


class MpiPkl5(MpiBcast):
    """mpi4py's object broadcast with arrays out of band."""

    name = "mpi4py pkl5 bcast"

    def __init__(self, rank: int) -> None:
        from mpi4py.util import pkl5

        super().__init__(rank)
        self._pkl5 = pkl5.Intracomm(self._comm)

    def run(self, payload: Any) -> Any:
        return self._pkl5.bcast(payload, root=0)


class MpiRaw(_Ready, MpiBcast):
    """MPI's broadcast of a buffer: no object, and receivers that know its size."""

    name = "MPI Bcast (ready buffer)"

    def run(self, payload: Any) -> Any:
        value = payload if self.rank == 0 else self._value
        self._comm.Bcast(buffer_of(value), root=0)
        return value


class Memcpy(_Ready):
    """One warm copy in the root's own memory, with nobody else to reach: the least that a copy costs here."""

    name = "one memcpy"
    root_only = True

    def run(self, payload: Any) -> Any:
        if self.rank != 0:
            return None
        into, source = buffer_of(self._value), buffer_of(payload)
        assert into is not None
        assert source is not None
        np.copyto(into, source)
        return self._value


WAYS: tuple[type[Way], ...] = (
    Lazycast,
    LazycastNoAgree,
    LazycastCopy,
    TorchObjectList,
    TorchRaw,
    VllmQueue,
    VllmArena,
    MpiBcast,
    MpiPkl5,
    MpiRaw,
    Memcpy,
)


def available(backend: str, only: tuple[str, ...] = ()) -> list[type[Way]]:
    """Return the ways that can run on ranks of this backend, of those named in `only` if it names any."""
    return [way for way in WAYS if (not only or way.name in only) and way.available(backend)]

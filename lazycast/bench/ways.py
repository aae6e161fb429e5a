"""The ways that are compared. To add one: a class with a name, `available` and `run`, and its place in `WAYS`.

Every way has its own group, communicator or object, so that none meets another's messages. Rank 0 is the root.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.bench.sync import TIMEOUT_S
from lazycast.bench.touch import buffer_of


class Way(ABC):
    """One way to bring an object from rank 0 to all ranks. Constructed on every rank, in the same order."""

    name: ClassVar[str]
    #: Whether it takes arrays and tensors only, into a buffer that is ready.
    buffers_only: ClassVar[bool] = False
    #: Whether only the root does anything: no broadcast, but a measure for one.
    root_only: ClassVar[bool] = False

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @classmethod
    @abstractmethod
    def available(cls, backend: str) -> bool:
        """Whether it can run on ranks started with this backend."""

    def prepare(self, like: Any) -> None:  # noqa: B027  # most ways have nothing to prepare
        """Get ready for payloads like this one, outside the timed part."""

    @abstractmethod
    def run(self, payload: Any) -> Any:
        """Broadcast the root's `payload` (None elsewhere) and return this rank's value."""

    def close(self) -> None:  # noqa: B027
        """Give up what it holds."""


class Lazycast(Way):
    """This library, as it comes."""

    name = "lazycast"
    agree: ClassVar[bool] = True

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._lazy: LazyBroadcast[Any, Any] = LazyBroadcast(name=self.name, agree=self.agree, timeout_s=TIMEOUT_S)

    @classmethod
    def available(cls, backend: str) -> bool:
        return True

    def run(self, payload: Any) -> Any:
        return self._lazy.broadcast(payload)

    def close(self) -> None:
        self._lazy.close()


class LazycastNoAgree(Lazycast):
    """This library, without the round trip that makes ranks fail together."""

    name = "lazycast agree=False"
    agree = False


class _Ready(Way):
    """A way into a buffer that every rank has ready, made like the payload and warm."""

    buffers_only = True

    def prepare(self, like: Any) -> None:
        self._value = like.clone() if hasattr(like, "clone") else like.copy()


class TorchObjectList(Way):
    """torch.distributed's object broadcast."""

    name = "broadcast_object_list"

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        super().__init__(rank)
        self._group = dist.new_group(backend="gloo")

    @classmethod
    def available(cls, backend: str) -> bool:
        return backend == "torch"

    def run(self, payload: Any) -> Any:
        import torch.distributed as dist

        box = [payload]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class TorchRaw(_Ready):
    """torch.distributed's broadcast of a tensor: no object, and receivers that know its size."""

    name = "dist.broadcast (ready buffer)"

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        super().__init__(rank)
        self._group = dist.new_group(backend="gloo")

    @classmethod
    def available(cls, backend: str) -> bool:
        return backend == "torch"

    def run(self, payload: Any) -> Any:
        import torch
        import torch.distributed as dist

        value = payload if self.rank == 0 else self._value
        dist.broadcast(torch.from_numpy(buffer_of(value)), src=0, group=self._group)
        return value


class VllmQueue(Way):
    """vLLM's shared-memory queue with the chunks that vLLM gives it: 4 MiB, and through a socket what is larger."""

    name = "vLLM MessageQueue"
    _MODULE: ClassVar[str] = "vllm.distributed.device_communicators.shm_broadcast"

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        super().__init__(rank)
        queue = import_module(self._MODULE).MessageQueue
        self._queue = queue.create_from_process_group(dist.new_group(backend="gloo"), 4 << 20, 6)

    @classmethod
    def available(cls, backend: str) -> bool:
        if backend != "torch" or find_spec("vllm") is None:
            return False
        try:
            import_module(cls._MODULE)
        except ImportError:  # it is installed, and not for this machine
            return False
        return True

    def run(self, payload: Any) -> Any:
        return self._queue.broadcast_object(payload)


class MpiBcast(Way):
    """mpi4py's object broadcast."""

    name = "mpi4py bcast"

    def __init__(self, rank: int) -> None:
        from mpi4py import MPI

        super().__init__(rank)
        self._comm = MPI.COMM_WORLD.Dup()

    @classmethod
    def available(cls, backend: str) -> bool:
        return backend == "mpi"

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

    @classmethod
    def available(cls, backend: str) -> bool:
        return True

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
    TorchObjectList,
    TorchRaw,
    VllmQueue,
    MpiBcast,
    MpiPkl5,
    MpiRaw,
    Memcpy,
)


def available(backend: str, only: tuple[str, ...] = ()) -> list[type[Way]]:
    """Return the ways that can run on ranks of this backend, of those named in `only` if it names any."""
    return [way for way in WAYS if (not only or way.name in only) and way.available(backend)]

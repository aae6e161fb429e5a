"""vLLM's queue in shared memory."""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from typing import Any, ClassVar

from lazycast.tools.bench.payloads import Source
from lazycast.tools.bench.plan import MIB
from lazycast.tools.bench.ways.over_torch import OverTorch


class VllmQueue(OverTorch):
    """vLLM's shared-memory queue as its groups make it: chunks of 4 MiB, and through a socket what is larger."""

    name = "vLLM MessageQueue"
    needs = "vllm"
    _MODULE: ClassVar[str] = "vllm.distributed.device_communicators.shm_broadcast"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._queue: Any = self._create(import_module(self._MODULE).MessageQueue)

    def _create(self, kind: Any) -> Any:
        return kind.create_from_process_group(self._group, 4 * MIB, 6)

    @classmethod
    def missing(cls) -> str | None:
        lacks = super().missing()
        if lacks is not None:
            return lacks
        try:
            module = import_module(cls._MODULE)
        except ImportError as exc:  # it is installed, and not for this machine
            return f"vllm cannot be imported: {exc}"
        return None if cls._has(module.MessageQueue) else "this vllm has another MessageQueue"

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

"""Broadcasts of torch.distributed, and of what stands on it."""

from __future__ import annotations

import os
from typing import Any

from lazycast.tools.bench.touch import buffer_of
from lazycast.tools.bench.ways.base import Ready, Way


class OverTorch(Way):
    """A way over a gloo group of its own."""

    backend = "torch"

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        super().__init__(rank)
        self._group = dist.new_group(backend="gloo")


class TorchObjectList(OverTorch):
    """torch.distributed's object broadcast."""

    name = "broadcast_object_list"

    def run(self, payload: Any) -> Any:
        import torch.distributed as dist

        box = [payload]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class TorchRaw(Ready, OverTorch):
    """torch.distributed's broadcast of a tensor: no object, and receivers that know its size."""

    name = "dist.broadcast (ready buffer)"

    def run(self, payload: Any) -> Any:
        import torch
        import torch.distributed as dist

        value = payload if self.rank == 0 else self._value
        dist.broadcast(torch.from_numpy(buffer_of(value)), src=0, group=self._group)
        return value


class AccelerateObjectList(OverTorch):
    """accelerate's object broadcast, which has no group of its own: it takes the world's, where nobody else sends."""

    name = "accelerate broadcast_object_list"
    needs = "accelerate"

    def __init__(self, rank: int) -> None:
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        super().__init__(rank)
        # What torchrun tells ranks, and accelerate asks for; the ranks of a benchmark are on one machine.
        os.environ.setdefault("LOCAL_RANK", str(rank))
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(dist.get_world_size()))
        threads = torch.get_num_threads()
        PartialState(cpu=True)
        torch.set_num_threads(threads)  # it takes fewer, which would be another torch for the other ways

    def run(self, payload: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([payload], from_process=0)[0]

"""A stand-in for the GPUs of all ranks: kernels that take time and no processor, and all-reduces at which ranks meet.

`TpModelWorker.forward_batch_generation` becomes: the real `ForwardBatch.init_new`; a copy of new features, as
`cudaMemcpy` from pageable memory costs the calling thread; a launch. Step n of the group starts when all ranks have
launched it and step n-1 is done, and takes as long as the constants say. In the overlap loop `Event.synchronize` waits
for it, in the normal loop the worker does. Waiting sleeps, where CUDA spins: with two cores for two ranks and all the
rest, spinning would say nothing.
"""

from __future__ import annotations

import importlib
import mmap
import time
from typing import Any

import numpy as np

DECODE_S = 0.010
EXTEND_S = 0.010
TOKEN_S = 0.000025  # of a prefill: 808 tokens take 30 ms in all
_STEPS = 1 << 16
_LOOK_S = 0.0002


class Board:
    """When each rank has launched each step, and how long the device of rank 0 was at work: memory that ranks share."""

    def __init__(self, ranks: int) -> None:
        """Make it before ranks are forked."""
        size = ranks * _STEPS
        numbers = np.frombuffer(mmap.mmap(-1, (size + 1) * 8), np.float64)
        self.launched, self.busy_s = numbers[:size].reshape(ranks, _STEPS), numbers[size:]


class Device:
    """One rank's."""

    def __init__(self, board: Board, rank: int) -> None:
        self._board, self._rank = board, rank
        self._costs: dict[int, float] = {}
        self._done_step, self._done_s = 0, 0.0
        self.last = 0  # launched

    def launch(self, cost_s: float) -> int:
        """Return the number of a step that will take so long."""
        self.last += 1
        self._costs[self.last] = cost_s
        self._board.launched[self._rank, self.last % _STEPS] = time.monotonic()
        return self.last

    def wait(self, step: int) -> None:
        """Sleep until a step is done."""
        while self._done_step < step:
            number = self._done_step + 1
            row = self._board.launched[:, number % _STEPS]
            while not row.all():
                time.sleep(_LOOK_S)
            cost_s = self._costs.pop(number)
            self._done_s = max(float(row.max()), self._done_s) + cost_s
            self._done_step = number
            if self._rank == 0:
                self._board.busy_s[0] += cost_s
        left_s = self._done_s - time.monotonic() if self._done_step == step else 0.0
        if left_s > 0:
            time.sleep(left_s)


class Event:
    """In place of `torch.cpu.Event`, which does nothing."""

    device: Device

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._step = 0

    def record(self, stream: object = None) -> None:
        """Stand for all that has been launched."""
        self._step = self.device.last

    def synchronize(self) -> None:
        """Wait for it."""
        self.device.wait(self._step)

    def wait(self, stream: object = None) -> None:
        """Let a stream wait, which takes no time of the caller's."""


_staging: dict[Any, Any] = {}


def _to_device(feature: Any) -> Any:
    """What a copy from pageable memory costs the thread that asks for it: one into the driver's own buffer."""
    key = tuple(feature.shape), feature.dtype
    if key not in _staging:
        _staging[key] = feature.clone()
    return _staging[key].copy_(feature)


def _copy_new_features(batch: Any) -> None:
    for req in batch.reqs:
        inputs = req.multimodal_inputs
        if inputs is None or getattr(req, "_on_device", False):
            continue
        req._on_device = True
        for item in inputs.mm_items:
            if hasattr(item.feature, "clone"):
                item.feature = _to_device(item.feature)


def install(board: Board, rank: int) -> None:
    """Take the place of this process's forward pass."""
    import torch

    batches: Any = importlib.import_module("sglang.srt.model_executor.forward_batch_info")
    logits: Any = importlib.import_module("sglang.srt.layers.logits_processor")
    worker: Any = importlib.import_module("sglang.srt.managers.tp_worker").TpModelWorker
    results: Any = importlib.import_module("sglang.srt.managers.utils")
    device = Event.device = Device(board, rank)
    vars(torch.cpu)["Event"] = Event

    def forward_batch_generation(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batches.ForwardBatch.init_new(batch, self.model_runner, return_hidden_states_before_norm=False)
        size = batch.batch_size()
        if batch.forward_mode.is_extend():
            _copy_new_features(batch)
            step = device.launch(EXTEND_S + TOKEN_S * batch.extend_num_tokens)
        else:
            step = device.launch(DECODE_S)
        if not self.enable_overlap:
            device.wait(step)
        return results.GenerationBatchResult(
            logits_output=logits.LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.full((size,), 7, dtype=torch.int64),
            can_run_cuda_graph=True,
        )

    worker.forward_batch_generation = forward_batch_generation

"""Tokens that tell more than those of a model with random weights, which says the same to everything.

Here a token is the sum of its prompt's, modulo a number: it depends on each pad value, and so on the hash of each image
as the scheduler has it that samples.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from lazycast.tools.bench.sglang_loop.tiny import MERGED, PATCH

#: In a server's environment: "forward" computes the model too, "none" only the tokens.
SUMS = "LAZYCAST_TEST_SUMS"
_MODULUS = 390
_VISION = {
    "model_type": "qwen2_5_vl",
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "num_heads": 2,
    "hidden_act": "silu",
    "in_channels": 3,
    "in_chans": 3,
    "patch_size": PATCH,
    "window_size": 8 * PATCH,
    "spatial_merge_size": MERGED,
    "spatial_patch_size": PATCH,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "fullatt_block_indexes": [1],
}


def install(kind: str) -> None:
    """Take the place of what samples, in this process. Data parallel attention computes nothing on a CPU."""
    import torch

    logits: Any = importlib.import_module("sglang.srt.layers.logits_processor")
    results: Any = importlib.import_module("sglang.srt.managers.utils")
    worker: Any = importlib.import_module("sglang.srt.managers.tp_worker").TpModelWorker
    original = worker.forward_batch_generation

    def forward_batch_generation(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if kind == "forward":
            made = original(self, batch, *args, **kwargs)
            if made.next_token_ids is None:  # a stage that is not the last
                return made
        else:
            nothing = logits.LogitsProcessorOutput(next_token_logits=None)
            made = results.GenerationBatchResult(logits_output=nothing, can_run_cuda_graph=True)
        sums = [sum(req.origin_input_ids) % _MODULUS for req in batch.reqs or ()]
        made.next_token_ids = torch.tensor(sums, dtype=torch.int64)
        return made

    worker.forward_batch_generation = forward_batch_generation


def newer(model: Path) -> None:
    """Make a Qwen2.5-VL of the model in a folder: that one has stages, and encoders that are parallel by data."""
    for name, changed in {
        "config.json": {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vision_config": _VISION,
        },
        "preprocessor_config.json": {"processor_class": "Qwen2_5_VLProcessor"},
    }.items():
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

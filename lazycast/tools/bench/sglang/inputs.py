"""Raw inputs of requests, in the form that the installed release of SGLang hands to its scheduler.

Tensors have the sizes of a vision model's: an image is 1600 patches of 1176 float32 numbers, 7.5 MB.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

PATCHES, WIDTH = 1600, 1176
_GRID = (1, 40, 40)  # PATCHES
_TOKENS = 400  # of one image in the prompt
_IMAGE_TOKEN = 151655


def _batch() -> Any:
    return importlib.import_module("sglang.srt.managers.schedule_batch")


def bundles() -> bool:
    """Whether all images of a request are one item (until 0.5.9)."""
    return hasattr(_batch().MultimodalInputs, "from_dict")


def tensor(seed: int, *shape: int) -> Any:
    """Return float32 numbers that `seed` determines."""
    import torch

    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def item(modality: str, **fields: Any) -> Any:
    """Return one item. What the release's class does not declare is specific to the model."""
    batch = _batch()
    return batch.MultimodalDataItem(modality=batch.Modality[modality], **fields)


def raw(items: list[Any], tokens: int = _TOKENS, **fields: Any) -> Any:
    """Return the raw inputs of a request."""
    import torch

    fields = {
        "im_token_id": _IMAGE_TOKEN,
        "mrope_positions": torch.arange(3 * tokens).reshape(3, tokens),
        "mrope_position_delta": torch.tensor([[-tokens]]),
        **fields,
    }
    if bundles():
        return {"mm_items": items, **fields}
    fields.setdefault("input_ids", [_IMAGE_TOKEN] * tokens)
    return _batch().MultimodalProcessorOutput(mm_items=items, **fields)


def image_items(count: int, seed: int, *, patches: int = PATCHES, key: str = "feature", **fields: Any) -> list[Any]:
    """Return the items of `count` images: one bundle, or one item each.

    Args:
        key: "feature" or "precomputed_embeddings".
    """
    import torch

    grid = _GRID if patches == PATCHES else (1, 1, patches)
    if bundles():
        found = {key: tensor(seed, count * patches, WIDTH), "offsets": _offsets(range(count))}
        grids = {"image_grid_thw": torch.tensor([grid] * count)}
        return [item("IMAGE", model_specific_data=grids, **found, **fields)]
    return [
        item(
            "IMAGE",
            model_specific_data={"image_grid_thw": torch.tensor([grid])},
            **{key: tensor(1000 * seed + n, patches, WIDTH), "offsets": _offsets(range(n, n + 1))},
            **fields,
        )
        for n in range(count)
    ]


def images(count: int, seed: int, *, patches: int = PATCHES) -> Any:
    """Return a request with `count` images."""
    return raw(image_items(count, seed, patches=patches), count * _TOKENS)


def video_item(frames: int, seed: int, *, patches: int = 64) -> Any:
    """Return a video, with a place in the prompt for each frame."""
    import torch

    grid = torch.tensor([[frames, 1, patches]])
    return item(
        "VIDEO",
        feature=tensor(seed, frames * patches, WIDTH),
        offsets=_offsets(range(frames)),
        model_specific_data={"video_grid_thw": grid},
    )


def audio_item(seed: int) -> Any:
    """Return a sound, as a NumPy array."""
    return item("AUDIO", feature=tensor(seed, 80, 3000).numpy(), offsets=[(0, 99)])


def text_request(tokens: int = _TOKENS) -> Any:
    """Return what the tokenizer sends for a prompt without images."""
    io_struct = importlib.import_module("sglang.srt.managers.io_struct")
    sampling = importlib.import_module("sglang.srt.sampling.sampling_params")
    said: dict[str, Any] = {
        "rid": "0123456789abcdef" * 2,
        "input_text": "word " * tokens,
        "input_ids": list(range(tokens)),
        "sampling_params": sampling.SamplingParams(max_new_tokens=64),
        "return_logprob": False,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "stream": True,
    }
    fields = inspect.signature(io_struct.TokenizedGenerateReqInput).parameters
    wanted = {name for name, field in fields.items() if field.default is field.empty}
    return io_struct.TokenizedGenerateReqInput(**{**dict.fromkeys(wanted), **said})


def _offsets(places: range) -> list[tuple[int, int]]:
    return [(n * _TOKENS + 1, (n + 1) * _TOKENS - 2) for n in places]

"""Requests as the tokenizer sends them: prompts with images, and without."""

from __future__ import annotations

import importlib
from array import array
from typing import Any

import numpy as np

from lazycast.tools.bench.sglang_loop.tiny import IDS, MERGED, WORDS

_WIDTH = 1176  # numbers of a patch


class Prompts:
    """Makes requests. Images of one size share their numbers, but for the first, so that each has a hash of its own."""

    def __init__(self) -> None:
        self._messages: Any = importlib.import_module("sglang.srt.managers.io_struct")
        self._batch: Any = importlib.import_module("sglang.srt.managers.schedule_batch")
        self._sampling: Any = importlib.import_module("sglang.srt.sampling.sampling_params").SamplingParams
        self._times: Any = importlib.import_module("sglang.srt.observability.req_time_stats")
        self._shared: Any = importlib.import_module("sglang.srt.managers.mm_utils")
        self._bases: dict[int, Any] = {}

    def text(self, rid: str, seed: int, *, words: int = 40, tokens: int = 8) -> Any:
        """Return a request without images."""
        ids = np.random.default_rng(seed).integers(0, WORDS, words).tolist()
        return self._request(rid, ids, None, tokens)

    def images(self, rid: str, seeds: list[int], *, side: int = 40, tokens: int = 8, damaged: bool = False) -> Any:
        """Return a request with an image of `side` x `side` patches for each seed.

        Args:
            damaged: whether the last image has nothing that could be hashed.
        """
        import torch

        ids, items = [1, 2], []
        pads = side * side // MERGED**2
        for seed in seeds:
            ids.append(IDS["<|vision_start|>"])
            place = (len(ids), len(ids) + pads - 1)
            ids += [IDS["<|image_pad|>"]] * pads + [IDS["<|vision_end|>"]]
            items.append(
                self._batch.MultimodalDataItem(
                    modality=self._batch.Modality.IMAGE,
                    feature=self._pixels(side * side, seed),
                    offsets=[place],
                    model_specific_data={"image_grid_thw": torch.tensor([[1, side, side]])},
                )
            )
        ids += [3, 4]
        if damaged:
            items[-1].feature = "no image"
        raw = self._batch.MultimodalProcessorOutput(
            mm_items=items,
            input_ids=ids,
            im_token_id=IDS["<|image_pad|>"],
            im_start_id=IDS["<|vision_start|>"],
            im_end_id=IDS["<|vision_end|>"],
            mrope_positions=torch.arange(len(ids)).expand(3, -1).contiguous(),
            mrope_position_delta=torch.tensor([[0]]),
        )
        return self._request(rid, ids, raw, tokens)

    def embedding(self, request: Any) -> Any:
        """Return a request for the embedding of another's prompt."""
        names = ("rid", "input_text", "input_ids", "mm_inputs", "token_type_ids", "sampling_params", "time_stats")
        return self._messages.TokenizedEmbeddingReqInput(**{name: getattr(request, name) for name in names})

    def hash(self, request: Any) -> None:
        """Hash the images of a request, as the tokenizer does if it is told to."""
        for item in request.mm_inputs.mm_items:
            item.set_pad_value()

    def share(self, request: Any) -> Any:
        """Let tensors travel by shared memory, as the tokenizer does. Done last, when they are not touched any more."""
        if request.mm_inputs is not None:
            for item in request.mm_inputs.mm_items:
                item.feature = self._shared._wrap_tensor_or_list(item.feature, precomputed_hash=item.hash)
        return request

    def abort(self, rid: str, *, every: bool = False) -> Any:
        """Return an abort."""
        return self._messages.AbortReq(rid=rid, abort_all=every)

    def _pixels(self, patches: int, seed: int) -> Any:
        import torch

        if patches not in self._bases:
            numbers = np.random.default_rng(patches).standard_normal((patches, _WIDTH), dtype=np.float32)
            self._bases[patches] = torch.from_numpy(numbers)
        pixels = self._bases[patches].clone()
        pixels[0, :8] = torch.from_numpy(np.random.default_rng(seed).standard_normal(8, dtype=np.float32))
        return pixels

    def _request(self, rid: str, ids: list[int], raw: Any, tokens: int) -> Any:
        sampling = self._sampling(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        sampling.normalize(None)
        request = self._messages.TokenizedGenerateReqInput(
            rid=rid,
            input_text="",
            input_ids=array("q", ids),
            input_embeds=None,
            mm_inputs=raw,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
            time_stats=self._times.APIServerReqTimeStats(),
        )
        request.wrap_pickle_fields()
        return request

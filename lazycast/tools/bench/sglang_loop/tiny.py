"""Writes the folder of a Qwen2-VL that is too small to be one: a config for random weights, 400 words."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_WORDS = [f"w{n}" for n in range(392)]
IDS = {token: number for number, token in enumerate([*_WORDS, *_SPECIAL])}
WORDS = len(_WORDS)
VOCABULARY = 512  # padded; no text has the rest
PATCH, MERGED = 14, 2


def write(folder: Path) -> Path:
    """Write the model's files; return the folder."""
    tokenizers: Any = importlib.import_module("tokenizers")  # comes with SGLang
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([tokenizers.AddedToken(word, special=True, normalized=False) for word in _SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in _files().items():
        (folder / name).write_text(json.dumps(content, indent=1))
    return folder


def _files() -> dict[str, dict[str, Any]]:
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "w0",
            "model_max_length": 32768,
            "added_tokens_decoder": {str(IDS[token]): {"content": token, **flags} for token in _SPECIAL},
            "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": MERGED,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "generation_config.json": {"eos_token_id": IDS["<|im_end|>"]},
        "config.json": _config(),
    }


def _config() -> dict[str, Any]:
    tokens = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "vision_token_id": "<|vision_pad|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    hidden, layers = 64, 2
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "float32",
        **{name: IDS[token] for name, token in tokens.items()},
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": layers,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGED,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
    }

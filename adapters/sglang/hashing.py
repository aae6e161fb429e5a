"""Hashes the items of a request before SGLang does: at the same time, and without copies of their tensors.

Guarantees:

* The result is SGLang's own: by its method of an item; a tensor's hash is taken here only where the release, asked at
  the first request, gives the same for tensors of the same type.
* Only items whose tensors lie in this process's ordinary memory, since devices and their shared handles belong to one
  thread. SHA-256 lets go of the interpreter's lock, so threads are enough. What one item raises is raised.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib
import os
import sys
from typing import Any

import numpy as np

from lazycast.codec.tensor_memory import items_of

from .binding import skips_hashing

_MAX_THREADS = 8
_SMALL_NBYTES = 1 << 20  # takes less time to hash than a thread to wake


@functools.lru_cache(maxsize=1)
def _threads(pid: int) -> concurrent.futures.ThreadPoolExecutor:
    """Return the threads of this process: those of a forked child's parent are not there."""
    count = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="lazycast-sglang-hash")


def hash_beforehand(items: list[Any], *, copies: bool) -> None:
    """Set hashes and pad values on items that have none and take a while.

    What is left out is hashed by whoever looks at the items next.

    Args:
        copies: whether the release copies what it hashes, twice; then a tensor's hash is taken here.
    """
    large = [item for item in items if item.pad_value is None and _nbytes(item) >= _SMALL_NBYTES]
    if copies and not skips_hashing():
        todo = [functools.partial(_hash_in_place, item) for item in large]
    else:
        todo = [item.set_pad_value for item in large]
    if len(todo) > 1:
        for done in [_threads(os.getpid()).submit(one) for one in todo]:
            done.result()
    elif copies and todo:
        todo[0]()


def _hash_in_place(item: Any) -> None:
    value = item.feature if item.feature is not None else item.precomputed_embeddings
    torch = sys.modules["torch"]
    if item.hash is None and type(value) is torch.Tensor and value.is_contiguous() and _is_sha256(value.dtype):
        item.hash = _sha256(value)
    item.set_pad_value()


def _sha256(tensor: Any) -> int:
    raw = items_of(tensor.detach().reshape(-1).view(sys.modules["torch"].uint8)).data
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")


@functools.lru_cache
def _is_sha256(dtype: Any) -> bool:
    """Whether this release hashes contiguous tensors of a type as `_sha256` does (bfloat16: not until 0.5.9)."""
    sample = sys.modules["torch"].arange(24, device="cpu").to(dtype).reshape(4, 6)
    hash_feature = importlib.import_module("sglang.srt.managers.mm_utils").hash_feature
    return bool(hash_feature(sample) == _sha256(sample))


def _nbytes(item: Any) -> int:
    """Return how much there is to hash of an item, as far as it is of a plain kind; else 0."""
    value = item.feature if item.feature is not None else item.precomputed_embeddings
    if type(value) is np.ndarray:
        return value.nbytes
    torch = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor and value.is_cpu:
        return int(value.numel() * value.element_size())
    return 0

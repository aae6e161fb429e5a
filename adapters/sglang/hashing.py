"""Hashes the items of a request at the same time, by SGLang's own method of an item.

Guarantees: only items whose tensors lie in this process's ordinary memory, since devices and their shared handles
belong to one thread. SHA-256 lets go of the interpreter's lock, so threads are enough. What one item raises is raised.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import sys
from typing import Any

import numpy as np

_MAX_THREADS = 8
_SMALL_NBYTES = 1 << 20  # takes less time to hash than a thread to wake


@functools.lru_cache(maxsize=1)
def _threads(pid: int) -> concurrent.futures.ThreadPoolExecutor:
    """Return the threads of this process: those of a forked child's parent are not there."""
    count = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="lazycast-sglang-hash")


def hash_beforehand(items: list[Any]) -> None:
    """Set hashes and pad values on items that have none, if there are several that take a while.

    What is left out is hashed by whoever looks at the items next.
    """
    large = [item for item in items if item.pad_value is None and _nbytes(item) >= _SMALL_NBYTES]
    if len(large) > 1:
        for done in [_threads(os.getpid()).submit(item.set_pad_value) for item in large]:
            done.result()


def _nbytes(item: Any) -> int:
    """Return how much there is to hash of an item, as far as it is of a plain kind; else 0."""
    value = item.feature if item.feature is not None else item.precomputed_embeddings
    if type(value) is np.ndarray:
        return value.nbytes
    torch = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor and value.is_cpu:
        return int(value.numel() * value.element_size())
    return 0

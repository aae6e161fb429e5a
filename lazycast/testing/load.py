"""Many casts at once."""

from __future__ import annotations

import concurrent.futures
import hashlib
import random
from typing import Any

import numpy as np

from lazycast.core.future import CastFuture
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, same

_CASTS = 1000
_THREADS = 4


def _nbytes(key: int) -> int:
    """Sizes from 0 bytes to 32 MiB, most of them small."""
    if key % 500 == 499:
        return 32 << 20
    return (0, 1, 100, 4096, 65_535, 70_000)[key % 6] + (1 << 20) * (key % 97 == 96)


def _payload(key: int) -> dict[str, Any]:
    return {"key": key, "data": np.full(_nbytes(key), key % 251, np.uint8)}


def digest(payload: dict[str, Any]) -> tuple[int, int, str]:
    """The materializer of this test."""
    data = payload["data"]
    return payload["key"], data.nbytes, hashlib.blake2b(data, digest_size=16).hexdigest()


@behaviour()
def a_thousand_keyed_casts_from_several_threads_in_any_order(rank: Rank) -> None:
    order = list(range(_CASTS))
    random.Random(rank.rank).shuffle(order)
    with rank.lazy(digest, timeout_s=4 * TIMEOUT_S) as lazy:

        def ask(part: list[int]) -> dict[int, CastFuture[Any]]:
            return {key: lazy.broadcast_async(_payload(key) if lazy.is_root else None, key=key) for key in part}

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(ask, [order[n::_THREADS] for n in range(_THREADS)]))
        for futures in parts:
            for key, future in futures.items():
                same(future.result(), digest(_payload(key)), f"key {key}")
        stats = lazy.stats()
        same((stats.casts, stats.resolved, stats.pending, stats.unasked), (_CASTS, _CASTS, 0, 0), "counts")

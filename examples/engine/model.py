"""A model that is none: it takes the time of one, and its tokens depend on every pixel and on every rank's part.

Arithmetic is exact (integers), so its tokens do not depend on how many ranks share the work, and ranks can be compared.
"""

from __future__ import annotations

import time
import zlib

import numpy as np

from .photos import Pixels
from .ranks import Ints, Ranks

WIDTH = 64
PRIME = 65_521  # WIDTH * PRIME**2 fits into 63 bits
VOCABULARY = 32_000
_WEIGHTS = np.random.default_rng(7).integers(0, PRIME, (WIDTH, WIDTH))


def fingerprint(pixels: Pixels | None) -> int:
    """Return the CRC-32 of all pixels: the vision tower."""
    return 0 if pixels is None else zlib.crc32(np.ascontiguousarray(pixels).data)


class Model:
    """This rank's part of the model.

    Args:
        busy_s: for how long a step keeps this rank's scheduler thread busy, as launching kernels does (seconds).
        step_s: how long a step takes in all (seconds). The rest of it is the device's work: the CPU is free.
    """

    def __init__(self, ranks: Ranks, *, busy_s: float, step_s: float) -> None:
        self._ranks, self._busy_s, self._step_s = ranks, busy_s, step_s
        self._rows = slice(ranks.rank, WIDTH, ranks.shards) if ranks.shards > 1 else slice(None)
        self._weights = _WEIGHTS[self._rows]
        self._scratch = np.random.default_rng(ranks.rank).random((128, 128), np.float32)

    @staticmethod
    def prefill(prompt: str, pixels_crc: int) -> Ints:
        """Return a new sequence's state, of shape (WIDTH,)."""
        return np.random.default_rng([zlib.crc32(prompt.encode()), pixels_crc]).integers(0, PRIME, WIDTH)

    def step(self, states: Ints) -> tuple[Ints, list[int]]:
        """Advance a batch, of shape (sequences, WIDTH), by a token each. Collective where weights are split."""
        began_s = time.perf_counter()
        while time.perf_counter() < began_s + self._busy_s:
            self._scratch @ self._scratch
        partial = states[:, self._rows] @ self._weights
        time.sleep(max(0.0, began_s + self._step_s - time.perf_counter()))
        self._ranks.all_reduce(partial)
        states = partial % PRIME
        return states, [int(token) for token in states[:, 0] % VOCABULARY]

"""Whether a request's inputs are worth a cast, or are made at once on each rank.

Guarantees:

* What is decided depends on the inputs' kinds, sizes and preset hashes alone, and on one number that the entry rank has
  told: on the same inputs all ranks decide alike.
* What cannot be told by looking (tensors on a device, inputs of no known kind) is worth a cast.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .binding import Binding
from .features import is_pointer, nbytes_of

_LEAST_NBYTES, _MOST_NBYTES = 256 << 10, 64 << 20
_SAMPLE_NBYTES = 4 << 20
_CASTS = 16
#: How many times as long as a cast hashing has to take: a cast has threads of all ranks to wake, and a request that is
#: put aside waits for an iteration.
_TIMES = 2


@dataclass(frozen=True)
class Worth:
    """Decides about inputs. The same on every rank.

    Attributes:
        made_up: whether hashes are made up, by each rank another one: then ranks need the cast, and a preset hash
            counts for nothing, as with SGLang; only a pad value does.
        cast_from_nbytes: with fewer bytes to hash, inputs are not worth a cast.
        on_device: whether SGLang hashes in a buffer on the device.
    """

    binding: Binding
    made_up: bool
    cast_from_nbytes: int
    on_device: bool = False

    def is_worth_a_cast(self, raw: Any) -> bool:
        """Whether one rank should hash for all."""
        items = self._items(raw)
        if items is None:
            return True  # every rank has to learn what is wrong with it
        if self._is_preset(items):
            return False
        nbytes = nbytes_to_hash(items)
        return self.made_up or nbytes is None or nbytes >= self.cast_from_nbytes

    def is_worth_waiting(self, raw: Any) -> bool:
        """Whether a cast is worth while, and other threads than the caller's can make the inputs.

        False for what lies on a device, or is hashed there, which belongs to the caller's thread and stream.
        """
        items = None if self.on_device else self._items(raw)
        return items is not None and nbytes_to_hash(items) is not None and self.is_worth_a_cast(raw)

    def _is_preset(self, items: list[Any]) -> bool:
        """Whether nothing is left to hash."""
        if self.binding.splits:
            return not items
        return all(item.pad_value is not None or (item.hash is not None and not self.made_up) for item in items)

    def _items(self, raw: Any) -> list[Any] | None:
        try:
            return self.binding.items(raw)
        except (AttributeError, KeyError, TypeError):  # of no known kind
            return None


def nbytes_to_hash(items: list[Any]) -> int | None:
    """Return how many bytes hashing has to read; None if some do not lie in this process's ordinary memory."""
    total = 0
    for item in items:
        if item.pad_value is None:
            nbytes = _nbytes(item.feature if item.feature is not None else item.precomputed_embeddings)
            if nbytes is None:
                return None
            total += nbytes
    return total


def _nbytes(value: Any) -> int | None:
    if value is None:
        return 0
    if isinstance(value, (list, tuple)):
        parts = [_nbytes(part) for part in value]
        return None if None in parts else sum(part for part in parts if part is not None)
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_pointer(value):
        return nbytes_of(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return int(value.numel() * value.element_size())
    return None


def measured(cast: Callable[[], object]) -> int:
    """Return how many bytes this rank hashes in twice the time of a small cast: fewer are not worth one.

    Args:
        cast: makes one, and waits for it.
    Blocking: some 30 ms.
    """
    took_s = []
    for _ in range(_CASTS):
        began_s = time.perf_counter()
        cast()
        took_s.append(time.perf_counter() - began_s)
    sample = bytes(_SAMPLE_NBYTES)
    hashed_s = []
    for _ in range(3):
        began_s = time.perf_counter()
        hashlib.sha256(sample)
        hashed_s.append(time.perf_counter() - began_s)
    usual_s = sorted(took_s)[len(took_s) // 2]  # the first are slower
    nbytes = int(_TIMES * usual_s * _SAMPLE_NBYTES / min(hashed_s))
    return min(max(nbytes, _LEAST_NBYTES), _MOST_NBYTES)

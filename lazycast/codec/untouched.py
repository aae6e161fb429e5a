"""Whether a payload is what it was, for one whose value does not travel: then it goes out in its place.

Guarantees: `mark` reads all bytes of what it answers for: a sum of all, and a fingerprint that knows where they lie.
What holds anything else than plain data and arrays has no mark, and is never taken for untouched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lazycast.codec.fingerprint import fingerprint

_PLAIN = frozenset({type(None), bool, int, float, complex, str})
_MOST_ITEMS = 10_000  # of all containers
_WORD = np.dtype(np.uint64)

Mark = tuple[bytes, tuple[int, ...]]


def mark(payload: object) -> Mark | None:
    """Return what a payload is recognised by, or None if that takes more than looking at it."""
    sums: list[int] = []
    left = [payload]
    items = 0
    while left:
        one: Any = left.pop()
        kind = type(one)
        if kind in _PLAIN:
            continue
        if kind is dict or kind is list or kind is tuple:
            items += len(one)
            if items > _MOST_ITEMS:
                return None
            left += [*one.keys(), *one.values()] if kind is dict else one
        elif kind is bytes or kind is bytearray:
            sums.append(_sum(memoryview(one)))
        elif kind is np.ndarray and not one.dtype.hasobject and one.flags.c_contiguous:
            sums.append(_sum(one.reshape(-1).view(np.uint8).data) if one.nbytes else 0)
        else:
            return None
    return fingerprint(payload), tuple(sums)


def _sum(data: memoryview) -> int:
    """Add up all bytes as words, modulo 2**64: as fast as memory is read."""
    words = data.nbytes // _WORD.itemsize
    total = int(np.frombuffer(data, _WORD, words).sum(dtype=_WORD)) if words else 0
    return (total + int.from_bytes(data[words * _WORD.itemsize :], "little")) % (1 << 64)

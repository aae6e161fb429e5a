"""What a call's key and time limit may be."""

from __future__ import annotations

import math
from typing import Any

from lazycast.errors import CastTimeoutError
from lazycast.wire import MAX_KEY_NBYTES, Key

#: Longer than anybody waits, and short enough for the platform's waits (seconds).
FOR_EVER_S = 1e8


def limit(timeout_s: float | None, default_s: float, rank: int) -> tuple[float, Exception | None]:
    """Return the time limit of a call, and what to refuse it with: it must count even so."""
    if timeout_s is None:
        return min(default_s, FOR_EVER_S), None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or math.isnan(timeout_s):
        return 1.0, ValueError(f"timeout_s must be a number of seconds, got {timeout_s!r}")
    if timeout_s <= 0:
        return 1.0, CastTimeoutError(f"timeout_s={timeout_s!r}: the time was over before the call", rank=rank)
    return min(float(timeout_s), FOR_EVER_S), None


def checked_key(key: Any) -> Key | None:
    """Check a key. No rank can use a bad one, so nobody waits for this call."""
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, (str, int, bytes)):
        raise TypeError(f"a key is a str, int or bytes, got {type(key).__name__} {key!r}")
    if isinstance(key, int):
        if not -(1 << 63) <= key < 1 << 64:
            raise ValueError(f"an int key has 64 bits, got {key}")
    elif len(key) > MAX_KEY_NBYTES or len(key if isinstance(key, bytes) else key.encode()) > MAX_KEY_NBYTES:
        raise ValueError(f"a key has at most {MAX_KEY_NBYTES} bytes, got one of {len(key)}")
    return key

"""What a call's key and time limit may be."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from lazycast.errors import CastTimeoutError
from lazycast.net.wire import MAX_KEY_NBYTES, Key
from lazycast.options import exact, shown

#: Longer than anybody waits, and short enough for the platform's waits (seconds).
FOR_EVER_S = 1e8


def limit(timeout_s: float | None, default_s: float, rank: int) -> tuple[float, Exception | None]:
    """Return the time limit of a call, and what to refuse it with: it must count even so."""
    if timeout_s is None:
        return min(default_s, FOR_EVER_S), None
    given: Any = timeout_s
    try:
        seconds = float(given) if isinstance(given, Real) and given is not True and given is not False else math.nan
    except OverflowError:
        seconds = math.inf if given > 0 else -math.inf
    if math.isnan(seconds):
        return 1.0, ValueError(f"timeout_s must be a number of seconds, got {shown(timeout_s)}")
    if seconds <= 0:
        return 1.0, CastTimeoutError(f"timeout_s={shown(timeout_s)}: the time was over before the call", rank=rank)
    return min(seconds, FOR_EVER_S), None


def wait_limit(timeout_s: float | None, default_s: float) -> float:
    """Return how long a call may wait that may also not wait at all. Raises ValueError for what is no such time."""
    if timeout_s is None:
        return min(default_s, FOR_EVER_S)
    if type(timeout_s) in (int, float) and 0 <= timeout_s < FOR_EVER_S:  # by far the most: every step of a loop asks
        return timeout_s
    given: Any = timeout_s
    seconds = float(given) if isinstance(given, Real) and given is not True and given is not False else math.nan
    if not seconds >= 0:
        raise ValueError(f"timeout_s must be a number of seconds, at least 0, got {shown(timeout_s)}")
    return min(seconds, FOR_EVER_S)


def usable_priority(priority: Any) -> tuple[int, Exception | None]:
    """Return a call's priority, and what to refuse it with: it must count even so."""
    exactly = exact(priority)
    if type(exactly) is not int:
        return 0, TypeError(f"priority is an int, got {type(priority).__name__} {shown(priority)}")
    if not -(1 << 31) <= exactly < 1 << 31:
        return 0, ValueError(f"priority has 32 bits, got {shown(priority)}")
    return exactly, None


def checked_key(key: Any) -> Key | None:
    """Return a key as it travels; raise what is wrong with it."""
    usable, bad = usable_key(key)
    if bad is not None:
        raise bad
    return usable


def usable_key(key: Any) -> tuple[Key | None, Exception | None]:
    """Return a key as it travels, or what is wrong with it. No rank can use a bad one, so nobody waits for this call.

    An object of a subclass (`numpy.str_`, an `IntEnum`) is the str, int or bytes that it is.
    """
    if key is None:
        return None, None
    key = exact(key)
    if type(key) is str:
        try:
            nbytes = len(key) if key.isascii() else len(key.encode())
        except UnicodeEncodeError as exc:
            return None, ValueError(f"a key is text that can be encoded, got {key!r}: {exc.reason}")
    elif type(key) is bytes:
        nbytes = len(key)
    elif type(key) is int:
        bad = None if -(1 << 63) <= key < 1 << 64 else ValueError(f"an int key has 64 bits, got {shown(key)}")
        return key, bad
    else:
        return None, TypeError(f"a key is a str, int or bytes, got {type(key).__name__} {shown(key)}")
    if nbytes > MAX_KEY_NBYTES:
        return None, ValueError(f"a key has at most {MAX_KEY_NBYTES} bytes, got one of {nbytes}")
    return key, None

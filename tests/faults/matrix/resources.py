"""What a process holds: descriptors, threads, children, shared memory. Counted before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

from tests.children import of_this_process

_NUMBERS = re.compile(r"\[\d+\]|:\d+|\d+$")


def held() -> dict[str, int]:
    """Return how many of each kind this process has: descriptors by what they are, threads by name, and so on."""
    gc.collect()
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            found[f"descriptor {_NUMBERS.sub('', os.readlink(f'/proc/self/fd/{fd}'))}"] += 1
    for thread in threading.enumerate():
        found[f"thread {thread.name}"] += 1
    found["native threads"] = len(os.listdir("/proc/self/task"))
    found["mappings of shared memory"] = Path("/proc/self/maps").read_text().count("memfd:lazycast")
    found["children"] = len(of_this_process())
    return {name: count for name, count in found.items() if count}


def more(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """Return what there is more of than before."""
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def settled(before: dict[str, int]) -> dict[str, int]:
    """Return what this process has more than before; a thread that has done its work may need a moment to go."""
    until_s = time.monotonic() + 20.0
    while (left := more(held(), before)) and time.monotonic() < until_s:
        time.sleep(0.02)
    return left

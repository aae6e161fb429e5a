"""What this process holds, counted: descriptors, threads, children, shared memory, the engine's own objects, memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: How long what ends by itself may take to do so (seconds).
_SETTLE_S = 5.0
_COLLECT_S = 0.1
_OURS = ("lazycast.core", "lazycast.net.host", "lazycast.core.future", "lazycast.net.relay", "lazycast.codec.pickling")
_MEMORY = "memfd:lazycast"


@dataclass(frozen=True)
class Census:
    """What was there at one time. Descriptors, threads and objects by name."""

    descriptors: Counter[str]
    threads: Counter[str]
    tasks: int
    children: int
    mappings: int
    objects: Counter[str]
    rss_nbytes: int


def take() -> Census:
    """Count."""
    gc.collect()
    return Census(
        descriptors(),
        Counter(thread.name for thread in threading.enumerate()),
        len(os.listdir("/proc/self/task")),
        _children(),
        Path("/proc/self/maps").read_text().count(_MEMORY),
        objects(),
        rss_nbytes(),
    )


def descriptors() -> Counter[str]:
    """Count this process's descriptors by what they are of."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
        found[re.sub(r"\[\d+\]| \(deleted\)", "", target)] += 1
    return found


def memories() -> int:
    """Count the descriptors of shared memory."""
    return sum(count for name, count in descriptors().items() if _MEMORY in name)


def _children() -> int:
    files = Path("/proc/self/task").glob("*/children")
    return sum(len(file.read_text().split()) for file in files if file.exists())


def objects() -> Counter[str]:
    """Count the instances of the engine's classes: whatever holds on to a cast holds on to one of them."""
    found: Counter[str] = Counter()
    for kind, count in Counter(map(type, gc.get_objects())).items():
        if str(kind.__module__).startswith(_OURS):
            found[kind.__name__] += count
    return found


def rss_nbytes() -> int:
    """Return this process's own memory: shared pages do not count, nor what the allocator could give back."""
    ctypes.CDLL(None).malloc_trim(0)
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) << 10


def left(before: Census, *, memory_nbytes: int) -> list[str]:
    """Return what is there that was not before, having given it some seconds to end.

    Args:
        memory_nbytes: by how much memory may have grown.
    """
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        found = _more(before, take(), memory_nbytes)
        if not found or time.monotonic() > deadline_s:
            return found
        time.sleep(0.1)


def _more(before: Census, now: Census, memory_nbytes: int) -> list[str]:
    found = []
    for what in ("descriptors", "threads", "objects"):
        more = getattr(now, what) - getattr(before, what)
        if more:
            found.append(f"{what}: {', '.join(f'{count} {name}' for name, count in sorted(more.items()))}")
    for what in ("tasks", "children", "mappings"):
        more = getattr(now, what) - getattr(before, what)
        if more > 0:
            found.append(f"{what}: {more} more, {getattr(now, what)} in all")
    if now.rss_nbytes - before.rss_nbytes > memory_nbytes:
        mib = [nbytes / (1 << 20) for nbytes in (before.rss_nbytes, now.rss_nbytes)]
        found.append(f"memory: {mib[0]:.0f} MiB before, {mib[1]:.0f} MiB now")
    return found


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Collect garbage again and again meanwhile: an error and the frames it went through are a circle.

    A rank that only waits would keep what others count.
    """
    over = threading.Event()

    def collect() -> None:
        while not over.wait(_COLLECT_S):
            gc.collect()

    thread = threading.Thread(target=collect, name="soak-collect")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

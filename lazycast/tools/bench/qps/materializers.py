"""What is made of the requests, and a clock on it that counts alike for every way.

Guarantees: each function leaves its payload as it is, makes the same value of the same payload on every rank, and adds
the time it took to `TIMES` of its process. They are found by import path. Thread-safe.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
V = TypeVar("V")

PHOTO_SIZE = (1120, 700)
THUMBNAIL_SIZE = (224, 224)
_SUMS = 16


class Work(NamedTuple):
    """How often something ran, and for how long in all (seconds): by the wall, and on the processor."""

    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


class Recorder:
    """Adds up the work of all threads. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = Work()

    def add(self, wall_s: float, cpu_s: float) -> None:
        with self._lock:
            calls, wall, cpu = self._work
            self._work = Work(calls + 1, wall + wall_s, cpu + cpu_s)

    def take(self) -> Work:
        """Return what has been added since the last time."""
        with self._lock:
            work, self._work = self._work, Work()
            return work


#: Of this process.
TIMES = Recorder()


def timed(fn: Callable[[Any], V]) -> Callable[[Any], V]:
    """Make a function add its time to `TIMES`."""

    @functools.wraps(fn)
    def wrapper(payload: Any) -> V:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            return fn(payload)
        finally:
            TIMES.add(time.perf_counter() - wall_s, time.thread_time() - cpu_s)

    return wrapper


def _develop(jpeg: bytes, size: tuple[int, int]) -> tuple[Array, str]:
    from lazycast.tools.cli import photos  # not above: lazycast.cli imports the benchmarks

    photo = photos.develop_one(jpeg, size)
    return photo.pixels, photo.sha256


@timed
def photo(jpeg: bytes) -> tuple[Array, str]:
    """JPEG -> normalised float32 pixels, channels first, at 1120x700 -> SHA-256."""
    return _develop(jpeg, PHOTO_SIZE)


@timed
def thumbnail(jpeg: bytes) -> tuple[Array, str]:
    """The same at 224x224."""
    return _develop(jpeg, THUMBNAIL_SIZE)


@timed
def video(frames: Array) -> tuple[Array, str]:
    """uint8 frames (count, height, width, 3) -> normalised float16, channels first -> SHA-256."""
    from lazycast.tools.cli.photos import MEAN, STD

    count, height, width, channels = frames.shape
    pixels = np.empty((count, channels, height, width), np.float16)
    scale, shift = np.float32(1 / 255) / STD, MEAN / STD
    for frame, out in zip(frames, pixels, strict=True):  # one at a time: temporaries of a frame stay in the cache
        out[:] = (frame * scale - shift).transpose(2, 0, 1)
    return pixels, hashlib.sha256(pixels.data).hexdigest()


@timed
def cheap(array: Array) -> dict[str, Any]:
    """A dict around a view: next to no work, and a value as large as the payload."""
    return {"rows": array.reshape(-1, 4096), "nbytes": array.nbytes}


@timed
def reduce(array: Array) -> list[int]:
    """A few sums: all bytes are read, and next to nothing is left."""
    sums: list[int] = array.view(np.uint64).reshape(_SUMS, -1).sum(axis=1).tolist()
    return sums


@timed
def hash_arrays(arrays: list[Array]) -> str:
    """The SHA-256 of arrays, their types and shapes: what is expensive about `replicated`."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def attach(arrays: list[Array], sha256: str) -> dict[str, Any]:
    """A rank's own arrays with the hash that some rank has made: what is cheap about it."""
    return {"arrays": arrays, "sha256": sha256}


def hash_and_attach(arrays: list[Array]) -> dict[str, Any]:
    """Both."""
    return attach(arrays, hash_arrays(arrays))

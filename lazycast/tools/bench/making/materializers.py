"""What is made of the requests. Found by import path, in ranks, helpers and pools; payloads stay as they are."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lazycast.tools.bench.qps.materializers import PHOTO_SIZE

Array = npt.NDArray[Any]

SIDE = 448
SMALL_SIDE = 224
VALUE_NBYTES = 10_000_000
_PASSES = 40  # over a text of 4,000 characters: some 40 ms in pure Python


def tokens(text: str) -> list[int]:
    """Text -> numbers, a character at a time: pure Python, which holds the interpreter's lock."""
    found: list[int] = []
    for salt in range(_PASSES):
        state = salt
        for character in text:
            state = (state * 31 + ord(character)) & 0xFFFFF
        found.append(state)
    return found


def large_photo(jpeg: bytes) -> tuple[Array, str]:
    """JPEG -> normalised float32 pixels, channels first, at 1120x700, and their SHA-256."""
    return _develop(jpeg, PHOTO_SIZE)


def photo(jpeg: bytes) -> tuple[Array, str]:
    """The same at 448x448."""
    return _develop(jpeg, (SIDE, SIDE))


def small_photo(jpeg: bytes) -> tuple[Array, str]:
    """The same, of a quarter of the pixels."""
    return _develop(jpeg, (SMALL_SIDE, SMALL_SIDE))


def _develop(jpeg: bytes, size: tuple[int, int]) -> tuple[Array, str]:
    from lazycast.tools.cli import photos  # not above: lazycast.tools.cli imports the benchmarks

    made = photos.develop_one(jpeg, size)
    return made.pixels, made.sha256


def album(jpegs: list[bytes]) -> list[tuple[Array, str]]:
    """Each photo of a request, one after another."""
    return [photo(jpeg) for jpeg in jpegs]


def value(number: int) -> tuple[Array, float]:
    """An array of 10 MB, and how long it took to make (seconds)."""
    began_s = time.perf_counter()
    array = np.full(VALUE_NBYTES, number % 251, np.uint8)
    return array, time.perf_counter() - began_s


def killed_once(mark: str) -> float:
    """Work of some 40 ms, in the middle of which the first process is killed. Return how long it took (seconds)."""
    began_s = time.perf_counter()
    tokens("x" * 2000)
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    tokens("x" * 2000)
    return time.perf_counter() - began_s

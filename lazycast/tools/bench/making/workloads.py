"""What is asked for: requests as the benchmark of requests has them, of other kinds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from lazycast.tools.bench.making import materializers
from lazycast.tools.bench.making.materializers import SIDE, SMALL_SIDE, VALUE_NBYTES
from lazycast.tools.bench.qps import workloads as qps
from lazycast.tools.bench.qps.materializers import PHOTO_SIZE
from lazycast.tools.bench.qps.workloads import Workload

_SEED = 20240229
_TEXT = 4000
ALBUM = 8
#: Photos of a chat, and how steeply some are asked for more often than others.
CHAT, _STEEP = 200, 1.1


def _texts() -> list[str]:
    letters = np.random.default_rng(_SEED).integers(97, 123, (4, _TEXT), np.uint8)
    return [text.tobytes().decode() for text in letters]


def _crops(count: int, side: int) -> list[bytes]:
    """Return `count` JPEGs, each another part of a real photo."""
    from PIL import Image

    from lazycast.tools.cli.photos import sample_photos

    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in sample_photos().values()]
    rng, found = np.random.default_rng(_SEED), []
    for number in range(count):
        image = images[number % len(images)]
        edge = min(image.size) * 2 // 3
        left, top = (int(rng.integers(0, length - edge + 1)) for length in image.size)
        file = io.BytesIO()
        image.crop((left, top, left + edge, top + edge)).resize((side, side)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def _albums() -> list[list[bytes]]:
    photos = _crops(2 * ALBUM, SIDE)
    return [photos[:ALBUM], photos[ALBUM:]]


def chat_sequence(count: int) -> list[int]:
    """Return which photo each request of the chat asks for: few of them often, as Zipf's law has it."""
    weights = 1 / np.arange(1, CHAT + 1) ** _STEEP
    drawn: list[int] = np.random.default_rng(_SEED).choice(CHAT, count, p=weights / weights.sum()).tolist()
    return drawn


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("tokens", "text -> numbers, in pure Python", _texts, materializers.tokens, 1 << 12),
        Workload(
            "photo",
            "JPEG of {}x{} -> float32 pixels -> SHA-256, as in `lazycast bench qps`".format(*PHOTO_SIZE),
            qps.WORKLOADS["photo"].pool,
            materializers.large_photo,
            qps.WORKLOADS["photo"].nbytes,
        ),
        Workload("album", f"{ALBUM} of {SIDE}x{SIDE} in a request", _albums, materializers.album, ALBUM * 12 * SIDE**2),
        Workload("value", "a number -> an array of 10 MB", lambda: list(range(4)), materializers.value, VALUE_NBYTES),
        Workload(
            "chat",
            f"{CHAT} photos of {SMALL_SIDE}x{SMALL_SIDE}, some again and again",
            lambda: _crops(CHAT, SMALL_SIDE),
            materializers.small_photo,
            12 * SMALL_SIDE**2,
        ),
        Workload("killed", "work in the middle of which a process is killed", list, materializers.killed_once, 1 << 12),
    )
}


def same(workload: Workload, got: Any, wanted: Any) -> bool:
    """Whether a value is what its payload makes: what was timed, which differs each time, is not looked at."""
    from lazycast.tools.bench.qps.workloads import fingerprint

    if workload.name == "killed":
        return isinstance(got, float)
    if workload.name == "value":
        got, wanted = got[0], wanted[0]
    return fingerprint(got) == fingerprint(wanted)

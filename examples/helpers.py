"""Processes that decode, so that no rank does, and a picture that crashes its decoder.

The two ranks get a MaterializeError for that picture alone. A new helper takes the place of each that has crashed.

    $ python examples/helpers.py

Needs: pip install '.[cli]'
"""

import ctypes
import hashlib
import importlib.resources
import io
import os

import numpy as np
from PIL import Image

from lazycast import Helpers, LazyBroadcast, MaterializeError, launch


def decode(jpeg: bytes) -> tuple[np.ndarray, int]:
    """JPEG -> RGB -> 448 x 448 -> float32 pixels, channels first: the materializer. It says who has run it."""
    if jpeg == b"a picture that crashes its decoder":
        ctypes.string_at(0)  # as a decoder in C does that has a fault
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255, os.getpid()


def payload_of(name: str) -> bytes:
    """Return a photo of sklearn's, or something else."""
    if name == "crash.jpg":
        return b"a picture that crashes its decoder"
    return (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()


def rank() -> list[str]:
    """What each rank does; `launch` gathers what it returns."""
    lines, makers = [], set()
    with LazyBroadcast(decode, placement=Helpers(2, limit_s=30, memory_nbytes=2 << 30)) as lazy:
        for name in ("china.jpg", "crash.jpg", "flower.jpg"):
            try:
                pixels, pid = lazy.broadcast(payload_of(name) if lazy.is_root else None)
            except MaterializeError as exc:
                lines.append(f"rank {lazy.rank} of {lazy.size}: {name} {exc.message}")
            else:
                makers.add(pid)
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
                lines.append(f"rank {lazy.rank} of {lazy.size}: {name} {pixels.shape} sha256 {digest}")
    lines.append(f"rank {lazy.rank} of {lazy.size}: made a picture itself: {os.getpid() in makers}")
    return lines


if __name__ == "__main__":
    for lines in launch(rank, ranks=4, timeout_s=100):
        print("\n".join(lines))

"""Ranks as threads of one process: no launcher, no other process, same semantics. Handy in tests and notebooks.

    $ python examples/threads.py

Needs: pip install '.[cli]'
"""

import hashlib
import importlib.resources
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from lazycast import LazyBroadcast
from lazycast.backends.local import LocalBackend

NAMES = ("china.jpg", "flower.jpg")


def decode(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> fixed size -> float32 pixels, channels first: the materializer."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def rank(backend: LocalBackend) -> list[str]:
    """What each rank does. The last one is the root here; each rank gets pixels of its own to write to."""
    lines = []
    with LazyBroadcast(decode, backend=backend, root=backend.size - 1) as lazy:
        for name in NAMES:
            jpeg = None
            if lazy.is_root:
                jpeg = (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()
            pixels = lazy.broadcast(jpeg, key=name)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            lines.append(f"rank {lazy.rank} of {lazy.size}: {name} {pixels.shape} sha256 {digest}")
            pixels[:] = lazy.rank
    return lines


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as pool:
        for lines in pool.map(rank, LocalBackend.threads(4)):
            print("\n".join(lines))

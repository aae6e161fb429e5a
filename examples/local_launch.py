"""Plain processes, with neither torch nor MPI, and a materializer that fails on one rank only.

No rank is left waiting and none goes on alone: all get a MaterializeError that names the rank. The next cast works.

    $ python examples/local_launch.py

Needs: pip install '.[cli]'
"""

import hashlib
import importlib.resources
import io
import os

import numpy as np
from PIL import Image

from lazycast import LazyBroadcast, MaterializeError, launch


def decode(request: dict) -> np.ndarray:
    """JPEG -> RGB -> the size asked for -> float32 pixels, channels first: the materializer."""
    if request["side"] > 10_000 and os.environ["LAZYCAST_RANK"] == "2":
        raise MemoryError(f"no room on this rank for {request['side']} x {request['side']} pixels")
    side = min(request["side"], 448)
    image = Image.open(io.BytesIO(request["jpeg"])).convert("RGB").resize((side, side))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def rank() -> list[str]:
    """What each rank does; `launch` gathers what it returns."""
    lines = []
    with LazyBroadcast(decode, placement="every") as lazy:  # rank 2 has to run it, to fail
        for name, side in (("china.jpg", 20_000), ("flower.jpg", 448)):
            request = None
            if lazy.is_root:
                jpeg = (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()
                request = {"jpeg": jpeg, "side": side}
            try:
                pixels = lazy.broadcast(request)
            except MaterializeError as exc:
                lines.append(f"rank {lazy.rank} of {lazy.size}: {name} {exc.message}")  # str(exc) adds the traceback
            else:
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
                lines.append(f"rank {lazy.rank} of {lazy.size}: {name} {pixels.shape} sha256 {digest}")
    return lines


if __name__ == "__main__":
    for lines in launch(rank, ranks=4, backend="local", timeout_s=100):
        print("\n".join(lines))

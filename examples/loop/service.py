"""Requests come and go on rank 0; the other ranks take what comes. Some are aborted, one is damaged, a rank is slow.

    $ torchrun --nproc_per_node 4 examples/loop/service.py
    $ mpirun -n 4 python examples/loop/service.py

Every rank says how many photos it has developed, and how each request has ended: the same on all of them. Photos that
were aborted before their turn came are developed nowhere.

Needs: pip install '.[torch,cli]', or '.[mpi,cli]'
"""

import hashlib
import importlib.resources
import io
import os
import time

import numpy as np
from PIL import Image

import lazycast
from lazycast import LazyBroadcast, MaterializeError

REQUESTS = 24
ABORTED = {n for n in range(REQUESTS) if n % 3 == 1}
DAMAGED = 6
developed = 0


def develop(jpeg: bytes) -> np.ndarray:
    """JPEG -> float32 pixels, in tiles: after each it asks whether anybody still waits."""
    global developed
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    tiles = []
    for _ in range(8):
        if lazycast.cancelled():
            break
        tiles.append(np.asarray(image.resize((448, 448)), np.float32) / 255)
        time.sleep(0.005)
    developed += len(tiles) == 8
    return np.stack(tiles)


def photo(n: int) -> bytes:
    name = ("china.jpg", "flower.jpg")[n % 2]
    jpeg = (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()
    return jpeg[:1000] if n == DAMAGED else jpeg


def ending(future: lazycast.CastFuture) -> str:
    if future.cancelled():
        return "aborted"
    try:
        return hashlib.sha256(future.result().tobytes()).hexdigest()[:8]
    except MaterializeError as exc:
        return f"{exc.remote_type} on rank {exc.rank}"


def serve(lazy: LazyBroadcast) -> dict[int, str]:
    """Rank 0: cast every request as it comes; a client that hangs up aborts its own."""
    futures = {n: lazy.broadcast_async(photo(n), key=n) for n in range(REQUESTS)}
    for n in ABORTED:
        futures[n].cancel()
    return {n: wait(future) for n, future in futures.items()}


def follow(lazy: LazyBroadcast) -> dict[int, str]:
    """The other ranks: take what has come, until every request has ended. The last rank is slow to ask."""
    endings: dict[int, str] = {}
    while len(endings) < REQUESTS:
        if lazy.rank == lazy.size - 1:
            time.sleep(0.02)
        came = lazy.next(keyed=True)
        if came is None:
            raise TimeoutError("nothing has come")
        key, future = came
        endings[key] = wait(future)
    return endings


def wait(future: lazycast.CastFuture) -> str:
    while not future.done():
        time.sleep(0.001)
    return ending(future)


def main() -> None:
    backend: object = "auto"
    if "TORCHELASTIC_RUN_ID" in os.environ:  # by torchrun
        import torch.distributed as dist

        dist.init_process_group("gloo")
        backend = dist.group.WORLD
    with LazyBroadcast(develop, backend=backend, placement="shard") as lazy:
        endings = serve(lazy) if lazy.is_root else follow(lazy)
        said = " ".join(f"{n}:{endings[n]}" for n in sorted(endings))
        print(f"rank {lazy.rank} of {lazy.size}: developed {developed}; {said}\n", end="")
    if backend != "auto":
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

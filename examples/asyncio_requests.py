"""A server's event loop on every rank: it awaits casts by request id, in whatever order its requests come up.

One client hangs up: the task that waits for its photo is cancelled. That withdraws nothing, since the other ranks
count on the cast, and whoever still awaits the same future gets the value.

    $ python examples/asyncio_requests.py

Needs: pip install '.[cli]'
"""

import asyncio
import hashlib
import importlib.resources
import io

import numpy as np
from PIL import Image

from lazycast import CastFuture, LazyBroadcast, launch

REQUESTS = {"req-1": "china.jpg", "req-2": "flower.jpg", "req-3": "china.jpg"}


def decode(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> fixed size -> float32 pixels, channels first: the materializer."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def read(name: str) -> bytes:
    return (importlib.resources.files("sklearn") / "datasets/images" / name).read_bytes()


async def answer(rid: str, future: CastFuture) -> str:
    pixels = await future
    return f"{rid} {REQUESTS[rid]} {pixels.shape} sha256 {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}"


async def serve(lazy: LazyBroadcast) -> list[str]:
    rids = sorted(REQUESTS, reverse=bool(lazy.rank % 2))  # the order differs between ranks
    jpegs = {rid: read(REQUESTS[rid]) for rid in rids} if lazy.is_root else {}
    futures = {rid: lazy.broadcast_async(jpegs.get(rid), key=rid) for rid in rids}  # returns at once

    impatient = asyncio.create_task(answer("req-2", futures["req-2"]))
    await asyncio.sleep(0)  # let it start to wait
    impatient.cancel()

    answers = await asyncio.gather(*(answer(rid, futures[rid]) for rid in rids))
    hung_up = (await asyncio.gather(impatient, return_exceptions=True))[0]
    return [f"the impatient client of req-2 got {type(hung_up).__name__}", *sorted(answers)]


def rank() -> list[str]:
    """What each rank does; `launch` gathers what it returns."""
    with LazyBroadcast(decode) as lazy:
        return [f"rank {lazy.rank} of {lazy.size}: {line}" for line in asyncio.run(serve(lazy))]


if __name__ == "__main__":
    for lines in launch(rank, ranks=4, timeout_s=100):
        print("\n".join(lines))

"""An HTTP front on rank 0: each request's photo is cast, and every rank has its pixels before the answer goes out.

    $ python examples/loop/front.py --clients 1000

One asyncio loop serves all clients, and never blocks: `await lazy.cast(...)` waits for room beside the others while the
ranks are behind. The other ranks take what comes in a loop of their own. Beside the clients a task ticks every 10 ms:
what it was late at most is how long the loop has stood still.

Needs: pip install '.[cli]' aiohttp
"""

import argparse
import asyncio
import importlib.resources
import io
import time

import numpy as np
from aiohttp import ClientSession, TCPConnector, web
from PIL import Image

from lazycast import LazyBroadcast, Tuning, launch

RANKS, MAX_INFLIGHT = 3, 64


def develop(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> small -> float32 pixels: the materializer."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (80, 80))  # the decoder makes it small at once
    return np.asarray(image.convert("RGB").resize((64, 64)), np.float32) / 255


async def serve(lazy: LazyBroadcast, clients: int) -> dict[str, float]:
    """Rank 0: the front, and its clients."""
    number = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal number
        number += 1
        pixels = await lazy.cast(await request.read(), key=number)
        return web.json_response({"mean": float(pixels.mean())})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    port = runner.addresses[0][1]
    folder = importlib.resources.files("sklearn") / "datasets/images"
    jpegs = [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    lateness: list[float] = []
    ticking = asyncio.create_task(tick(lateness))
    began_s = time.monotonic()
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        means = await asyncio.gather(*(client(session, port, jpegs[n % 2]) for n in range(clients)))
    took_s = time.monotonic() - began_s
    ticking.cancel()
    await runner.cleanup()
    return {"answers": len(means), "kinds": len(set(means)), "took_s": took_s, "late_s": max(lateness)}


async def client(session: ClientSession, port: int, jpeg: bytes) -> float:
    async with session.post(f"http://127.0.0.1:{port}/", data=jpeg) as answer:
        return round((await answer.json())["mean"], 6)


async def tick(lateness: list[float]) -> None:
    while True:
        began_s = time.monotonic()
        await asyncio.sleep(0.01)
        lateness.append(time.monotonic() - began_s - 0.01)


async def follow(lazy: LazyBroadcast) -> dict[str, float]:
    """The other ranks: a loop that takes what comes, until rank 0 closes."""
    means = [float((await future).mean()) async for _, future in lazy]
    return {"answers": len(means), "kinds": len(set(means))}


def rank(clients: int) -> dict[str, float]:
    """What each rank does; `launch` gathers what it returns."""
    with LazyBroadcast(develop, tuning=Tuning(max_inflight=MAX_INFLIGHT)) as lazy:
        return asyncio.run(serve(lazy, clients) if lazy.is_root else follow(lazy))


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve photos over HTTP on rank 0, to clients of its own.")
    parser.add_argument("--clients", type=int, default=1000)
    clients = parser.parse_args().clients
    for number, said in enumerate(launch(rank, ranks=RANKS, args=(clients,), timeout_s=300)):
        print(f"rank {number}: {said}")


if __name__ == "__main__":
    main()

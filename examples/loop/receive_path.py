"""The receive path of an engine: in each step every rank takes the step's control message, and images that all have.

    $ torchrun --nproc_per_node 2 examples/loop/receive_path.py [rounds]

`Lazycast` is the loop with lazycast: images are cast as they come and made beside the steps, and a step takes up those
that every rank has. `Objects` is the same loop with torch's `broadcast_object_list`: a step brings the images that have
come, and every rank makes them before it goes on. Rank 0 says how long a step's receiving took, in microseconds.

Needs: pip install '.[torch,cli]'
"""

import importlib.resources
import io
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image

from lazycast import LazyBroadcast

STEPS, EVERY = 200, 10
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 4
STEP_S = 0.002  # what a step computes, without the processor
CONTROL = {"step": 0, "tokens": bytes(1024)}


def develop(jpeg: bytes) -> np.ndarray:
    """JPEG -> RGB -> fixed size -> float32 pixels, channels first: the materializer."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((896, 896))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


class Lazycast:
    def __init__(self) -> None:
        self.lazy: LazyBroadcast[Any, Any] = LazyBroadcast()
        self.images: dict[Any, Any] = {}
        if self.lazy.is_root:
            self.lazy.ready()  # from now on it notes what every rank has

    # The receive path, whole: `arrived` are a front's new images, on rank 0.
    def receive(self, control: Any, arrived: list[tuple[str, bytes]]) -> tuple[Any, dict[str, np.ndarray]]:
        lazy, images = self.lazy, self.images
        for request, jpeg in arrived:
            images[request] = lazy.broadcast_async(jpeg, materialize=develop, key=request)
        step = lazy.broadcast((control, lazy.ready()) if lazy.is_root else None)
        while not lazy.is_root and (came := lazy.next(timeout_s=0, keyed=True)) is not None:
            images[came[0]] = came[1]
        control, whole = step
        return control, {request: images.pop(request).result() for request in whole}

    def close(self) -> None:
        self.lazy.close()


class Objects:
    def receive(self, control: Any, arrived: list[tuple[str, bytes]]) -> tuple[Any, dict[str, np.ndarray]]:
        step = [control, arrived]
        dist.broadcast_object_list(step, src=0)
        control, arrived = step
        return control, {request: develop(jpeg) for request, jpeg in arrived}

    def close(self) -> None:
        pass


def run(path: Any, jpegs: list[bytes], tag: str) -> list[float]:
    """Make a round's steps; return how long the receiving of each took."""
    took, step = [], 0
    queue: deque[tuple[int, str, bytes]] = deque()
    if dist.get_rank() == 0:
        queue.extend((n * EVERY, f"{tag}-{n}", jpegs[n % 2]) for n in range(STEPS // EVERY if jpegs else 0))
    left = STEPS // EVERY if jpegs else 0
    while step < STEPS or left:
        time.sleep(STEP_S)
        arrived = []
        while queue and queue[0][0] <= step:
            _, request, jpeg = queue.popleft()
            arrived.append((request, jpeg))
        began_s = time.perf_counter()
        control, images = path.receive({**CONTROL, "step": step} if dist.get_rank() == 0 else None, arrived)
        took.append(time.perf_counter() - began_s)
        assert control["step"] == step
        assert all(pixels.shape == (3, 896, 896) for pixels in images.values())
        left -= len(images)
        step += 1
    return took


def main() -> None:
    dist.init_process_group("gloo")
    folder = importlib.resources.files("sklearn") / "datasets/images"
    photos = [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    paths: dict[str, Callable[[], Any]] = {"lazycast": Lazycast, "broadcast_object_list": Objects}
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS):  # alternating: whatever else the machine does, does it to both
        for name, path in paths.items():
            for what, jpegs in (("1 KiB", []), ("images", photos)):
                one = path()
                run(one, [], "warm-up")
                took.setdefault((what, name), []).extend(run(one, jpegs, f"{name}-{number}"))
                dist.barrier()
                one.close()
    if dist.get_rank() == 0:
        for (what, name), seconds in sorted(took.items()):
            cuts = statistics.quantiles(seconds, n=100)
            print(f"{what:8} {name:22} p50 {cuts[49] * 1e6:6.0f} p99 {cuts[98] * 1e6:7.0f}\n", end="")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

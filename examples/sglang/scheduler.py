"""SGLang's own scheduler method, on two ranks and no GPU: as it is, and with lazycast in its place.

    $ torchrun --nproc_per_node 2 examples/sglang/scheduler.py

Needs: SGLang 0.5.9 or 0.5.23, and pip install '.[torch]'. In a checkout,
`python tests/sglang/environment.py 0.5.23` makes such an environment, and prints its interpreter.
"""

import time

import torch.distributed as dist

from lazycast.tools.bench.sglang import inputs, without_gpu

without_gpu.prepare()  # only this machine needs it: it makes SGLang importable without CUDA

from sglang.srt.managers.scheduler import Scheduler  # noqa: E402

from lazycast.adapters.sglang import install, uninstall  # noqa: E402
from lazycast.tools.bench.sglang.scheduler import without_model  # noqa: E402


def show(what: str, scheduler: Scheduler) -> None:
    """Send three requests of two images (15 MB) through the method that a server calls."""
    for seed in range(3):
        raw = inputs.images(2, seed)  # every rank has a request's raw inputs already when the method is called
        dist.barrier()
        began_s = time.perf_counter()
        made = scheduler._process_and_broadcast_mm_inputs(raw)
        took_ms = (time.perf_counter() - began_s) * 1e3
        hashes = " ".join(f"{item.hash & (1 << 64) - 1:016x}" for item in made.mm_items)
        print(f"rank {dist.get_rank()}, {what}: request {seed}: {took_ms:6.1f} ms, hashes {hashes}\n", end="")


def main() -> None:
    dist.init_process_group("gloo")
    scheduler = without_model(Scheduler)  # in a server: SGLang's own; with 0.5.23 its plugins do the installing
    show("SGLang", scheduler)
    install(scheduler)
    show("lazycast", scheduler)
    dist.barrier()
    uninstall(scheduler)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

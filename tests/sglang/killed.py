"""One rank of a small group, the last of which is killed in the midst of a call; with the environment of torchrun."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from lazycast.tools.bench.sglang import without_gpu

without_gpu.prepare()

import torch.distributed as dist  # noqa: E402
from kit import alone, failing, same  # noqa: E402

from lazycast.adapters.sglang import SGLangBroadcast  # noqa: E402
from lazycast.errors import PeerLostError  # noqa: E402
from lazycast.tools.bench.sglang import inputs  # noqa: E402


def request(seed: int) -> Any:
    return inputs.raw(inputs.image_items(1, seed, patches=10))


def main() -> None:
    dist.init_process_group("gloo")
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    broadcast = SGLangBroadcast(timeout_s=60.0)
    same(broadcast.process(request(1)), alone(request(1)))
    if rank == last:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    # Half a second before it is killed, and one after.
    exc = failing(lambda: broadcast.process(request(2)), f"rank {last}", within_s=1.5)
    lost = exc if isinstance(exc, PeerLostError) else exc.__cause__
    assert isinstance(lost, PeerLostError), repr(exc)
    assert lost.rank == last, lost
    sys.stdout.write("well\n")
    sys.stdout.flush()
    os._exit(0)  # torch's own group has lost a rank as well, and would complain


if __name__ == "__main__":
    main()

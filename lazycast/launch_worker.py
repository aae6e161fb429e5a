"""The process that `lazycast.launch` starts for each rank: `python -m lazycast.launch_worker FOLDER BACKEND`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lazycast import discovery
from lazycast.launch import run_worker


@contextlib.contextmanager
def _group(backend: str, folder: Path) -> Iterator[int]:
    """Be one rank of a group; yield which."""
    if backend == "torch":
        import torch.distributed as dist

        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        yield rank
        dist.destroy_process_group()
    else:
        yield discovery.by_name(backend).from_environment().rank


def main() -> None:
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    with _group(backend, folder) as rank:
        run_worker(folder, rank, socket.gethostname())


if __name__ == "__main__":
    main()

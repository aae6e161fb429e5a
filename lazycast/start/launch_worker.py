"""The process that `lazycast.launch` starts for each rank."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lazycast.core.failures import from_exception
from lazycast.start import discovery
from lazycast.start.launcher import leave_failure, run_worker

_PR_SET_PDEATHSIG = 1


def tie() -> None:
    """End this process when the one that started it is killed: no orphans."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def group(backend: str, folder: Path) -> Iterator[int]:
    """Be one rank of a group; yield which."""
    if backend == "torch":
        import torch.distributed as dist

        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        discovery.use(discovery.by_name("torch").from_environment())
        yield rank
        dist.destroy_process_group()
    else:
        mine = discovery.by_name(backend).from_environment()
        discovery.use(mine)
        yield mine.rank


def main() -> None:
    """Run as `main` of a process whose arguments are the folder of `launch` and the backend's name."""
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    tie()
    rank = int(os.environ.get("RANK") or os.environ.get("LAZYCAST_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
    host = socket.gethostname()
    try:
        with group(backend, folder) as rank:
            run_worker(folder, rank, host)
    except BaseException as exc:
        leave_failure(folder, from_exception("refused", "the rank could not join its group", exc, rank=rank, host=host))
        raise

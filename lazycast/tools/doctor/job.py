"""The job that this process is a rank of: who started it, how its ranks talk, how they become a lazycast backend.

The launcher is told as `backend="auto"` tells it, but that under torchrun nobody has initialised torch.distributed
yet: that is done here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from lazycast.errors import BackendError, BackendUnavailableError
from lazycast.net.backend import Backend
from lazycast.start import discovery
from lazycast.tools.doctor.posts import FolderPost, MPIPost, Post, StorePost

_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPI_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_MPI_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class Launcher(msgspec.Struct, frozen=True):
    """Who has started this process, by its environment.

    Attributes:
        name: for a human.
        backend: the backend of such ranks.
        rank, size: as the environment says; None if it does not.
    """

    name: str
    backend: str
    rank: int
    size: int | None


def launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return who has started this process as a rank of a job, or None if nobody has."""
    if all(environment.get(name) for name in _TORCH):
        name = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "torch.distributed's environment"
        return Launcher(name, "torch", int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    if any(mark in environment for mark in discovery.MPI_MARKS):
        rank, size = (_first(environment, names) for names in (_MPI_RANK, _MPI_SIZE))
        return Launcher("an MPI launcher", "mpi", rank or 0, size)
    if "LAZYCAST_RANK" in environment:
        rank, size = int(environment["LAZYCAST_RANK"]), int(environment.get("LAZYCAST_WORLD_SIZE") or 1)
        return Launcher("LAZYCAST_RANK", "local", rank, size)
    return None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), None)


class Job:
    """This rank's place in its job. Made by `join`."""

    def __init__(self, post: Post, backend: str, store: Any = None) -> None:
        self.post, self._name, self._store = post, backend, store

    def connect(self, timeout_s: float) -> Backend:
        """Return the backend; under torch, make the default group first.

        Raises: BackendError with torch's own words if gloo cannot connect the ranks.
        Collective: every rank. Blocking: up to `timeout_s`.
        """
        if self._name == "torch":
            import torch.distributed as dist
            from torch._C._distributed_c10d import PrefixStore

            try:
                dist.init_process_group(
                    "gloo",
                    store=PrefixStore("group", self._store),
                    rank=self.post.rank,
                    world_size=self.post.size,
                    timeout=timedelta(seconds=timeout_s),
                )
            except RuntimeError as exc:
                raise BackendError(f"torch.distributed.init_process_group('gloo') failed: {exc}") from exc
        return discovery.by_name(self._name).from_environment()

    def leave(self) -> None:
        """Give up the group. Local."""
        if self._name == "torch":
            import torch.distributed as dist

            with contextlib.suppress(RuntimeError):
                if dist.is_initialized():
                    dist.destroy_process_group()


def join(found: Launcher, timeout_s: float) -> Job:
    """Take this rank's place, so far that it can send and receive small blobs.

    Raises: BackendUnavailableError if the launcher's library is missing; BackendError if there is no meeting place.
    Blocking: up to `timeout_s`, without any other rank.
    """
    discovery.by_name(found.backend)  # raises if a library is missing
    if found.backend == "torch":
        store = _store(found, timeout_s)
        assert found.size is not None
        return Job(StorePost(store, found.rank, found.size), "torch", store)
    if found.backend == "mpi":
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as exc:  # RuntimeError: it is there and finds no MPI library
            why = " ".join(str(exc).split())
            raise BackendUnavailableError(f"the MPI backend needs mpi4py and an MPI library ({why})") from exc
        return Job(MPIPost(MPI.COMM_WORLD), "mpi")
    folder = Path(os.environ.get("LAZYCAST_RENDEZVOUS", ""))
    size = found.size or 1
    if size > 1 and not (os.environ.get("LAZYCAST_RENDEZVOUS") and folder.is_dir()):
        raise BackendError("LAZYCAST_RENDEZVOUS names no folder: the local backend needs one that all its ranks share")
    return Job(FolderPost(folder, found.rank, size), "local")


def _store(found: Launcher, timeout_s: float) -> Any:
    """Return the store of the job's ranks: under torchrun its agent's, else one that rank 0 holds."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        # Not waiting for the others: who has not come is found out by asking, and named.
        store = TCPStore(
            host,
            port,
            found.size,
            is_master=found.rank == 0 and not hosted,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except RuntimeError as exc:
        raise BackendError(f"no store at MASTER_ADDR={host}, MASTER_PORT={port}: {exc}") from exc
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"lazycast-doctor/{attempt}", store)

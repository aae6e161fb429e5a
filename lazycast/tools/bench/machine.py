"""What a run ran on: told by the machine itself, for whoever reads the numbers later."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lazycast.version import __version__

_PACKAGES = ("numpy", "torch", "mpi4py", "vllm", "accelerate", "ray", "distributed")


def describe() -> dict[str, Any]:
    """Return the processor, its cores, memory, kernel, and how busy the machine was in the last minute."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_before": load_before(),
    }


@functools.cache
def load_before() -> float:
    """Return how busy the machine was in the minute before this process first asked: its own runs do not count."""
    return round(os.getloadavg()[0], 2)


def busy(load: float, cores: int) -> bool:
    """Whether others keep a machine so busy that what is measured on it says nothing about small differences."""
    return load > cores


def _first(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def versions(backend: str) -> dict[str, str]:
    """Return what is installed, by name; on a rank of the MPI backend also its library."""
    found = {"lazycast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if backend == "mpi":
        from mpi4py import MPI

        found["mpi"] = MPI.Get_library_version().split(",")[0].strip("\0 ")
    return found

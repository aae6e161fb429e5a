"""How many cores the ranks of a machine may use together."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

_ROOT = Path("/sys/fs/cgroup")


class Cores(msgspec.Struct, frozen=True, array_like=True):
    """What one process may use: the numbers of its cores, and how many of them its cgroup grants it at a time."""

    numbers: list[int]
    quota: float | None = None


def of_this_process(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> Cores:
    """Return what the scheduler and the cgroup (version 1 or 2) allow this process."""
    return Cores(sorted(os.sched_getaffinity(0)), _quota(root, membership))


def _quota(root: Path, membership: Path) -> float | None:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for base in _bases(root, controllers):
            folder = base / path.lstrip("/")
            quotas += [_read(f) for f in (folder, *folder.parents) if f == base or base in f.parents]
    return min((quota for quota in quotas if quota is not None), default=None)


def _bases(root: Path, controllers: str) -> list[Path]:
    if controllers == "":
        return [root]
    return [root / controllers, root / "cpu"] if "cpu" in controllers.split(",") else []


def _read(folder: Path) -> float | None:
    try:
        if (unified := folder / "cpu.max").exists():
            quota, period = unified.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # "max", or no such controller
        return None


def together(ranks: Sequence[Cores]) -> float:
    """Return how many cores processes of one machine have between them."""
    numbers = len({number for cores in ranks for number in cores.numbers})
    quotas = [math.inf if cores.quota is None else cores.quota for cores in ranks]
    return max(0.1, min(float(numbers), max(quotas)))

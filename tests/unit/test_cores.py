"""Cores: what the scheduler grants, what a cgroup takes away, and what ranks have between them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazycast.materialize.cores import Cores, of_this_process, together

FILES = {
    "v2": ("0::/pod/app", {"pod/cpu.max": "150000 100000", "pod/app/cpu.max": "max 100000"}, 1.5),
    "v2, the tightest counts": (
        "0::/pod/app",
        {"pod/cpu.max": "400000 100000", "pod/app/cpu.max": "50000 100000"},
        0.5,
    ),
    "v1": (
        "4:cpu,cpuacct:/app",
        {"cpu,cpuacct/app/cpu.cfs_quota_us": "200000", "cpu,cpuacct/app/cpu.cfs_period_us": "100000"},
        2.0,
    ),
    "v1, no limit": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "nonsense": ("0::/", {"cpu.max": "what"}, None),
    "nothing": ("0::/", {}, None),
    "another controller": ("9:memory:/app", {}, None),
}


@pytest.mark.parametrize(("membership", "files", "quota"), FILES.values(), ids=FILES)
def test_a_quota_is_found(membership: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "membership").write_text(membership + "\n")
    assert of_this_process(root, tmp_path / "membership") == Cores(sorted(os.sched_getaffinity(0)), quota)


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert of_this_process(tmp_path, tmp_path / "none").quota is None


RANKS = {
    "all may use all": ([Cores([0, 1]), Cores([0, 1])], 2.0),
    "each is bound to its own": ([Cores([0]), Cores([1]), Cores([2])], 3.0),
    "one container": ([Cores([0, 1, 2, 3], 1.5), Cores([0, 1, 2, 3], 1.5)], 1.5),
    "one without a quota": ([Cores([0, 1, 2, 3], 1.5), Cores([0, 1, 2, 3])], 4.0),
    "next to nothing": ([Cores([0], 0.01)], 0.1),
}


@pytest.mark.parametrize(("ranks", "cores"), RANKS.values(), ids=RANKS)
def test_ranks_share_what_there_is(ranks: list[Cores], cores: float) -> None:
    assert together(ranks) == cores

"""Under plain `mpirun` a rank that dies ends the job, though others wait, and nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.matrix.start import ROOT, mpirun
from tests.own_shm import own_shm

RANK = """
import json, os, pathlib, signal, sys, threading, time
from lazycast import LazyBroadcast

folder = pathlib.Path(sys.argv[1])
with LazyBroadcast(backend="mpi", timeout_s=30) as lazy:
    lazy.broadcast(bytes(1 << 20))
    part = folder.parent / f"part {lazy.rank}"
    part.write_text(str(os.getpid()))
    part.rename(folder / f"{lazy.rank}")
    while len(list(folder.iterdir())) < lazy.size:
        time.sleep(0.01)
    if lazy.rank == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if lazy.is_root:
        time.sleep(1000)
    lazy.broadcast(key="never sent")
    (folder / "went on").touch()
"""


def test_a_death_ends_the_whole_job_and_nothing_is_left(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    with own_shm() as shm:
        done = subprocess.run(
            [*shm.within, *mpirun(3), sys.executable, str(script), str(marks)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        )
        left = shm.files()
    assert done.returncode != 0, done
    assert "signal 9" in done.stdout + done.stderr, done
    assert not (marks / "went on").exists()
    pids = [int((marks / str(rank)).read_text()) for rank in range(3)]
    assert [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and is_ours(pid, marks)] == []
    assert [name for name in left if any(str(pid) in name for pid in pids)] == [], json.dumps(sorted(left))


def is_ours(pid: int, marks: Path) -> bool:
    """Whether a process is one of the job's, and not another one that has got its number."""
    return str(marks) in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")

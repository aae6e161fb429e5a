"""Groups that are not the whole job, with real launchers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import warm

from .command import run

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
MPIRUN = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "4"]
COMMANDS = {
    "torch": lambda: [warm.torchrun(), "--nproc_per_node", "4", str(HERE / "groups_torch.py")],
    "mpi": lambda: [*MPIRUN, warm.python(), str(HERE / "groups_mpi.py")],
}


@pytest.mark.parametrize("backend", COMMANDS)
def test_groups_of_some_ranks(backend: str) -> None:
    done = run(COMMANDS[backend](), timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {n} fine" for n in range(4)], done.stdout + done.stderr

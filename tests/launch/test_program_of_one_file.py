"""Programs of one file: their classes and functions are the same ones in payloads, materializers and values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launch.command import run

BIN = Path(sys.executable).parent
PROGRAM = str(Path(__file__).parent / "programs" / "own_main.py")
MPIRUN = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "2"]
COMMANDS = {
    "mpirun": [*MPIRUN, sys.executable, PROGRAM],
    "mpirun-m": [*MPIRUN, sys.executable, "-m", "tests.launch.programs.own_main"],
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", PROGRAM],
    "launch": [sys.executable, PROGRAM, "launch"],
    "standard-input": [*MPIRUN, "sh", "-c", f"exec '{sys.executable}' - < '{PROGRAM}'"],
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=pytest.mark.exhaustive) if how in ("torchrun", "mpirun-m", "standard-input") else how
        for how in COMMANDS
    ],
)
@pytest.mark.timeout(400)
def test_a_script_has_its_classes_once_whatever_travels(how: str) -> None:
    done = run(COMMANDS[how], timeout_s=120, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["wrong: []"] * (1 if how == "launch" else 2), done.stdout + done.stderr

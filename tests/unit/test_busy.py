"""A command is run again and again beside busy processes, and what fails is shown."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests import busy

COUNT = """
import pathlib, sys
counter = pathlib.Path(sys.argv[1])
counter.write_text(counter.read_text() + "x" if counter.exists() else "x")
print("run", len(counter.read_text()))
sys.exit(3 if len(counter.read_text()) == 2 else 0)
"""


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_processes_are_busy_meanwhile_and_not_after() -> None:
    before = _children()
    with busy.busy(2):
        assert len(_children() - before) == 2
    assert _children() == before


def test_each_run_is_told_and_a_failure_is_the_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", COUNT, str(tmp_path / "one")]
    assert busy.main(["--loops", "1", "--runs", "3", *command]) == 1
    said = capfd.readouterr().out
    for part in ("1/3 ", "2/3 ", "3/3 ", ": FAILED (3) after", "run 2", "2 of 3 runs passed"):
        assert part in said


def test_another_command_runs_beside_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Each of the two waits for the other one.
    meet = "import os, sys; os.open(sys.argv[1], os.O_WRONLY if sys.argv[2] == 'w' else os.O_RDONLY)"
    os.mkfifo(tmp_path / "pipe")
    one, other = ([sys.executable, "-c", meet, str(tmp_path / "pipe"), way] for way in "rw")
    assert busy.main(["--loops", "0", "--runs", "1", "--beside", shlex.join(other), *one]) == 0
    said = capfd.readouterr().out
    assert said.count("1/1 ") == said.count(": passed after") == 2
    assert said.endswith("1 of 1 runs passed\n")

"""Ranks that meet over MPI: all say the same of who does not come, wherever in the tree that is, and of who dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.matrix.start import ROOT, mpirun

SCRIPT = Path(__file__).parent / "meeting_mpi.py"
SELDOM = pytest.mark.exhaustive


def lines(folder: Path, command: list[str], ranks: int, *victim: int) -> list[list[str]]:
    """Run it; return what each rank has written, but for a victim."""
    marks = folder / "marks"
    marks.mkdir()
    done = subprocess.run(
        [*command, sys.executable, str(SCRIPT), str(marks), *map(str, victim)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )
    files = [marks / str(rank) for rank in range(ranks) if rank not in victim]
    assert all(file.exists() for file in files), done.stdout + done.stderr
    return [file.read_text().splitlines() for file in files]


@SELDOM
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [pytest.param(4, marks=pytest.mark.long), 7])
def test_all_name_those_who_did_not_come_and_nobody_else(tmp_path: Path, ranks: int) -> None:
    first, *others = lines(tmp_path, mpirun(ranks), ranks)
    assert all(other == first for other in others), (first, others)
    assert first[0] == "went well"
    for line in first[1:]:
        text = r"\[(.*)\]: (\d+) \[(.*)\] MPI exchange: ranks? (.*) of (\d) did not come within 0.1 s"
        found = re.fullmatch(text, line)
        assert found is not None, line
        assert found[1] == found[3] == found[4], line
        assert (found[1].split(", ")[0], found[5]) == (found[2], str(ranks)), line


@SELDOM
@pytest.mark.parametrize("victim", [0, 1, 6])
def test_all_learn_of_a_death_while_they_wait(tmp_path: Path, victim: int) -> None:
    found = lines(tmp_path, mpirun(7, "--with-ft", "ulfm"), 7, victim)
    for (line,) in found:
        assert line.startswith(f"lost {victim}: MPI exchange: MPI failed with rank {victim}: "), found

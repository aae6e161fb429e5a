"""Tests that need the machine alone get it, though they are many who wait for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each writes one line when its turn begins and one when it ends; appended lines are whole.
TURNS = """
import os, sys
from pathlib import Path
from tests.turns import turn

me, folder = sys.argv[1], Path(sys.argv[2])
for number in range(20):
    alone = number % 5 == int(me)
    with turn(folder, alone=alone):
        for what in ("begins", "ends"):
            with (folder / "diary").open("a") as diary:
                diary.write(f"{what} {me} {alone}\\n")
            os.sched_yield()
"""


def test_nobody_is_at_work_beside_one_that_is_alone(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", TURNS, str(me), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for me in range(3)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
    at_work: dict[str, bool] = {}
    for line in (tmp_path / "diary").read_text().splitlines():
        what, me, alone = line.split()
        if what == "begins":
            assert not at_work or (alone == "False" and not any(at_work.values())), line
            at_work[me] = alone == "True"
        else:
            del at_work[me]
    assert not at_work

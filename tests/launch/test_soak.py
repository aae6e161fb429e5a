"""The soak, as a user starts it: it passes, it can be repeated, and it finds what is planted."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from .command import run

SELDOM = pytest.mark.exhaustive
#: What a fork of the warm parent has of its memory grows by itself, in steps of 30 MiB, and the soak looks for growth.
pytestmark = pytest.mark.cold


def soak(
    folder: Path, *options: str, backend: str = "local", timeout_s: float = 200
) -> tuple[int, dict[str, Any], str]:
    """Run it; return the exit code, the report, and what was printed."""
    command = [sys.executable, "-m", "lazycast", "soak", "--backend", backend, *options, "--out", str(folder)]
    done = run(command, timeout_s=timeout_s)
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads((folder / f"soak-{backend}.json").read_text())
    assert (folder / f"soak-{backend}.txt").read_text() == done.stdout
    return done.returncode, said, done.stdout + done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "backend",
    # CI soaks on each for longer.
    [
        pytest.param("local", marks=SELDOM),
        *(pytest.param(it, marks=[SELDOM, pytest.mark.long]) for it in ("torch", "mpi")),
    ],
)
def test_ten_seconds_of_it(backend: str, tmp_path: Path) -> None:
    code, said, text = soak(tmp_path, "--minutes", "0.16", "--seed", "6", backend=backend)
    assert (code, said["found"]) == (0, {"wrong values": 0, "hangs": 0, "leaks": 0}), text
    assert (said["backend"], said["ranks"], said["seed"], said["failed"]) == (backend, 4, 6, [])
    assert said["jobs"]["mixed"] == 1
    assert said["casts"] > 300
    assert sum(said["endings"].values()) == said["outcomes"] >= 4 * 400
    assert len(said["injected"]) > 6
    assert {"MaterializeError", "RemoteError", "cancelled"} <= set(said["endings"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", [pytest.param(backend, marks=SELDOM) for backend in ("local", "torch", "mpi")])
def test_a_death_is_told_to_all(backend: str, tmp_path: Path) -> None:
    code, said, text = soak(tmp_path, "--seed", "6", "--job", "1", backend=backend)
    assert (code, said["jobs"], said["injected"]["killed"]) == (0, {"death": 1}, 1), text
    assert said["told"]["survivors"] == 3
    assert said["endings"]["PeerLostError"] >= 3


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("plant", "finding", "says"),
    [
        ("wrong value", "wrong values", "list instead of"),
        pytest.param("leak", "leaks", "memfd:lazycast", marks=SELDOM),
        pytest.param("hang", "hangs", "was not settled", marks=SELDOM),
        pytest.param("stuck", "hangs", "does not go on; its threads:\n.*in ask", marks=SELDOM),
    ],
)
def test_it_finds_what_is_planted(plant: str, finding: str, says: str, tmp_path: Path) -> None:
    limits = ["--limit-s", "5", "--slack-s", "3"] if finding == "hangs" else []
    options = ["--seed", "6", "--job", "0", "--ranks", "2", "--plant", plant, *limits]
    code, said, text = soak(tmp_path, *options)
    assert code == 1, text
    assert said["found"][finding] > 0, text
    if not limits:  # a rank that hangs takes others with it
        assert sum(said["found"].values()) == said["found"][finding], text
    assert re.search(says, text, re.DOTALL), text
    (failed,) = said["failed"]
    assert shlex.split(failed["repeat"])[-4:] == ["--seed", "6", "--job", "0"]
    assert f"again: {failed['repeat']}" in text
    assert (tmp_path / "soak-local-seed6-job0" / "diary.1").exists()

"""A rank that dies in the middle of a body, seen by the one that receives it and by the one that sends it.

It is stopped first, and killed when nothing moves any more: so the survivor is in the middle of a body for sure, if
what connects them streams bodies, or has no room for a whole one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.namespaces import narrow_host, need

pytestmark = pytest.mark.usefixtures("warm_python")
SCRIPT = Path(__file__).parent / "transit.py"
ROOT = Path(__file__).parents[2]
LIMIT_S = 90.0
ATTEMPTS = 4


def await_mark(path: Path, ranks: list[subprocess.Popen[str]]) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not path.exists():
        ended = [rank.communicate() for rank in ranks if rank.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < until_s, f"no rank has come as far as {path.name!r}"
        time.sleep(0.0005)


def survivors_events(backend: str, victim: int, folder: Path, *within: str) -> list[dict[str, Any]]:
    """Kill the victim in the middle of a body; return what the other one has to say."""
    common = {**os.environ, "WORLD_SIZE": "2", "FOLDER": str(folder), "GLOO_SOCKET_IFNAME": "lo"}
    common |= {"VICTIM": str(victim), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*within, sys.executable, str(SCRIPT), "transit", backend],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        await_mark(folder / "begun", ranks)
        pid = int((folder / f"pid.{victim}").read_text())
        os.kill(pid, signal.SIGSTOP)
        (folder / "stopped").touch()
        await_mark(folder / "still", ranks)
        os.kill(pid, signal.SIGKILL)
        stdout, stderr = ranks[1 - victim].communicate(timeout=LIMIT_S + 20)
        assert ranks[1 - victim].returncode == 0, stdout + stderr
        assert "Traceback" not in stderr, stderr
        assert "did not answer the farewell" not in stderr, stderr
        return [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def judge(backend: str, victim: int, folder: Path, *within: str) -> None:
    """Kill a rank, and see what the other one says; again where it was stopped too late, with all of a body there."""
    for attempt in range(ATTEMPTS):
        mine = folder / str(attempt)
        mine.mkdir()
        events = survivors_events(backend, victim, mine, *within)
        if not any(event["event"] == "value" for event in events):
            check(events, victim)
            return
        sys.stderr.write(f"run again: {events}\n")
    pytest.fail(f"the victim was stopped too late {ATTEMPTS} times")


def check(events: list[dict[str, Any]], victim: int) -> None:
    holds, *errors, left, done = events
    descriptors = {name: count for name, count in holds["more"].items() if name.startswith("descriptor ")}
    assert sum(descriptors.values()) == 1, holds  # the connection; what had introduced the two has gone
    threads = sum(count for name, count in holds["more"].items() if name.startswith("thread "))
    assert holds["more"]["native threads"] == threads, holds
    assert [(error["kind"], error["rank"]) for error in errors] == [("PeerLostError", victim)] * 2, errors
    assert left == {"event": "left", "more": {}}
    assert done == {"event": "done"}


@pytest.mark.parametrize("victim", [0, 1], ids=["who sends", "who receives"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("local", marks=pytest.mark.exhaustive)])
def test_a_death_in_the_middle_of_a_body_is_told_at_once(backend: str, victim: int, tmp_path: Path) -> None:
    judge(backend, victim, tmp_path)


@pytest.mark.cold
@pytest.mark.timeout(400)
@pytest.mark.exhaustive  # needs root
@pytest.mark.parametrize("victim", [0, 1], ids=["who sends", "who receives"])
def test_a_death_is_told_where_sockets_hold_less_than_a_body(victim: int, tmp_path: Path) -> None:
    need()
    with narrow_host() as within:
        judge("torch", victim, tmp_path, *within)

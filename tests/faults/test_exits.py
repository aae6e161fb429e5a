"""Interrupts, exits and forks of real ranks. What becomes of survivors of a death is the matrix's (`test_matrix`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("warm_python")
SCENARIOS = Path(__file__).parent / "scenarios.py"
SIZE = 5  # the tree is three wide, so rank 1 passes on to rank 4


def run(scenario: str, backend: str, *, script: Path = SCENARIOS, **env: Any) -> list[tuple[int, list[dict[str, Any]]]]:
    """Run a scenario; return each rank's exit code and events."""
    with tempfile.TemporaryDirectory() as folder:
        common = {**os.environ, "WORLD_SIZE": str(SIZE), "FOLDER": folder, "GLOO_SOCKET_IFNAME": "lo"}
        common |= {name: str(value) for name, value in env.items()} | {"OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), scenario, backend],
                env={**common, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(SIZE)
        ]
        results = []
        try:
            for process in ranks:
                stdout, stderr = process.communicate(timeout=200)
                events = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
                assert "Traceback" not in stderr, stderr
                results.append((process.returncode, events))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return results


def errors(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "error"]


@pytest.mark.parametrize("casts", [50, pytest.param(150, marks=pytest.mark.exhaustive)])
def test_interrupts_of_the_root_at_any_moment_leave_nobody_out_of_step(casts: int) -> None:
    for rank, (code, events) in enumerate(run("interrupts_at_any_moment", "local", MAX_INFLIGHT=2000, CASTS=casts)):
        assert code == 0, (rank, code, events)
        assert events[-1]["event"] == "done"
        if rank == 0:
            assert events[0]["times"] > 10


@pytest.mark.cold  # also what C++ does at the end
@pytest.mark.parametrize("backend", ["local", pytest.param("torch", marks=pytest.mark.exhaustive)])
def test_an_interpreter_that_exits_without_close_ends_cleanly(backend: str) -> None:
    for rank, (code, events) in enumerate(run("exit_without_close", backend)):
        assert (code, [e["event"] for e in events]) == (0, ["leaving", "done"]), (rank, code, events)


@pytest.mark.parametrize("backend", ["local", pytest.param("torch", marks=pytest.mark.exhaustive)])
def test_a_forked_child_leaves_its_parent_alone(backend: str) -> None:
    for rank, (code, events) in enumerate(run("fork_while_open", backend)):
        assert code == 0, (rank, code, events)
        assert events[0] == {"event": "child", "exitcode": 0}, (rank, events)
        assert events[1] == {"event": "value", "value": "'after the fork'"}, (rank, events)


@pytest.mark.parametrize(
    ("backend", "shared"), [("local", "auto"), pytest.param("torch", "off", marks=pytest.mark.exhaustive)]
)
def test_a_death_is_told_although_a_forked_child_lives(backend: str, shared: str) -> None:
    for rank, (code, events) in enumerate(run("death_with_a_child_alive", backend, VICTIM=2, SHARED_MEMORY=shared)):
        if rank != 2:
            assert code == 0, (rank, code, events)
            assert [e["kind"] for e in errors(events)] == ["PeerLostError"], (rank, events)


@pytest.mark.parametrize(
    ("backend", "shared", "victim"),
    [
        ("local", "auto", 2),
        pytest.param("local", "off", 1, marks=pytest.mark.exhaustive),
        pytest.param("local", "off", 4, marks=pytest.mark.exhaustive),
        pytest.param("torch", "off", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_death_ends_the_casts_of_all_roots(backend: str, shared: str, victim: int) -> None:
    results = run("death_of_one_of_several_roots", backend, VICTIM=victim, SHARED_MEMORY=shared, ROOTS="any")
    for rank, (code, events) in enumerate(results):
        if rank == victim:
            continue
        assert code == 0, (rank, code, events)
        assert [e["kind"] for e in errors(events)] == ["PeerLostError"] * (SIZE + 1), (rank, events)
        assert {e["rank"] for e in errors(events)} == {victim}, (rank, events)
        assert [e["lost"] for e in events if e["event"] == "stats"] == [1], (rank, events)


@pytest.mark.parametrize("victim", [1, *(pytest.param(rank, marks=pytest.mark.exhaustive) for rank in (0, 2, 4))])
def test_who_closes_because_of_a_loss_is_not_taken_for_its_cause(victim: int) -> None:
    results = run("closing_at_the_first_failure", "local", VICTIM=victim, SHARED_MEMORY="off", ROOTS="any")
    for rank, (code, events) in enumerate(results):
        if rank != victim:
            assert code == 0, (rank, code, events)
            assert [(e["kind"], e["rank"]) for e in errors(events)] == [("PeerLostError", victim)] * 3, (rank, events)

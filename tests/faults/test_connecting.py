"""What comes between ranks on different hosts while they connect, over torch: deaths, and addresses that do not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_exits import errors, run

pytestmark = pytest.mark.usefixtures("warm_python")
SCRIPT = Path(__file__).parent / "connecting.py"
ROOT = Path(__file__).parents[2]
SELDOM = pytest.mark.exhaustive
STEPS = [f"{step}-{moment}" for step in ("__init__", "call", "finish") for moment in ("before", "after")]
OFTEN = (("call-after", 1), ("finish-before", 0))

Events = list[dict[str, Any]]


def survivors(scenario: str, victim: int, *, dies: bool) -> dict[int, Events]:
    """Run it; return what each survivor said. All came to their end, and nothing was left over."""
    found = {}
    for rank, (code, events) in enumerate(run(scenario, "torch", script=SCRIPT, VICTIM=victim, PYTHONPATH=ROOT)):
        if rank == victim and dies:
            continue
        assert code == 0, (rank, code, events)
        assert events[-2:] == [{"event": "left", "more": {}}, {"event": "done"}], (rank, events)
        found[rank] = events
    return found


@pytest.mark.parametrize(
    ("step", "victim"),
    [
        pytest.param(step, victim, marks=[] if (step, victim) in OFTEN else [SELDOM])
        for step in STEPS
        for victim in (0, 1, 4)
    ],
)
def test_a_death_at_any_step_is_told_to_all(step: str, victim: int) -> None:
    """Of the construction, or where that was through, of the next cast."""
    for rank, events in survivors(step, victim, dies=True).items():
        (error,) = errors(events)
        assert error["kind"] in ("BackendError", "PeerLostError"), (rank, events)
        assert error["rank"] == victim, (rank, events)


def test_a_rank_that_cannot_be_reached_is_everybodys_error() -> None:
    for rank, events in survivors("moves_away", 1, dies=False).items():
        (error,) = errors(events)
        assert (error["kind"], error["rank"]) == ("BackendError", 1), (rank, events)
        assert "rank 4 (group-local) cannot connect to rank 1, which is on another host: 127.0.0.1:" in error["message"]
        assert "(Connection refused); set GLOO_SOCKET_IFNAME= on rank 1 to the interface" in error["message"]


@SELDOM
def test_a_rank_without_an_address_is_everybodys_error() -> None:
    for rank, events in survivors("is_nowhere", 1, dies=False).items():
        (error,) = errors(events)
        assert (error["kind"], error["rank"]) == ("BackendError", 1), (rank, events)
        assert (
            "rank 1 (group-local) has no address for ranks on other hosts: GLOO_SOCKET_IFNAME=no-such0 names no "
            in (error["message"])
        )
        assert "set GLOO_SOCKET_IFNAME= to the interface that they reach" in error["message"]


@SELDOM
def test_where_gloo_has_no_interface_they_connect_all_the_same() -> None:
    for rank, events in survivors("has_no_gloo", 1, dies=False).items():
        assert [event["value"] for event in events if event["event"] == "value"] == ["None", "'x'"], (rank, events)
        assert [event["link"] for event in events if event["event"] == "kind"] == ["tcp"], (rank, events)


@SELDOM
@pytest.mark.parametrize("scenario", ["lacks_descriptors", "lacks_both"])
def test_a_rank_short_of_descriptors_is_everybodys_error_at_once(scenario: str) -> None:
    """Also where it has nothing for gloo either, so that a rank that goes away is not seen."""
    for rank, events in survivors(scenario, 1, dies=False).items():
        (error,) = errors(events)
        assert (error["kind"], error["rank"]) == ("BackendError", 1), (rank, events)
        why = "rank 1 (group-local) cannot connect to other hosts: [Errno 24] Too many open files"
        assert why in error["message"], (rank, events)

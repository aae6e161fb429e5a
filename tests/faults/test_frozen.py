"""Ranks that are stopped and go on later: they are named as not answering, never as dead, and then all go on.

A rank stays frozen until the others have seen it: a call that waited for it would wait for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_exits import run

pytestmark = pytest.mark.usefixtures("warm_python")
SELDOM = pytest.mark.exhaustive
SCENARIOS = Path(__file__).parent / "frozen_ranks.py"
Events = list[dict[str, Any]]

WAYS = {"local-shared": ("local", "auto"), "local-network": ("local", "off"), "torch-network": ("torch", "off")}
#: Who is frozen by default.
OFTEN = (("local-shared", 1), ("local-network", 0))


def weighed() -> list[Any]:
    return [
        pytest.param(*WAYS[way], victim, id=f"{way}-{victim}", marks=[] if (way, victim) in OFTEN else [SELDOM])
        for way in WAYS
        for victim in (0, 1, 4)
    ]


def events_of(scenario: str, backend: str, shared: str, victim: int, patience: int = 1) -> list[Events]:
    """Run a scenario; return each rank's events. Nobody was lost, and everybody got to the end."""
    results = run(scenario, backend, script=SCENARIOS, VICTIM=victim, SHARED_MEMORY=shared, PATIENCE=patience)
    for rank, (code, events) in enumerate(results):
        assert code == 0, (rank, code, events)
        assert events[-1]["event"] == "done", (rank, events)
        assert "PeerLostError" not in str(events), (rank, events)
    return [events for _, events in results]


def the(name: str, events: Events) -> dict[str, Any]:
    found = [event for event in events if event["event"] == name]
    assert len(found) == 1, events
    return found[0]


def answered_too_late(events: Events, victim: int) -> bool:
    """Whether a rank names nobody, or the root that has not answered yet, where it should name who is frozen."""
    silent = the("meanwhile", events)["silent"]
    return victim not in silent and set(silent) <= {0}


@pytest.mark.parametrize(("backend", "shared", "victim"), weighed())
def test_a_frozen_rank_is_named_as_silent_and_goes_on_with_the_others(backend: str, shared: str, victim: int) -> None:
    for patience in (1, 2, 4):
        seen = events_of("goes_on", backend, shared, victim, patience)
        if not any(answered_too_late(events, victim) for rank, events in enumerate(seen) if rank != victim):
            break
    for rank, events in enumerate(seen):
        assert the("after", events)["value"] == "after", (rank, events)
        meanwhile = the("meanwhile", events)
        assert meanwhile["kind"] == "CastTimeoutError", (rank, events)
        if rank == victim:  # it has not been waited for, and learns of that as soon as it asks
            assert meanwhile["rank"] != victim, events
            assert victim in meanwhile["missing"], events
            continue
        assert victim in meanwhile["silent"], (rank, events)
        why = "stopped by a signal" if shared == "auto" else "frozen, starved, or cut off?"
        assert f"rank {victim} has not answered for " in meanwhile["message"], (rank, events)
        assert f"({why})" in meanwhile["message"], (rank, events)
        # What rank 4 knows of the root comes by way of rank 1: it has heard that one.
        far = meanwhile["rank"] == 4 and victim == 0 and shared == "off"
        assert ("last heard" in meanwhile["message"]) == (not far), events


def test_a_call_that_was_waiting_is_told_that_its_rank_did_not_run() -> None:
    for rank, events in enumerate(events_of("is_told_that_its_time_was_over", "local", "auto", 2)):
        assert the("after", events)["value"] == "after", (rank, events)
        if rank == 0:
            continue
        pending = the("pending", events)
        assert pending["kind"] == "CastTimeoutError"
        assert ("this rank itself did not run for " in pending["message"]) == (rank == 2), (rank, events)


@pytest.mark.parametrize(
    ("backend", "shared"),
    [pytest.param(*it, id=way, marks=[] if way == "local-shared" else [SELDOM]) for way, it in WAYS.items()],
)
def test_who_has_been_left_behind_is_told_so_and_the_others_can_close(backend: str, shared: str) -> None:
    for rank, events in enumerate(events_of("is_left_behind", backend, shared, 1)):
        if rank == 1:
            after = the("after", events)
            assert after["kind"] == "ClosedError", events
            assert after["rank"] != 1
            assert "has closed its object" in after["message"]
        else:
            the("closed", events)  # while the other was frozen, which waits for that

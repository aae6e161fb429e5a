"""What each surviving rank must have seen of a combination, and after how long it has seen it.

Judged is what it was told, not how soon: who is told of a death or a farewell has not waited for its time to be over
(`rank.LONG_S`), since then it would have been told that. How long it took is for the page.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from tests.faults.matrix.combinations import DEADLY, ORDERLY, Combination
from tests.faults.matrix.start import Event, Seen


@dataclass(frozen=True)
class Sight:
    """What a surviving rank saw first of a fault."""

    rank: int
    kind: str  # of the error, or "value" if it never saw any
    ms: float  # after the fault


def check(it: Combination, seen: Seen) -> list[Sight]:
    """Raise unless all is as it must be; return what each survivor saw first."""
    _check_exits(it, seen)
    struck_s = _fault_of(it, seen)
    sights = []
    for rank in it.survivors:
        events = seen.said[rank]
        outcomes = [e for e in events if e["event"] == "outcome" and e["what"] != "again"]
        about = f"{it.id}: rank {rank}: {events} {seen.stderr[rank]}"
        assert outcomes, about
        for outcome in outcomes:
            _check_outcome(it, rank, outcome, struck_s, about)
        for event in events:
            if event["event"] == "resources":
                assert _left_over(it, event["more"]) == {}, about
            if event["event"] == "outcome" and event["what"] == "again":
                assert event["kind"] == "value", about
        errors = [e for e in outcomes if e["kind"] != "value"]
        assert errors, about
        first = errors[0]
        sights.append(Sight(rank, first["kind"], (first["at_s"] - max(struck_s, first["began_s"])) * 1e3))
    assert seen.left == [], f"{it.id}: left behind: {seen.left}"
    return sights


def _left_over(it: Combination, more: dict[str, int]) -> dict[str, int]:
    if it.backend == "mpi" and it.step == "transit" and it.fault in DEADLY:
        # A send that MPI can neither complete nor cancel: its memory must last as long as the process.
        return {name: count for name, count in more.items() if name != "mappings of shared memory"}
    return more


def _fault_of(it: Combination, seen: Seen) -> float:
    at = [e["at_s"] for e in seen.said[it.victim] if e["event"] == "fault"]
    assert len(at) == 1, f"{it.id}: the fault did not come: {seen}"
    return float(at[0])


class TooLate(AssertionError):
    """What was to be seen could not be: this says nothing of lazycast.

    The victim got to its step when there was nothing left to disturb; or a rank's time was over before the one that
    knows more, and was not struck, had been given a core to answer.
    """


def _others(rank: int, seen: Seen) -> str:
    """Where one does not end, another may be to blame."""
    return "\n".join(
        f"rank {other}: {seen.codes.get(other)} {events} {seen.stderr[other]}"
        for other, events in seen.said.items()
        if other not in (-1, rank)
    )


def _check_exits(it: Combination, seen: Seen) -> None:
    for rank, events in seen.said.items():
        if rank < 0:
            continue  # the wire
        about = f"{it.id}: rank {rank}: {seen.codes.get(rank)} {events} {seen.stderr[rank]}"
        if rank == it.victim and it.fault in DEADLY:
            number = signal.SIGKILL if it.fault == "kill" else signal.SIGTERM
            assert seen.codes.get(rank, -number) == -number, about
            continue
        assert seen.codes.get(rank, 0) == 0, f"{about}\nand the others: {_others(rank, seen)}"
        assert "Traceback" not in seen.stderr[rank], about
        if rank != it.victim or it.fault != "exit":
            assert events[-1]["event"] == "done", about


def _check_outcome(it: Combination, rank: int, outcome: Event, struck_s: float, about: str) -> None:
    kind = outcome["kind"]
    if it.step == "constructing":
        _check_construction(it, outcome, about)
    elif it.fault == "freeze":
        _check_frozen(it, outcome, about)
    elif it.fault == "cut":
        _check_cut(outcome, rank, about)
    else:
        if kind == "value":  # what could still be finished
            # A rank that was struck may have reported before, and the verdict is on its way: as good as done.
            if it.fault in DEADLY or (it.fault not in ORDERLY and outcome["at_s"] <= struck_s):
                raise TooLate(f"the fault came when all was done: {about}")
            assert it.fault in ORDERLY, about
            return
        assert kind == ("PeerLostError" if it.fault in DEADLY else "ClosedError"), about
        assert outcome["rank"] == it.victim, about
        assert f"rank {it.victim} (" in outcome["message"], about
        assert it.fault in ORDERLY or re.search(r"(last|never) heard", outcome["message"]), about


def _check_construction(it: Combination, outcome: Event, about: str) -> None:
    if it.fault == "freeze":
        assert outcome["kind"] == "CastTimeoutError", about
    else:
        assert outcome["kind"] in ("BackendError", "PeerLostError"), about
    # Over local sockets a rank may see first that another has given up, which had seen the victim's end.
    named = "rank \\d" if it.backend == "local" and it.fault != "freeze" else f"rank {it.victim}\\b"
    assert re.search(named, outcome["message"]), about


def _check_frozen(it: Combination, outcome: Event, about: str) -> None:
    if outcome["what"] == "after":  # it has thawed
        if it.step == "closing":
            assert (outcome["kind"], outcome.get("rank")) in (("ClosedError", it.victim), ("value", None)), about
        else:
            assert outcome["kind"] == "value", about
        return
    if outcome["kind"] == "value":  # all that it had to do for this cast it had done
        return
    assert outcome["kind"] == "CastTimeoutError", about
    _check_named(outcome, {str(it.victim)}, about)


def _check_cut(outcome: Event, rank: int, about: str) -> None:
    if outcome["what"] == "after":  # the wire is there again
        assert outcome["kind"] == "value", about
        return
    if outcome["what"] == "cast" and outcome["kind"] == "value":
        raise TooLate(f"all had crossed before the wire was cut: {about}")
    assert outcome["kind"] == "CastTimeoutError", about
    there = {"2", "3"} if rank < 2 else {"0", "1"}
    _check_named(outcome, there, about)


def _check_named(outcome: Event, whom: set[str], about: str) -> None:
    """A time-out must lack one of these."""
    missing, text = _missing(outcome), outcome["message"]
    if not missing & whom:
        if any(f"rank {rank} has not answered" in text for rank in missing):
            raise TooLate(f"who knew more has not answered in time: {about}")
        if "the root has not made this call" in text:
            raise TooLate(f"the root was not run in time to make its call: {about}")
    assert missing & whom, about


def _missing(outcome: Event) -> set[str]:
    """Return whom a time-out lacks, be it of this rank or of the first whose time was over: numbers, and some more."""
    said = re.split("no value after|had waited", outcome["message"], maxsplit=1)[1]
    return set(re.findall(r"\d+", said.partition("missing: ")[2]))

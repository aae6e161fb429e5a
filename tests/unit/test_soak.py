"""The soak's plain parts: plans, payloads, the oracle, the census."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lazycast.tools.soak import census, materializers, oracle, payloads, plan
from lazycast.tools.soak.diary import Orders
from lazycast.tools.soak.job import Outcome
from lazycast.tools.soak.plan import CastPlan, JobPlan, RoundPlan
from lazycast.tools.soak.report import Report


def jobs(count: int = 24) -> list[JobPlan]:
    return [plan.job(5, number, "torch", 4) for number in range(count)]


def casts(job: JobPlan) -> list[tuple[RoundPlan, CastPlan]]:
    return [(r, cast) for r in job.rounds for burst in r.bursts for cast in burst.casts]


def test_a_plan_depends_on_its_seed_alone() -> None:
    assert plan.job(5, 3, "local", 4) == plan.job(5, 3, "local", 4)
    for other in (plan.job(6, 3, "local", 4), plan.job(5, 9, "local", 4)):
        assert other.rounds != plan.job(5, 3, "local", 4).rounds


def test_plans_have_all_that_there_is() -> None:
    planned = [pair for job in jobs() for pair in casts(job)]
    assert {job.kind for job in jobs()} == set(plan.JOBS)
    assert {cast.fault for _, cast in planned} == {None, *plan.FAULTS}
    assert {cast.kind for _, cast in planned} == set(payloads.kinds("torch", "pickle"))
    assert {cast.materializer for _, cast in planned} == {None, *materializers.NAMES}
    assert {burst.how for job in jobs() for r in job.rounds for burst in r.bursts} == set(plan.WAYS)
    assert {type(cast.key) for _, cast in planned} == {type(None), str, int, bytes}
    assert {r.ending for job in jobs() for r in job.rounds} == {"close", "close early", "death", "leave"}
    sizes = [cast.nbytes for _, cast in planned]
    assert min(sizes) == 0
    assert max(sizes) > 16 << 20


def test_keys_are_used_once_but_for_those_that_are_used_twice() -> None:
    for job in jobs(12):
        for r in job.rounds:
            keyed = Counter(c.key for b in r.bursts for c in b.casts if c.key is not None and c.follows is None)
            assert set(keyed.values()) <= {1}


@pytest.mark.parametrize("kind", payloads.kinds("local", "pickle"))
def test_payloads_are_made_anew_and_the_same(kind: str) -> None:
    for nbytes in (0, 1, 7, 1000, 70_001):
        one, two = payloads.make(kind, nbytes, 3), payloads.make(kind, nbytes, 3)
        assert payloads.same(one, two) is None
        assert payloads.digest(one) == payloads.digest(two)
        if nbytes > 100:
            other = payloads.make(kind, nbytes, 4)
            assert payloads.same(one, other) is not None
            assert payloads.digest(one) != payloads.digest(other)


@pytest.mark.parametrize(
    ("got", "expected", "says"),
    [
        (1, 1.0, "int instead of float"),
        (np.zeros(3), np.zeros(4), "instead of"),
        (np.zeros(3, "f4"), np.zeros(3, "f8"), "float32"),
        (np.array([1, 2, 3]), np.array([1, 0, 3]), "1 of 3 differ, the first at 1"),
        ({"a": [1, b"x"]}, {"a": [1, b"y"]}, r"\['a'\]: \[1\]: b'x' instead of b'y'"),
        ({"a": 1}, {"b": 1}, "keys"),
        ([1], [1, 2], "1 items instead of 2"),
        (materializers.Opaque("a"), materializers.Opaque("b"), "Opaque"),
    ],
)
def test_what_differs_is_said(got: object, expected: object, says: str) -> None:
    assert payloads.same(expected, expected) is None
    problem = payloads.same(got, expected)
    assert problem is not None
    assert re.search(says, problem)


def about(**options: object) -> RoundPlan:
    said = {"root": 0, "placement": "every", "agree": True, "shared_memory": "auto", "replicated": False, **options}
    return RoundPlan(0, 0, said, False, False, ())


def cast(fault: str | None, rank: int = -1, **more: object) -> CastPlan:
    return replace(CastPlan(1, 0, "k", "bytes", 10, None, fault, rank), **more)


@pytest.mark.parametrize(
    ("options", "rank", "me", "allowed"),
    [
        ({}, 2, 1, {"MaterializeError:2"}),
        ({"agree": False}, 2, 1, {"value"}),
        ({"agree": False}, 2, 2, {"MaterializeError:2"}),
        ({"agree": False}, -1, 3, {"MaterializeError:3"}),
        ({"placement": "demand"}, 2, 1, {"value"}),
        ({"placement": "root"}, 2, 1, {"value"}),
        ({"placement": "root"}, 0, 1, {"MaterializeError:0"}),
        ({"placement": "shard"}, 2, 1, {"value", "MaterializeError:2"}),
        ({"placement": "shard", "agree": False, "shared_memory": False}, 2, 1, {"value"}),
        ({"placement": "shard", "shared_memory": False}, 2, 1, {"MaterializeError:2"}),
        ({"placement": "auto"}, 2, 1, {"value", "MaterializeError:2"}),
    ],
)
def test_how_a_cast_may_end_whose_materializer_raises(
    options: dict[str, object], rank: int, me: int, allowed: set[str]
) -> None:
    assert oracle.endings(cast("raise", rank), about(**options), me) == allowed


def test_endings_that_do_not_go_together_are_found() -> None:
    cancelled = cast("cancel on root")
    assert oracle.disagreement(cancelled, about(), {0: "cancelled", 1: "cancelled"}) is None
    assert "not the same" in str(oracle.disagreement(cancelled, about(), {0: "cancelled", 1: "value"}))
    raised = cast("raise")
    two = {0: "MaterializeError:0", 1: "MaterializeError:1"}
    assert "not the same" in str(oracle.disagreement(raised, about(), two))
    assert oracle.disagreement(raised, about(agree=False), two) is None
    second = cast("twice", follows=0)
    assert oracle.disagreement(second, about(), {0: "KeyInUseError:0", 1: "RemoteError:0"}) is None
    assert "another cast" in str(oracle.disagreement(second, about(), {0: "KeyInUseError:0", 1: "value"}))
    assert "another cast" in str(oracle.disagreement(second, about(), {0: "value", 1: "RemoteError:0"}))
    tight = replace(about(), tight=True)
    assert oracle.disagreement(cast(None), tight, {0: "EncodeError:0", 1: "RemoteError:0"}) is None
    assert "everybody's" in str(oracle.disagreement(cast(None), tight, {0: "EncodeError:0", 1: "value"}))


def test_the_census_finds_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "_SETTLE_S", 0.2)
    before = census.take()
    assert census.left(before, memory_nbytes=64 << 20) == []
    fd, gate = os.memfd_create("lazycast"), threading.Event()
    thread = threading.Thread(target=gate.wait, name="left over")
    thread.start()
    memory = np.ones(20 << 20, np.uint8)
    try:
        found = "; ".join(census.left(before, memory_nbytes=10 << 20))
    finally:
        gate.set()
        thread.join()
        os.close(fd)
    assert memory.any()
    for what in ("memfd:lazycast", "1 left over", "tasks: 1 more", "memory: "):
        assert what in found


def test_a_report_adds_up_and_says_how_to_repeat() -> None:
    report = Report(Orders(7, 0, "local", 3, 60.0, 20.0))
    report.add(Outcome(0, "mixed", casts=5, outcomes=15, injected=Counter(late=1), endings=Counter(value=15)))
    assert report.good
    report.add(Outcome(1, "death", casts=2, outcomes=4, told_s=[0.01, 1.5], leaks=["a descriptor"]))
    assert not report.good
    said, text = report.as_json(), report.as_text()
    assert (said["casts"], said["outcomes"], said["found"]["leaks"]) == (7, 19, 1)
    assert said["told"] == {"survivors": 2, "median_s": 0.755, "max_s": 1.5, "later_than_1_s": 1}
    assert "again: python -m lazycast soak --backend local --ranks 3 --seed 7 --job 1" in text
    assert "leaks: a descriptor" in text

"""What the simulation of large groups counts is what the root of a real group counts."""

from __future__ import annotations

import pytest

import lazycast
from tests.namespaces import need
from tools.simulation.group import Group, Plan
from tools.simulation.measure import on_one_machine, predicted
from tools.simulation.real import Reports, measure, measure_apart, on_host

CASTS = 10
SELDOM = pytest.mark.exhaustive


def count_reports(per_host: int, casts: int) -> int:
    """Cast, and return how many reports of other ranks came to this one."""
    on_host(per_host)
    got = Reports()
    with lazycast.LazyBroadcast(agree=True) as lazy:
        assert [lazy.broadcast(number)["of"] for number in ({"of": n} for n in range(casts))] == list(range(casts))
    return got.count


@pytest.mark.parametrize(
    ("ranks", "per_host"), [(2, 1), (4, 2), *(pytest.param(*it, marks=SELDOM) for it in ((8, 2), (8, 4)))]
)
def test_the_root_of_a_real_group_gets_as_many_reports(ranks: int, per_host: int) -> None:
    found = lazycast.launch(count_reports, ranks=ranks, backend="local", args=(per_host, CASTS), timeout_s=200)
    simulated = Group(Plan(ranks, per_host=per_host, casts=CASTS)).run().root_got["Report"]
    assert found == [simulated, *[0] * (ranks - 1)]


@pytest.mark.parametrize(("ranks", "per_host"), [(2, 1), pytest.param(8, 2, marks=SELDOM)])
def test_what_is_measured_has_the_messages_that_were_predicted(ranks: int, per_host: int) -> None:
    found = measure(ranks, per_host, casts=3)
    assert found["reports"] == predicted(ranks, per_host, on_one_machine(cores=2))["reports"]
    assert 0 < found["value_s"] < found["verdict_s"] < 60


@SELDOM
def test_so_has_what_is_measured_in_namespaces() -> None:
    need()
    found = measure_apart(4, 2, casts=3)
    assert found["reports"] == predicted(4, 2, on_one_machine(cores=2))["reports"]
    assert 0 < found["value_s"] < found["verdict_s"] < 60

"""The root's choice of a placement: what is learnt from reports, and what is not."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lazycast.core.calls import Call
from lazycast.core.future import CastFuture
from lazycast.core.performer import Group
from lazycast.core.placing import Placing, site_of
from lazycast.materialize.cores import Cores
from lazycast.materialize.placement.chooser import Standing
from lazycast.materialize.placement.site import Site
from lazycast.materialize.staged import Staged
from lazycast.net.topology import place
from lazycast.net.wire import Cost, Spent
from lazycast.options import Helpers, Options
from tests.unit.test_lane import options

SIZE, ROOT = 3, 1
NBYTES = 1000
MAX_TRIALS = 1024


def decode(payload: Any) -> Any:
    return payload


def finish(payload: Any, hint: Any) -> Any:
    return payload, hint


def other(payload: Any) -> Any:
    return payload


def placing(placement: str = "auto", hosts: Any = ((0, 1, 2),), **changes: Any) -> Placing:
    group = Group(ROOT, SIZE, ROOT, ["h"] * SIZE, [Cores([0, 1])] * SIZE)
    return Placing(group, place(ROOT, ROOT, hosts), options_of(placement, **changes))


def options_of(placement: str = "auto", **changes: Any) -> Options:
    return dataclasses.replace(options(), placement=placement, root=ROOT, **changes)


def call(seq: int, materialize: Any = decode) -> Call:
    asks: Any = SimpleNamespace(root=ROOT)
    return Call(seq, None, CastFuture(asks, number=seq, since_s=time.monotonic()), materialize)


def only(subject: Placing) -> Standing:
    (standing,) = subject.standings()
    return standing


def samples(standing: Standing) -> int:
    return sum(cost.samples for cost in standing.costs.values())


def report_all(subject: Placing, seq: int, cost: Cost | None = None) -> None:
    for rank in range(SIZE):
        subject.reported(seq, 1 << rank, rank, Cost(0.01, 0.01, 0.01) if cost is None else cost)


# What is chosen


@pytest.mark.parametrize("placement", ["every", "demand", "root", "shard"])
def test_a_fixed_placement_decides_nothing(placement: str) -> None:
    subject = placing(placement)
    assert not subject.chooses
    for seq in range(10):
        assert subject.place(call(seq), NBYTES, 0) == (placement, "asked for")
        subject.spent(seq, Cost(1.0, 1.0))
        report_all(subject, seq)
        subject.failed(seq)
    assert subject.standings() == ()


def test_auto_decides_and_says_why() -> None:
    subject = placing()
    assert subject.chooses
    placement, reason = subject.place(call(1), NBYTES, 0)
    assert (placement, "nothing measured yet" in reason) == ("shard", True)


def test_without_a_materializer_there_is_nothing_to_learn() -> None:
    subject = placing()
    assert subject.place(call(1, None), NBYTES, 0)[0] == "every"
    report_all(subject, 1)
    assert subject.standings() == ()


def test_kinds_are_told_apart_by_materializer_and_size() -> None:
    subject = placing()
    subject.place(call(1), 1000, 0)
    subject.place(call(2), 1001, 0)
    subject.place(call(3), 100_000, 0)
    subject.place(call(4, other), 1000, 0)
    standings = [(s.materializer.rpartition(".")[2], s.casts) for s in subject.standings()]
    assert standings == [("decode", 2), ("decode", 1), ("other", 1)]


def test_two_stages_go_by_the_name_of_the_first_and_share_it_where_payloads_are_replicated() -> None:
    subject = placing(replicated=True)
    assert subject.place(call(1), NBYTES, 0)[0] == "every"
    assert subject.place(call(2, Staged(other, finish)), NBYTES, 0)[0] == "shard"
    assert [s.materializer.rpartition(".")[2] for s in subject.standings()] == ["decode", "other"]


# What is learnt


def test_a_cast_is_learnt_from_once_all_ranks_have_reported() -> None:
    subject = placing()
    subject.place(call(1), NBYTES, 0)
    subject.reported(1, 1 << 0, 0, Cost(0.01, 0.01, 0.01))
    subject.reported(1, 1 << 2, 2, None)  # a rank that did nothing
    subject.reported(1, 1 << 0, 0, Cost(0.01, 0.01, 0.01))  # nobody counts twice
    assert samples(only(subject)) == 0
    subject.reported(1, 1 << 1, 1, None)
    assert samples(only(subject)) == 1
    report_all(subject, 1)
    assert samples(only(subject)) == 1, "it was learnt from already"


def test_a_value_is_known_to_pickle_from_when_one_was_shared_until_one_could_not_be() -> None:
    subject = placing(replicated=True)

    def doubted(seq: int, fn: Any, cost: Cost | None = None) -> bool:
        subject.place(call(seq, fn), NBYTES, 0)
        report_all(subject, seq, cost)
        subject.place(call(seq + 1, fn), NBYTES, 0)
        return subject.doubts(call(seq + 1, fn))

    staged = Staged(other, finish)
    assert doubted(1, decode), "every rank made its own: it was never shared"
    assert not doubted(3, staged)
    assert doubted(5, staged, Cost(0.01, 0.01, 0.01, unshared="it does not pickle"))


def test_what_the_root_spends_before_it_sends_counts_as_its_own() -> None:
    cheap, dear = placing(), placing()
    for subject in (cheap, dear):
        for seq in range(1, 4):
            subject.place(call(seq), NBYTES, 0)
            if subject is dear:
                subject.spent(seq, Cost(1.0, 0.0))
            report_all(subject, seq)
    costs = [only(subject).costs["shard"].bottleneck_s for subject in (cheap, dear)]
    assert costs[1] > costs[0] + 0.4


def test_a_root_that_has_materialized_alone_tells_what_it_cost() -> None:
    subject = placing(hosts=((0,), (1,), (2,)))
    seq = 0
    while True:  # until "root" has its trial
        seq += 1
        placement, _ = subject.place(call(seq), NBYTES, 0)
        if placement == "root":
            subject.spent(seq, Cost(0.01, 0.01, 0.01, shared_nbytes=50))
            for rank in range(SIZE):
                subject.reported(seq, 1 << rank, rank, None)
            break
        report_all(subject, seq)
        assert seq < 100
    assert only(subject).costs["root"].samples == 1


def test_a_rank_tells_the_costs_of_nobody_but_those_it_speaks_for_and_once() -> None:
    subject = placing(hosts=((0,), (1, 2)))
    subject.place(call(1), NBYTES, 0)
    told = Cost(0.0, 0.0, hosts=[Spent(0, 1, 9.0, 9.0, 9.0), Spent(1 << 62, 2, 9.0, 9.0, 9.0)])
    for _ in range(100):
        subject.reported(1, 1 << 1, 1, told)
    assert subject.trials[1].hosts == []
    mine = Spent(1, 1, 0.2, 0.2, 0.2)
    for _ in range(100):
        subject.reported(1, 1 << 2, 2, Cost(0.0, 0.0, hosts=[msgspec.structs.replace(mine, rank=2)]))
    assert len(subject.trials[1].hosts) == 1


def test_a_failed_cast_is_not_learnt_from() -> None:
    subject = placing()
    subject.place(call(1), NBYTES, 0)
    subject.reported(1, 1 << 0, 0, Cost(9.0, 9.0, 9.0))
    subject.failed(1)
    report_all(subject, 1)
    subject.failed(1)  # twice, or one that is not known, is no matter
    assert samples(only(subject)) == 0


def test_reports_on_casts_that_were_not_placed_are_no_matter() -> None:
    subject = placing()
    report_all(subject, 77)
    subject.spent(77, Cost(1.0, 1.0))
    assert subject.standings() == ()


def test_a_value_that_cannot_be_shared_bans_sharing() -> None:
    subject = placing()
    assert subject.place(call(1), NBYTES, 0)[0] == "shard"
    subject.reported(1, 1 << 0, 0, Cost(0.01, 0.01, 0.01, unshared="rank 0 could not share its value: a lock"))
    subject.reported(1, 1 << 1, 1, Cost(0.01, 0.01, 0.01))
    assert only(subject).placement == "shard"
    subject.reported(1, 1 << 2, 2, None)
    standing = only(subject)
    assert standing.placement == "every"
    assert "a lock" in standing.reason
    assert samples(standing) == 0
    for seq in range(2, 100):
        assert subject.place(call(seq), NBYTES, 0)[0] == "every"
        report_all(subject, seq)


def test_memory_is_bounded_by_the_trials_placed_last() -> None:
    subject = placing()
    for seq in range(MAX_TRIALS + 1):
        subject.place(call(seq), NBYTES, 0)
    report_all(subject, 0)  # pushed out by the last
    assert samples(only(subject)) == 0
    report_all(subject, 1)
    assert samples(only(subject)) == 1
    assert len(subject.trials) == MAX_TRIALS - 1


# The site

SITES = {
    "one host": (["a"] * 4, [(0, 1, 2, 3)], None, Site((4,), (8.0,), (4,), 0)),
    "two machines": (["a", "a", "b", "b"], [(0, 1), (2, 3)], None, Site((2, 2), (8.0, 8.0), (2, 2), 0)),
    "one machine, no shared memory": (
        ["a"] * 4,
        [(0,), (1,), (2,), (3,)],
        None,
        Site((1,) * 4, (2.0,) * 4, (1,) * 4, 1),
    ),
    "one machine, two that share": (
        ["a"] * 4,
        [(0, 3), (1,), (2,)],
        None,
        Site((2, 1, 1), (4.0, 2.0, 2.0), (2, 1, 1), 1),
    ),
    "owners on one host": (["a", "a", "b", "b"], [(0, 1), (2, 3)], [0], Site((2, 2), (8.0, 8.0), (1, 2), 0)),
}


@pytest.mark.parametrize(("machines", "hosts", "owners", "site"), SITES.values(), ids=SITES)
def test_the_site_of_a_group(
    machines: list[str], hosts: list[tuple[int, ...]], owners: list[int] | None, site: Site
) -> None:
    """The root is rank 1. Ranks of one machine that share no memory share its eight cores."""
    group = Group(ROOT, 4, ROOT, machines, [Cores(list(range(8)))] * 4)
    assert site_of(group, place(ROOT, ROOT, hosts), options_of(owners=owners)) == site


def test_cores_that_ranks_are_bound_to_add_up() -> None:
    group = Group(0, 4, 0, ["a"] * 4, [Cores([rank]) for rank in range(4)])
    site = site_of(group, place(0, 0, [(0, 1), (2, 3)]), options_of())
    assert site.cores == (2.0, 2.0)


def test_helpers_are_chosen_once_they_have_begun_and_an_interpreter_is_held() -> None:
    begun = False
    group = Group(ROOT, SIZE, ROOT, ["h"] * SIZE, [Cores([0, 1, 2, 3])] * SIZE)
    options = options_of("auto", helpers=Helpers(4))
    subject = Placing(group, place(ROOT, ROOT, ((0, 1, 2),)), options, lambda: begun)
    placed = []
    for seq in range(80):
        begun = seq >= 40
        placement, _ = subject.place(call(seq), NBYTES, 0)
        placed.append(placement)
        for rank in range(SIZE):
            made = placement == "every" or rank == 0
            held_s = 0.9 if made and placement != "helpers" else None
            subject.reported(seq, 1 << rank, rank, Cost(1.0, 1.0, 1.0, 100, held_s=held_s) if made else None)
    assert "helpers" not in placed[:40]
    assert only(subject).placement == "helpers"
    assert only(subject).costs["every"].stall_s == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("size", "placements"), [(1, {"every", "helpers"}), (3, {"shard", "every", "root", "helpers"})]
)
def test_what_is_chosen_from_with_helpers(size: int, placements: set[str]) -> None:
    group = Group(0, size, 0, ["h"] * size, [Cores([0, 1])] * size)
    site = site_of(
        group, place(0, 0, (tuple(range(size)),)), dataclasses.replace(options_of(), helpers=Helpers(2), root=0)
    )
    assert set(site.placements) == placements
    assert site.helpers == 2

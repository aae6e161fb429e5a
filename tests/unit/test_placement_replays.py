"""Replayed traces: what casts cost in all when the chooser places them, against the best fixed placement.

The costs are those of a simulated group, so nothing here depends on the machine that runs the tests.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lazycast.materialize.placement.site import Site
from tests.unit.cast_simulator import Group, Player, Workload, fixed

MIB = 1 << 20
SITES = {
    "1 host, 4 ranks, 2 cores": Site((4,), (2.0,), (4,), 0),
    "2 hosts, 2 ranks, 1 core": Site((2, 2), (1.0, 1.0), (2, 2), 0),
    "1 host, 8 ranks, 64 cores": Site((8,), (64.0,), (8,), 0),
    "2 hosts, 1 rank, 1 core": Site((1, 1), (1.0, 1.0), (1, 1), 0),
}
WORKLOADS = {
    "jpeg": Workload(150_000, 0.040, 9_400_000),
    "small image": Workload(12_000, 0.003, 600_000),
    "video": Workload(38 * MIB, 0.150, 110 * MIB),
    "view": Workload(16 * MIB, 20e-6, 16 * MIB),
    "huge payload": Workload(64 * MIB, 0.060, 32),
    "hash": Workload(15 * MIB, 0.012, 32, staged=True, replicated=True, finish_s=200e-6),
}
IDLE, LOADED = 1, 9  # casts at a time
WARM_UP, CASTS = 100, 300


@functools.cache
def best(site: str, workload: str, at_a_time: int) -> dict[str, tuple[float, float]]:
    """Return, per fixed placement, what a cast costs during and after the warm-up (one simulation, its own seed)."""
    costs = {}
    for placement in ("every", "root", "shard"):
        ended = fixed(SITES[site], WORKLOADS[workload], placement, CASTS, at_a_time, seed=1)
        costs[placement] = (ended[WARM_UP - 1] / WARM_UP, (ended[-1] - ended[WARM_UP - 1]) / (CASTS - WARM_UP))
    return costs


def weighed() -> list[Any]:
    """Each site and workload, by default either idle or loaded."""
    return [
        pytest.param(site, workload, load, id=f"{site}-{workload}-{'loaded' if at else 'idle'}", marks=marks)
        for n, site in enumerate(SITES)
        for k, workload in enumerate(WORKLOADS)
        for at, load in enumerate((IDLE, LOADED))
        for marks in [[] if (n + k + at) % 2 else [pytest.mark.exhaustive]]
    ]


@pytest.mark.parametrize(("site", "workload", "at_a_time"), weighed())
def test_costs_stay_near_those_of_the_best_fixed_placement(site: str, workload: str, at_a_time: int) -> None:
    player = Player(Group(SITES[site], WORKLOADS[workload], seed=2))
    ended = player.run(CASTS, at_a_time)
    learning, after = ended[WARM_UP - 1] / WARM_UP, (ended[-1] - ended[WARM_UP - 1]) / (CASTS - WARM_UP)
    costs = best(site, workload, at_a_time)
    standing = player.chooser.current()[0]
    assert learning <= 2.0 * min(cost for cost, _ in costs.values()), standing
    assert after <= 1.1 * min(cost for _, cost in costs.values()), standing
    assert costs[standing.placement][1] <= 1.1 * min(cost for _, cost in costs.values()), standing
    assert standing.switches <= 3, standing


@pytest.mark.parametrize(
    ("site", "workload", "at_a_time", "expected"),
    [
        ("1 host, 4 ranks, 2 cores", "jpeg", LOADED, {"shard"}),
        ("1 host, 4 ranks, 2 cores", "video", LOADED, {"shard"}),
        ("1 host, 4 ranks, 2 cores", "view", IDLE, {"every", "root"}),
        ("1 host, 4 ranks, 2 cores", "huge payload", IDLE, {"root"}),
        ("1 host, 4 ranks, 2 cores", "huge payload", LOADED, {"shard"}),
        ("1 host, 4 ranks, 2 cores", "hash", LOADED, {"shard"}),
        ("2 hosts, 2 ranks, 1 core", "huge payload", LOADED, {"root"}),
        ("2 hosts, 2 ranks, 1 core", "view", LOADED, {"every", "root"}),
        ("1 host, 8 ranks, 64 cores", "view", IDLE, {"every", "root"}),
        ("2 hosts, 1 rank, 1 core", "video", LOADED, {"every"}),
        ("2 hosts, 1 rank, 1 core", "huge payload", IDLE, {"root"}),
    ],
)
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_where_the_best_is_clear_it_is_found(
    site: str, workload: str, at_a_time: int, expected: set[str], seed: int
) -> None:
    player = Player(Group(SITES[site], WORKLOADS[workload], seed))
    player.run(WARM_UP, at_a_time)
    assert player.chooser.current()[0].placement in expected
    assert Counter(choice.placement for choice in player.choices[WARM_UP // 2 :]).most_common(1)[0][0] in expected


@pytest.mark.parametrize("workload", ["jpeg", "video", "huge payload"])
def test_without_agreement_the_roots_host_is_enough(workload: str) -> None:
    site = "2 hosts, 2 ranks, 1 core"
    player = Player(Group(SITES[site], WORKLOADS[workload], seed=2, agree=False))
    ended = player.run(CASTS, LOADED)
    after = (ended[-1] - ended[WARM_UP - 1]) / (CASTS - WARM_UP)
    assert after <= 1.1 * min(cost for _, cost in best(site, workload, LOADED).values())


@pytest.mark.parametrize("at_a_time", [IDLE, LOADED], ids=["idle", "loaded"])
@pytest.mark.parametrize(
    ("before", "then"),
    [
        (WORKLOADS["view"], replace(WORKLOADS["view"], materialize_s=0.2)),
        (replace(WORKLOADS["view"], materialize_s=0.2), WORKLOADS["view"]),
        (WORKLOADS["jpeg"], replace(WORKLOADS["jpeg"], materialize_s=20e-6, value_nbytes=200 * MIB)),
    ],
    ids=["dearer", "cheaper", "giant value"],
)
def test_the_placement_follows_a_materializer_that_changes(before: Workload, then: Workload, at_a_time: int) -> None:
    site = SITES["1 host, 4 ranks, 2 cores"]
    player = Player(Group(site, before, seed=5))
    player.run(200, at_a_time)
    player.group.workload = then
    player.run(60, at_a_time)
    ended = player.run(100, at_a_time)
    fixed_costs = [fixed(site, then, placement, 100, at_a_time, seed=6)[-1] for placement in ("every", "root", "shard")]
    assert ended[-1] <= 1.15 * min(fixed_costs), player.chooser.current()[0]


def test_the_placement_follows_the_load() -> None:
    player = Player(Group(SITES["1 host, 4 ranks, 2 cores"], WORKLOADS["huge payload"], seed=7))
    placements = []
    for at_a_time in (IDLE, LOADED, IDLE):
        player.run(100, at_a_time)
        placements.append(player.chooser.current()[0].placement)
    assert placements == ["root", "shard", "root"]


@pytest.mark.parametrize("spread", [0.05, 0.5, 1.0], ids=["like each other", "unlike", "very unlike"])
@pytest.mark.parametrize("at_a_time", [IDLE, LOADED], ids=["idle", "loaded"])
def test_noise_does_not_make_the_placement_flap(spread: float, at_a_time: int) -> None:
    """Hashing on two hosts of one core: root and shard cost the same, so nothing but noise tells them apart."""
    player = Player(Group(SITES["2 hosts, 2 ranks, 1 core"], replace(WORKLOADS["hash"], spread=spread), seed=8))
    player.run(1500, at_a_time)
    standing = player.chooser.current()[0]
    assert standing.switches <= 4, standing


def test_trials_are_few_once_all_is_known() -> None:
    player = Player(Group(SITES["1 host, 4 ranks, 2 cores"], WORKLOADS["jpeg"], seed=9))
    player.run(1000, LOADED)
    late = Counter(choice.placement for choice in player.choices[200:])
    assert late["shard"] >= 790
    assert late["every"] <= 2, "it takes almost four times as long"
    tried = [choice.reason for choice in player.choices if choice.placement != "shard"]
    assert all("tried" in reason for reason in tried)


def test_kinds_of_casts_that_alternate_are_told_apart() -> None:
    """Two materializers in turn on one group: each gets what is best for it."""
    site = SITES["1 host, 4 ranks, 2 cores"]
    cheap, dear = Workload(64 * MIB, 0.01, 32), WORKLOADS["jpeg"]
    player = Player(Group(site, dear, seed=10))
    for turn in range(20):
        player.name, player.group.workload = ("cheap", cheap) if turn % 2 else ("dear", dear)
        player.run(10, IDLE)
    placed = {standing.materializer: standing.placement for standing in player.chooser.current()}
    assert placed["cheap"] == "root"
    assert placed["dear"] in ("root", "shard"), "these two take the same time"


@pytest.mark.parametrize("at_a_time", [IDLE, LOADED], ids=["idle", "loaded"])
@pytest.mark.parametrize(
    "site", [Site((2,), (4.0,), (2,), 0, helpers=2), Site((2, 2), (4.0, 4.0), (2, 2), 0, helpers=2)], ids=["1", "2"]
)
@pytest.mark.parametrize(
    ("workload", "helped"),
    [
        (replace(WORKLOADS["jpeg"], held=True), True),
        (WORKLOADS["jpeg"], False),
        (Workload(100, 50e-6, 100, held=True), False),
        (replace(WORKLOADS["view"], held=True), False),
    ],
    ids=["holds the lock", "does not", "cheap", "view"],
)
def test_helpers_make_what_would_keep_a_rank_from_its_work(
    site: Site, workload: Workload, helped: bool, at_a_time: int
) -> None:
    player = Player(Group(replace(site, helpers=4 if helped else 2), workload, seed=11))
    player.run(CASTS, at_a_time)
    standing = player.chooser.current()[0]
    placed = Counter(choice.placement for choice in player.choices[WARM_UP:])
    assert (standing.placement == "helpers") is helped, standing
    assert (placed["helpers"] > CASTS / 2) is helped, placed
    assert standing.costs["helpers"].stall_s == 0.0
    assert (standing.costs["shard"].stall_s > 1e-6) is workload.held
    assert standing.switches <= 3, standing


def test_under_load_one_helper_is_no_match_for_four_ranks() -> None:
    """Their casts would wait for each other longer than the ranks are kept from other work."""
    held, site = replace(WORKLOADS["jpeg"], held=True), Site((4,), (4.0,), (4,), 0, helpers=1)
    placements = []
    for at_a_time in (IDLE, LOADED):
        player = Player(Group(site, held, seed=13))
        player.run(CASTS, at_a_time)
        placements.append(player.chooser.current()[0].placement)
    assert placements == ["helpers", "shard"]


def test_it_follows_a_materializer_that_comes_to_hold_the_lock() -> None:
    player = Player(Group(Site((2,), (4.0,), (2,), 0, helpers=2), WORKLOADS["jpeg"], seed=12))
    player.run(CASTS, IDLE)
    assert player.chooser.current()[0].placement != "helpers"
    player.group.workload = replace(WORKLOADS["jpeg"], held=True)
    player.run(WARM_UP, IDLE)
    assert player.chooser.current()[0].placement == "helpers"
    player.group.workload = Workload(WORKLOADS["jpeg"].payload_nbytes, 50e-6, 100, held=True)
    player.run(WARM_UP, IDLE)
    assert player.chooser.current()[0].placement != "helpers"

"""Single decisions: the model's figures, the first choice, what each sample leads to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.materialize.placement.chooser import Chooser, duration
from lazycast.materialize.placement.estimate import RecentMedian, RunningMean
from lazycast.materialize.placement.model import HOP_S, Cost, CostModel, Traffic, Work
from lazycast.materialize.placement.sample import Sample
from lazycast.materialize.placement.site import Site

SMALL = Site((4,), (2.0,), (4,), 0)
TWO_HOSTS = Site((2, 2), (1.0, 1.0), (2, 2), 0)
BIG = Site((8,), (64.0,), (8,), 0)
SINGLES = Site((1, 1), (1.0, 1.0), (1, 1), 0)
MIB = 1 << 20
PLACEMENTS = {"every", "root", "shard"}


def chooser(site: Site = SMALL) -> Chooser:
    return Chooser(site, [host for host, ranks in enumerate(site.ranks) for _ in range(ranks)])


def choose(subject: Chooser, nbytes: int = 150_000, depth: int = 0, name: str = "decode", **how: bool) -> str:
    how = {"staged": False, "replicated": False, **how}
    return subject.choose(name, nbytes, depth, **how).placement


def sample(placement: str, cpu_s: float, ranks: int = 4, depth: int = 0, value_nbytes: int = 9_400_000) -> Sample:
    """A cast on one host whose materializer takes `cpu_s`; rank 0 is the owner."""
    shares = placement != "every"
    copy_s = value_nbytes / 5e9 if shares else 0.0
    busy_s = {rank: cpu_s + copy_s if rank == 0 or not shares else 0.0 for rank in range(ranks)}
    latency_s = 0.0005 + copy_s + cpu_s * (1 if shares else 2)
    return Sample(placement, depth, latency_s, busy_s, cpu_s, value_nbytes if shares else None)


# The site


@pytest.mark.parametrize(
    ("site", "threads", "placements"),
    [
        (SMALL, 1, {"every", "root", "shard"}),
        (BIG, 8, {"every", "root", "shard"}),
        (SINGLES, 1, {"every", "root"}),
        (Site((2, 1), (1.0, 1.0), (2, 1), 1), 1, {"every", "root", "shard"}),
        (Site((2, 2), (4.0, 4.0), (2, 0), 0), 2, {"every", "root"}),
        (Site((1,), (2.0,), (1,), 0, root_makes=False, helpers=2), 2, {"every", "helpers"}),
    ],
    ids=["small", "big", "one rank per host", "one host to share on", "a host without owners", "alone, with helpers"],
)
def test_what_a_site_offers(site: Site, threads: int, placements: set[str]) -> None:
    assert site.threads(0) == threads
    assert set(site.placements) == placements


@pytest.mark.parametrize(
    "fields",
    [
        ((), (), (), 0),
        ((1,), (1.0, 1.0), (1,), 0),
        ((0,), (1.0,), (0,), 0),
        ((1,), (0.0,), (1,), 0),
        ((1,), (1.0,), (1,), 1),
    ],
    ids=["no host", "lengths differ", "no rank", "no core", "root nowhere"],
)
def test_an_impossible_site_is_refused(fields: tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...], int]) -> None:
    with pytest.raises(ValueError, match="site"):
        Site(*fields)


@pytest.mark.parametrize("host_of", [[0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1]])
def test_ranks_that_do_not_fit_the_site_are_refused(host_of: list[int]) -> None:
    with pytest.raises(ValueError, match="the site says"):
        Chooser(SMALL, host_of)


# The model


@pytest.mark.parametrize(
    ("site", "work", "traffic", "under_way", "best"),
    [
        (SMALL, Work(0.04, 0, 9_400_000), Traffic(150_000, False, False), 9, "shard"),
        (SMALL, Work(20e-6, 0, 16 * MIB), Traffic(16 * MIB, False, True), 1, "every"),
        (SMALL, Work(0.06, 0, 32), Traffic(64 * MIB, False, False), 1, "root"),
        (SMALL, Work(0.06, 0, 32), Traffic(64 * MIB, False, False), 9, "shard"),
        (TWO_HOSTS, Work(0.06, 0, 32), Traffic(64 * MIB, False, False), 9, "root"),
        (TWO_HOSTS, Work(0.04, 0, 500 * MIB), Traffic(150_000, False, False), 1, "every"),
        (BIG, Work(0.04, 0, 9_400_000), Traffic(150_000, False, False), 1, "every"),
        (BIG, Work(0.04, 0, 9_400_000), Traffic(150_000, False, False), 32, "shard"),
        (BIG, Work(0.001, 0.1, 100), Traffic(1000, False, False), 640, "shard"),
        (SMALL, Work(0.012, 0, 1e9), Traffic(15 * MIB, True, True), 9, "shard"),
        (SINGLES, Work(0.04, 0, 9_400_000), Traffic(150_000, False, False), 1, "every"),
    ],
    ids=[
        "jpeg, loaded", "a view of what is there, idle", "huge payload, idle", "huge payload, loaded",
        "huge payload, few cores", "huge value, idle", "cores enough, idle", "cores enough, loaded", "waits, loaded",
        "hint only", "singles",
    ],
)  # fmt: skip
def test_the_model_finds_the_best(site: Site, work: Work, traffic: Traffic, under_way: int, best: str) -> None:
    host_of = [host for host, ranks in enumerate(site.ranks) for _ in range(ranks)]
    model = CostModel(site, host_of)
    times = {p: model.predict(p, work, traffic).with_under_way(under_way) for p in site.placements}
    assert min(times, key=times.__getitem__) == best, times


def test_a_cast_takes_no_less_than_alone_and_no_less_than_the_busiest_host_needs_for_all() -> None:
    cost = Cost(latency_s=0.050, bottleneck_s=0.020)
    assert [cost.with_under_way(n) for n in (1, 2, 3, 9)] == pytest.approx([0.050, 0.050, 0.060, 0.180])


def test_hosts_that_are_not_known_are_left_to_the_model() -> None:
    model = CostModel(TWO_HOSTS, [0, 0, 1, 1])
    known = Sample("every", 0, 0.1, {0: 0.04, 1: 0.04, 2: 0.2}, 0.08, None)  # of host 1 one rank is missing
    spent = model.spent(known)
    assert spent[1] is None
    traffic = Traffic(0, False, True)
    work = model.work(known, spent, traffic)
    assert work is not None
    assert work.cpu_s == pytest.approx(0.04)
    assert model.bottleneck_s("every", spent, work, traffic) == pytest.approx(0.08)
    assert model.bottleneck_s("every", spent, Work(0.1), traffic) == pytest.approx(0.2)


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
def test_measured_cpu_time_of_a_call_goes_before_what_is_inferred(placement: str) -> None:
    model = CostModel(SMALL, [0] * 4)
    cast = Sample(placement, 0, 1.0, dict.fromkeys(range(4), 0.5), 0.6, 100, materialize_cpu_s=0.01)
    work = model.work(cast, model.spent(cast), Traffic(10, False, False))
    assert work is not None
    assert work.cpu_s == 0.01
    assert work.wait_s > 0.5, "it takes much longer than it computes, although nothing else runs"


# Estimates


def test_a_mean_lets_a_hiccup_pass_and_follows_a_change_within_three() -> None:
    mean = RunningMean()
    for _ in range(20):
        mean.add(0.040)
    mean.add(10.0)
    assert mean.value < 0.080
    for _ in range(40):
        mean.add(0.040)
    for _ in range(3):
        mean.add(0.00002)
    assert mean.value == pytest.approx(0.00002)


def test_a_mean_is_of_all_when_values_alternate() -> None:
    mean = RunningMean()
    for _ in range(100):
        mean.add(1.0)
        mean.add(10.0)
    assert 3 < mean.value < 8


def test_a_median_is_of_the_last_fifteen_and_the_lower_of_two() -> None:
    median = RecentMedian()
    assert (median.value, median.count) == (1.0, 0)
    median.add(5.0)
    median.add(3.0)
    assert (median.value, median.count) == (3.0, 2)
    for _ in range(15):
        median.add(2.0)
    assert (median.value, median.count) == (2.0, 15)


# Decisions


@pytest.mark.parametrize(
    ("site", "how", "first"),
    [
        (SMALL, {}, "shard"),
        (BIG, {}, "shard"),
        (TWO_HOSTS, {}, "shard"),
        (SINGLES, {}, "every"),
        (SMALL, {"replicated": True}, "every"),
        (SMALL, {"replicated": True, "staged": True}, "shard"),
        (SMALL, {"staged": True}, "shard"),
    ],
    ids=["small", "big", "two hosts", "singles", "replicated", "replicated staged", "staged"],
)
def test_the_first_choice(site: Site, how: dict[str, bool], first: str) -> None:
    subject = chooser(site)
    assert [choose(subject, depth=depth, **how) for depth in range(20)] == [first] * 20, (
        "no trial without a measurement"
    )


def test_without_a_materializer_every_rank_has_the_value_and_nothing_is_kept() -> None:
    subject = chooser()
    assert subject.choose("", 100, 3, staged=False, replicated=False) == (
        "every", "every: no materializer, the value is the payload",
    )  # fmt: skip
    subject.learn("", 100, sample("every", 1.0))
    assert subject.current() == []


@pytest.mark.parametrize(
    ("cpu_s", "nbytes", "value_nbytes", "depth", "expected"),
    [
        (0.04, 150_000, 9_400_000, 8, "shard"),
        (20e-6, 1000, 1 << 30, 0, "every"),
        (20e-6, 1000, 1 << 30, 8, "every"),
        (0.01, 512 * MIB, 32, 0, "root"),
        (0.2, 512 * MIB, 32, 20, "shard"),
    ],
    ids=["jpeg", "giant value", "giant value, loaded", "huge payload", "huge payload, loaded"],
)
def test_one_sample_is_enough_to_leave_what_is_far_worse(
    cpu_s: float, nbytes: int, value_nbytes: int, depth: int, expected: str
) -> None:
    subject = chooser()
    assert choose(subject, nbytes, depth) == "shard"
    subject.learn("decode", nbytes, sample("shard", cpu_s, depth=depth, value_nbytes=value_nbytes))
    assert choose(subject, nbytes, depth) == expected


def test_a_size_without_experience_begins_as_its_neighbour_stands() -> None:
    subject = chooser()
    choose(subject, 1000)
    subject.learn("decode", 1000, sample("shard", 20e-6, value_nbytes=1 << 30))
    assert choose(subject, 1000) == "every"
    assert choose(subject, 2000) == "every"
    assert choose(subject, 9000) == "shard", "three classes away"
    assert choose(subject, 2000, name="other") == "shard"
    assert choose(subject, 3000, staged=True) == "shard", "what a hint costs says nothing of a value, nor it of a hint"


def test_each_materializer_and_size_stands_for_itself() -> None:
    subject = chooser()
    for name, nbytes in (("a", 100), ("a", 100_000), ("b", 100)):
        choose(subject, nbytes, name=name)
    standings = {(s.materializer, s.payload_nbytes): s for s in subject.current()}
    assert set(standings) == {("a", (64, 127)), ("a", (65536, 131071)), ("b", (64, 127))}


@pytest.mark.parametrize("nbytes", [0, 1, 2, 3, 1023, 1024])
def test_a_size_class_holds_its_payload(nbytes: int) -> None:
    subject = chooser()
    choose(subject, nbytes)
    low, high = subject.current()[0].payload_nbytes
    assert low <= nbytes <= high


def test_the_reason_gives_the_numbers() -> None:
    subject = chooser()
    for _ in range(12):
        told = subject.choose("decode", 150_000, 8, staged=False, replicated=False)
        subject.learn("decode", 150_000, sample(told.placement, 0.04, depth=8))
    standing = subject.current()[0]
    assert standing.reason.startswith("shard: 20.9 ms of the busiest host per cast against 41.9 ms for root"), standing
    assert standing.reason.endswith("(12 casts seen)")
    assert standing.casts == sum(cost.casts for cost in standing.costs.values()) == 12
    assert standing.costs["shard"].bottleneck_s == pytest.approx(0.0209, rel=0.01)
    assert standing.costs["every"].samples == 0


def test_what_is_believed_to_be_twice_as_bad_is_not_tried() -> None:
    subject = chooser()
    placed = []
    for _ in range(1000):
        placed.append(choose(subject, depth=8))
        subject.learn("decode", 150_000, sample(placed[-1], 0.04, depth=8))
    assert "every" not in placed, "it would take four times as long"
    assert 2 <= placed.count("root") <= 12, "twice as long at most, by a hair"


def test_a_value_that_cannot_be_shared_is_not_asked_for_until_later_and_then_once() -> None:
    subject = chooser()
    placed = []
    for _ in range(2000):
        placed.append(choose(subject, depth=8))
        if placed[-1] == "every":
            subject.learn("decode", 150_000, sample("every", 0.04, depth=8))
        else:
            subject.unshareable("decode", 150_000, "holds a lock")
    shared = [cast for cast, placement in enumerate(placed) if placement != "every"]
    assert len(shared) <= 8, "each time it is left alone for twice as long"
    assert shared[1] - shared[0] >= 256
    assert shared[-1] - shared[-2] >= 512


def test_the_ban_is_told_with_its_cause_and_what_comes_late_does_not_prolong_it() -> None:
    subject = chooser()
    choose(subject)
    subject.unshareable("decode", 150_000, "holds a lock")
    for _ in range(5):
        subject.unshareable("decode", 150_000, "holds a lock")  # casts that were under way
    assert subject.choose("decode", 150_000, 0, staged=False, replicated=False) == (
        "every", "every: the value could not be shared (holds a lock); tried again in 255 casts",
    )  # fmt: skip
    assert choose(subject, 100) == "shard", "another class"


def test_a_value_that_can_be_shared_again_is() -> None:
    subject = chooser()
    choose(subject, depth=8)
    subject.unshareable("decode", 150_000, "too large for now")
    placed = []
    for _ in range(600):
        placed.append(choose(subject, depth=8))
        subject.learn("decode", 150_000, sample(placed[-1], 0.04, depth=8))
    assert set(placed[:250]) == {"every"}
    assert placed[300:].count("shard") > 250


def test_memory_is_bounded_and_the_class_used_last_is_kept() -> None:
    subject = chooser()
    for index in range(1000):
        choose(subject, name=f"m{index}")
        choose(subject, name="kept")
        subject.learn("kept", 150_000, sample("shard", 0.04))
    standings = subject.current()
    assert len(standings) == 256
    assert {s.materializer for s in standings} >= {"kept", "m999"}
    subject.learn("m0", 150_000, sample("shard", 0.04))
    subject.unshareable("m0", 150_000, "forgotten")
    assert len(subject.current()) == 256


NUMBERS = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1e-12, 1e9, float("inf"), float("nan")]))
STEPS = st.tuples(
    st.sampled_from(["decode", "", "hash"]),
    st.integers(0, 1 << 40),
    st.integers(0, 100),
    st.booleans(),
    st.booleans(),
    st.one_of(
        st.none(),
        st.just("unshareable"),
        st.builds(
            Sample,
            st.sampled_from(["every", "root", "shard", "demand"]),
            st.integers(0, 100),
            NUMBERS,
            st.dictionaries(st.integers(-1, 9), NUMBERS, max_size=9),
            st.one_of(st.none(), NUMBERS),
            st.one_of(st.none(), st.integers(0, 1 << 40)),
            st.one_of(st.none(), NUMBERS),
        ),
    ),
)


@given(
    st.sampled_from([SMALL, TWO_HOSTS, BIG, SINGLES, Site((3, 1), (0.5, 8.0), (1, 1), 1)]),
    st.lists(STEPS, max_size=80),
)
def test_whatever_is_told_the_choice_is_possible_and_explained(site: Site, steps: list[tuple[object, ...]]) -> None:
    subject, again = chooser(site), chooser(site)
    for name, nbytes, depth, staged, replicated, news in steps:
        told = []
        for each in (subject, again):
            told.append(each.choose(name, nbytes, depth, staged=staged, replicated=replicated))  # type: ignore[arg-type]
            if isinstance(news, Sample):
                each.learn(name, nbytes, news)  # type: ignore[arg-type]
            elif news is not None:
                each.unshareable(name, nbytes, "no")  # type: ignore[arg-type]
        assert told[0] == told[1], "the same calls give the same answers"
        assert told[0].placement in site.placements
        assert told[0].reason.startswith(told[0].placement + ": ")
    assert all(standing.placement in standing.costs for standing in subject.current())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 µs"), (34.4e-6, "34 µs"), (0.0041, "4.1 ms"), (0.1523, "152 ms"), (2.5, "2.5 s")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# Helpers


HELPED = Site((4,), (4.0,), (4,), 0, helpers=2)


def test_what_a_cast_costs_that_helpers_make() -> None:
    model = CostModel(HELPED, [0] * 4)
    work = Work(cpu_s=0.040, held_s=0.030)
    shard, helpers = (model.predict(name, work, Traffic(1, False, False)) for name in ("shard", "helpers"))
    assert (shard.stall_s, helpers.stall_s) == (0.030, 0.0), "no time of a rank's interpreter"
    assert helpers.latency_s == pytest.approx(shard.latency_s + 2 * HOP_S), "to a helper, and back"
    assert helpers.bottleneck_s == pytest.approx(0.020), "two helpers, though there are four cores"
    assert shard.bottleneck_s == pytest.approx(0.010)
    assert shard.with_under_way(1) == pytest.approx(shard.latency_s + 0.030)
    assert helpers.with_under_way(9) == pytest.approx(0.180)


@pytest.mark.parametrize(
    ("held_s", "expected"),
    [(0.035, "helpers"), (0.0, "shard"), (None, "shard"), (float("nan"), "shard"), (-1.0, "shard")],
    ids=["held", "free", "not watched", "nan", "negative"],
)
def test_helpers_are_for_what_keeps_an_interpreter(held_s: float | None, expected: str) -> None:
    subject = chooser(HELPED)
    for _ in range(60):
        placement = choose(subject)
        measured = replace(sample(placement, 0.040), held_s=None if placement == "helpers" else held_s)
        if placement == "helpers":  # a copy, and two hops more
            measured = replace(measured, latency_s=measured.latency_s + 0.001)
        subject.learn("decode", 150_000, measured)
    (standing,) = subject.current()
    assert standing.placement == expected, standing
    assert standing.casts == 60
    if expected == "helpers":
        assert "of a rank's time" in standing.reason


def test_a_call_holds_no_longer_than_it_takes() -> None:
    subject = chooser(HELPED)
    choose(subject)
    subject.learn("decode", 150_000, replace(sample("shard", 0.040), held_s=1e9))
    assert subject.current()[0].costs["shard"].stall_s == pytest.approx(0.040)

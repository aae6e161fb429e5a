"""Counting."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lazycast.watch.stats import PHASES, Counters, Rate, Stats, nbytes_text
from lazycast.watch.timing import Timing


def test_counters_keep_count_total_and_largest_of_what_took_time() -> None:
    counters = Counters()
    assert counters.timing("encode") == Timing()
    for seconds in (1.0, 4.0, 1.0):
        counters.noted.append(("encode", seconds))
    timing = counters.timing("encode")
    assert (timing.count, timing.total_s, timing.max_s, timing.mean_s) == (3, 6.0, 4.0, 2.0)
    assert counters.timing("decode") == Timing()


def test_a_timing_and_a_snapshot_do_not_change_later() -> None:
    counters = Counters()
    counters.noted.append(("encode", 1.0))
    timing = counters.timing("encode")
    counters.noted.append(("encode", 5.0))
    assert (timing.count, timing.max_s) == (1, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        timing.count = 3  # type: ignore[misc]
    assert Stats.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_counters_count_failures_by_class_and_share_nothing() -> None:
    counters = Counters()
    for exc in (ValueError(), ValueError(), KeyError()):
        counters.count_failure(exc)
    assert counters.failed == {"ValueError": 2, "KeyError": 1}
    assert Counters().failed == {}


def test_the_docstring_explains_every_field() -> None:
    text = Stats.__doc__ or ""
    for field in dataclasses.fields(Stats):
        assert field.name in text


def snapshot(**changed: Any) -> Stats:
    """A snapshot of an object that has done nothing, but for what is given."""
    nothing: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Stats)), 0)
    nothing |= dict.fromkeys(PHASES, Timing()) | {"age_s": 2.0, "qps": 0.0, "placements": {}, "failed": {}}
    nothing |= {"name": "photos", "rank": 1, "size": 4, "placement": "", "placement_reason": "", "standings": ()}
    return Stats(**nothing | {"unshared_reason": None, "hosts": ((0, 1, 2, 3),)} | changed)


def test_a_snapshot_prints_as_a_table() -> None:
    counters = Counters()
    for _ in range(100):
        counters.noted.append(("encode", 0.003))
    lines = str(
        snapshot(
            casts=103,
            placements={"shard": 90, "root": 10},
            placement_reason="shard: 5 ms",
            asked=104,
            resolved=100,
            qps=12.34,
            failed={"MaterializeError": 2, "CastTimeoutError": 1},
            pending=1,
            nbytes_received=64 << 20,
            nbytes_from_host=63 << 20,
            encode=counters.timing("encode"),
        )
    ).splitlines()
    assert lines == [
        "'photos', rank 1 of 4, root 0, 1 host; open for 2 s",
        "casts          103: 90 shard, 10 root",
        "last placed    shard: 5 ms",
        "calls          104: 100 got a value (12.3 per s lately), 3 failed, 0 cancelled",
        "failures       2 MaterializeError, 1 CastTimeoutError",
        "now            1 call pending, 0 casts not asked for",
        "network        0 bytes sent, 1 MiB received",
        "this host      63 MiB received",
        "shared memory  0 bytes held in 0 slots, 0 bytes taken",
        "phase              count        p50        p99        max     in all",
        "encode               100     2.9 ms       3 ms       3 ms     300 ms",
    ]


def test_a_snapshot_of_the_root_prints_what_is_wrong_and_no_empty_table() -> None:
    text = str(snapshot(rank=0, blocking=2, unshared=3, unshared_reason="no room", hosts=((0, 1), (2, 3))))
    assert "rank 0 of 4, the root, 2 hosts" in text
    assert "2 held up by back-pressure" in text
    assert "not shared     3: the last: no room" in text
    assert "phase" not in text
    assert repr(snapshot()).startswith("Stats(name='photos', rank=1")


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), ((1 << 20) - 1, "1024 KiB"), (5 << 29, "2.5 GiB")],
)
def test_bytes_for_people(nbytes: int, said: str) -> None:
    assert nbytes_text(nbytes) == said


def test_phases_are_all_timings() -> None:
    assert set(PHASES) == {field.name for field in dataclasses.fields(Stats) if field.type == "Timing"}


def test_a_rate_counts_the_last_ten_seconds() -> None:
    rate = Rate(100.0)
    for n in range(1000):  # 100 a second from 100 to 110
        rate.tick(100.0 + n / 100)
    assert rate.per_s(110.0) == pytest.approx(100)
    assert rate.per_s(115.0) == pytest.approx(50)
    assert rate.per_s(121.0) == 0
    rate.tick(121.5)
    assert rate.per_s(122.0) == pytest.approx(1 / 10, rel=0.01)


def test_a_young_rate_counts_since_it_began() -> None:
    rate = Rate(100.25)
    for n in range(10):
        rate.tick(100.25 + n / 20)
    assert rate.per_s(100.75) == pytest.approx(20)


@pytest.mark.parametrize("gap_s", [1, 9, 15, 16, 17, 100])
def test_a_rate_forgets_what_is_older_whatever_the_gap(gap_s: int) -> None:
    rate = Rate(50.0)
    for n in range(160):
        rate.tick(50.0 + n / 10)
    rate.tick(66.0 + gap_s)
    recent = sum(50.0 + n / 10 >= 66 + gap_s - 10 for n in range(160))
    assert rate.per_s(66.0 + gap_s) == pytest.approx((recent + 1) / 10)


def test_a_moment_read_before_another_threads_is_counted_too() -> None:
    rate = Rate(10.0)
    rate.tick(12.001)
    rate.tick(11.999)
    assert rate.per_s(12.5) == pytest.approx(2 / 2.5)

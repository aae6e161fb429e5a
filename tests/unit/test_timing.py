"""Durations in buckets."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.watch.timing import BOUNDS_S, Tally, Timing, merged, restored, trimmed

durations = st.lists(st.floats(0, 1e4, allow_nan=False), max_size=300)


def tallied(seconds: list[float]) -> Timing:
    tally = Tally()
    for one in seconds:
        tally.add(one)
    return tally.timing()


def test_bounds_rise_by_a_tenth_at_most_and_hold_1_2_5_of_each_decade() -> None:
    assert BOUNDS_S[0] == 1e-6
    assert BOUNDS_S[-1] == 1e3
    assert all(low < high < low * 1.1001 for low, high in itertools.pairwise(BOUNDS_S))
    assert {float(f"{step}e{decade}") for step in (1, 2, 5) for decade in range(-6, 3)} <= set(BOUNDS_S)


def test_a_bucket_includes_its_upper_bound() -> None:
    assert tallied([BOUNDS_S[7]]).buckets[7] == 1
    assert tallied([1e-9]).buckets[0] == 1
    assert tallied([5e3]).buckets[-1] == 1


@given(seconds=durations, q=st.floats(0, 1))
def test_a_quantile_is_as_near_as_its_bucket(seconds: list[float], q: float) -> None:
    timing = tallied(seconds)
    assert timing.count == len(seconds)
    assert timing.total_s == pytest.approx(sum(seconds))
    if not seconds:
        assert timing.quantile_s(q) == timing.max_s == 0
        return
    found = timing.quantile_s(q)
    true = sorted(seconds)[max(1, -(-len(seconds) * q // 1).__int__()) - 1]
    assert 0 <= found <= timing.max_s == max(seconds)
    if true > 1e3:  # in the last bucket, which has no upper bound
        assert found >= 1e3
    elif true > 1e-6:
        assert true / 1.1001 <= found <= true * 1.1001
    else:
        assert found <= 1e-6


def test_p50_and_p99_of_real_numbers() -> None:
    seconds = [n / 1000 for n in range(1, 1001)]
    timing = tallied(seconds)
    assert timing.p50_s == pytest.approx(statistics.median(seconds), rel=0.05)
    assert timing.p99_s == pytest.approx(0.99, rel=0.05)


def test_there_is_no_quantile_beyond_one() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got 99"):
        Timing().quantile_s(99)


@given(parts=st.lists(durations, max_size=5))
def test_merged_is_what_one_tally_of_all_would_be(parts: list[list[float]]) -> None:
    whole, sum_of_parts = tallied([one for part in parts for one in part]), merged(map(tallied, parts))
    assert sum_of_parts.count == whole.count
    assert sum_of_parts.max_s == whole.max_s
    assert sum_of_parts.total_s == pytest.approx(whole.total_s)
    assert sum_of_parts.buckets == (whole.buckets if whole.count else ())


@given(seconds=durations)
def test_what_was_trimmed_is_restored(seconds: list[float]) -> None:
    timing = tallied(seconds)
    again = restored(timing.total_s, timing.max_s, *trimmed(timing))
    assert again == (timing if seconds else Timing())


@pytest.mark.parametrize("first", [0, 100, 10_000])
def test_restored_puts_up_with_any_length(first: int) -> None:
    timing = restored(1.0, 1.0, first, [1] * 1000)
    assert timing.count == max(0, len(BOUNDS_S) + 1 - first)
    assert timing.count == sum(timing.buckets)

"""Counting."""

from __future__ import annotations

import dataclasses

import pytest

from lazycast.stats import Counters, Stats, Timing


def test_a_timing_keeps_count_total_largest_and_mean() -> None:
    counters = Counters()
    assert counters.timing("encode").mean_s == 0.0
    for seconds in (1.0, 4.0, 1.0):
        counters.took("encode", seconds)
    assert counters.timing("encode") == Timing(3, 6.0, 4.0)
    assert counters.timing("encode").mean_s == 2.0


def test_a_timing_and_a_snapshot_do_not_change_later() -> None:
    counters = Counters()
    counters.took("encode", 1.0)
    timing = counters.timing("encode")
    counters.took("encode", 5.0)
    assert timing == Timing(1, 1.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        timing.count = 3  # type: ignore[misc]
    assert Stats.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_counters_count_what_took_time_and_what_failed_by_class() -> None:
    counters = Counters()
    counters.took("encode", 1.0)
    counters.took("encode", 3.0)
    for exc in (ValueError(), ValueError(), KeyError()):
        counters.count_failure(exc)
    assert counters.timing("encode") == Timing(2, 4.0, 3.0)
    assert counters.timing("decode") == Timing()
    assert counters.failed == {"ValueError": 2, "KeyError": 1}
    assert Counters().failed == {}, "counters share nothing"


def test_the_docstring_explains_every_field() -> None:
    text = Stats.__doc__ or ""
    for field in dataclasses.fields(Stats):
        assert field.name in text

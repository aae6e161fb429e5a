"""What ranks tell the root they have counted."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from lazycast.core import stats_reports
from lazycast.materialize.placement.chooser import duration
from lazycast.net import wire
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.timing import BOUNDS_S, Tally, Timing


def stats_of(rank: int, scale: int = 1, **changes: Any) -> Stats:
    """Stats in which every number is another one."""
    said: dict[str, Any] = {"name": "n", "rank": rank, "size": 3, "root": 0}
    for index, field in enumerate(dataclasses.fields(Stats)):
        if field.type == "int" and field.name not in said:
            said[field.name] = scale * (index + 1)
    for index, phase in enumerate(PHASES):
        tally = Tally()
        for n in range(index + 1):
            tally.add(scale * 10.0 ** (n - 5))
        said[phase] = tally.timing()
    said |= {"age_s": 9.0, "qps": 2.0 * scale, "placement": "every", "placement_reason": "asked for", "standings": ()}
    said |= {"placements": {"every": 3}, "failed": {"MaterializeError": scale}, "unshared_reason": "because"}
    said["memo_saved_s"] = 0.5 * scale
    return Stats(**{**said, "hosts": ((0, 1, 2),), **changes})


def told(stats: Stats) -> wire.Figures:
    """What the root gets of them."""
    message = wire.decode(wire.encode(stats_reports.of(stats)))
    assert isinstance(message, wire.Figures)
    return message


def test_what_a_rank_has_counted_reaches_the_root_whole() -> None:
    root, other = stats_of(0), stats_of(2, scale=5)
    reported = stats_reports.Reported()
    reported.note(told(other))
    group = reported.group(root)
    assert group.ranks == {0: root, 2: other}
    assert list(group.ranks) == [0, 2]
    assert group.unheard == (1,)
    assert group.age_s[0] == 0
    assert 0 <= group.age_s[2] < 60


def test_a_later_word_takes_the_place_of_the_one_before() -> None:
    reported = stats_reports.Reported()
    for scale in (1, 2, 3):
        reported.note(told(stats_of(1, scale)))
    assert reported.group(stats_of(0)).ranks[1] == stats_of(1, 3)


def test_a_group_adds_up() -> None:
    reported = stats_reports.Reported()
    for rank in (1, 2):
        reported.note(told(stats_of(rank, scale=rank + 1)))
    group = reported.group(stats_of(0))
    assert group.failed == {"MaterializeError": 1 + 2 + 3}
    assert group.qps == 2.0
    assert group.nbytes_sent == stats_of(0).nbytes_sent * 6
    assert group.nbytes_received == stats_of(0).nbytes_received * 6
    assert group.nbytes_from_host == stats_of(0).nbytes_from_host * 6
    total = group.timing("total")
    assert total.count == 3 * stats_of(0).total.count
    assert total.max_s == stats_of(2, scale=3).total.max_s
    with pytest.raises(ValueError, match=r"no phase 'lunch'; there are blocked, queue"):
        group.timing("lunch")


def test_a_group_prints_as_a_short_table() -> None:
    reported = stats_reports.Reported()
    reported.note(told(stats_of(2, scale=3)))
    root = stats_of(0, nbytes_sent=5, nbytes_received=3 << 10, nbytes_from_host=1 << 10)
    group = dataclasses.replace(reported.group(root), age_s={0: 0.0, 2: 61.5})
    root_total, other_total = (duration_text(group.ranks[rank].total) for rank in (0, 2))
    lines = str(group).splitlines()
    assert lines[0] == "'n': 2 of 3 ranks heard, root 0; nothing yet of 1"
    assert re.fullmatch(r"network: \d+ bytes sent, \S+ \w+ received", lines[1])
    assert lines[2] == "failures: 4 MaterializeError"
    assert " ".join(lines[3].split()) == "rank heard calls values failed cancelled pending per s p50 p99"
    first, second = (line.split() for line in lines[4:])
    assert first[:4] == ["0", "0.0", "s", "ago"]
    assert second[:4] == ["2", "61.5", "s", "ago"]
    stats = group.ranks[2]
    assert second[4:9] == [str(n) for n in (stats.asked, stats.resolved, 3, stats.cancelled, stats.pending)]
    assert " ".join(first[10:]) == root_total
    assert " ".join(second[10:]) == other_total
    assert len({len(line) for line in lines[3:]}) == 1, "columns are aligned"


def duration_text(timing: Timing) -> str:
    return f"{duration(timing.p50_s)} {duration(timing.p99_s)}"


def test_what_came_from_this_host_came_not_over_the_network() -> None:
    root = stats_of(0, nbytes_sent=5, nbytes_received=3 << 10, nbytes_from_host=1 << 10)
    assert str(stats_reports.Reported().group(root)).splitlines()[1] == "network: 5 bytes sent, 2 KiB received"


def test_a_large_group_prints_those_that_failed_most() -> None:
    ranks = {rank: stats_of(rank, failed={f"E{rank:04}": rank}) for rank in range(1000) if rank != 3}
    text = str(GroupStats("n", 1100, 0, ranks, dict.fromkeys(ranks, 1.0)))
    assert len(text) < 3000, "thousands of characters help nobody"
    lines = text.splitlines()
    assert lines[0].endswith("nothing yet of 3, " + ", ".join(str(n) for n in range(1000, 1015)) + " and 85 more")
    assert [int(line.split()[0]) for line in lines if line.endswith("s") and "ago" in line] == list(range(984, 1000))
    assert "999 E0999, 998 E0998" in lines[2]
    assert lines[-1] == "and 983 more ranks"


def test_figures_fit_into_a_header_whatever_was_counted() -> None:
    everything = tuple([2**32 - 1] * (len(BOUNDS_S) + 1))
    timings = dict.fromkeys(PHASES, Timing(1, 1e9, 1e9, everything))
    failed = {f"{n:0100d}": 2**32 for n in range(500)}
    stats = stats_of(1, scale=2**32, failed=failed, unshared_reason="x" * 500, **timings)
    assert len(wire.encode(stats_reports.of(stats))) <= wire.MAX_HEADER_NBYTES


def test_buckets_that_are_not_there_are_left_out() -> None:
    """A rank of this wire version never says so; whatever comes must not end in an exception on the root."""
    reported = stats_reports.Reported()
    odd = wire.Spread(1.0, 1.0, 270, [1] * 100)
    reported.note(wire.Figures(1, 1.0, 1.0, {}, {}, {}, {"total": odd, "unknown": odd}))
    said = reported.group(stats_of(0)).ranks[1]
    assert said.total.count == len(BOUNDS_S) + 1 - 270
    assert said.casts == 0

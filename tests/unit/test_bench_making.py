"""`lazycast bench making`: what must be remembered, how figures are judged, and how that is said."""

from __future__ import annotations

from typing import Any

import pytest

from lazycast.tools import cli
from lazycast.tools.bench.making import lru, report, verdicts
from lazycast.tools.bench.making.plan import ROWS, Plan
from lazycast.tools.bench.making.workloads import CHAT, chat_sequence


def steps(p99_s: float, count: int) -> list[dict[str, float]]:
    """Of two ranks, the second of which was hit harder."""
    return [{"count": count, "seconds": 1.0, "p50_s": 7e-4, "p99_s": p99_s * share} for share in (0.5, 1.0)]


def found(**changed: Any) -> dict[str, Any]:
    """What a run brings back that has reached everything."""
    remembered = {"hits": 5, "values": 2, "nbytes": 8192, "evictions": 1}
    rows = {
        "scheduler": {
            "quiet": [steps(1e-3, 1000), steps(2e-3, 500)],
            "strangers": [steps(2e-3, 900), steps(4e-3, 450)],
            "lazycast-helpers": [steps(2e-3, 900), steps(5e-3, 450)],
        },
        "photos": {"lazycast-helpers": [10.0, 5.0], "lazycast-shard": [10.0, 5.0], "ideal": [11.0, 5.5]},
        "value": {"lazycast-helpers": [1e-3] * 3, "pool": [2e-2] * 3, "executor": [1e-2] * 3},
        "album": {"lazycast-shard": [0.4, 0.4], "lazycast-each": [0.24, 0.2]},
        "hit": {"lazycast-memo": [1e-3, 1.1e-3], "lazycast-small": [1e-3, 1e-3]},
        "killed": {"lazycast-helpers": [0.1, 0.9], "replaced": [0.3, 0.4]},
        "chat": {
            "lazycast-memo": {"qps": 100.0, **remembered},
            "lazycast-shard": {"qps": 50.0},
            "simulated": remembered,
        },
    }
    return {**rows, **changed}


def reached(row: str, **changed: Any) -> list[bool | None]:
    rows = found(**changed)
    return [verdict.reached for verdict in verdicts.of({row: rows[row]})]


def test_each_row_has_a_verdict() -> None:
    assert list(found()) == list(ROWS)
    assert [verdict.row for verdict in verdicts.of(found())] == [
        *("scheduler", "scheduler", "photos", "photos", "value", "value", "album", "hit", "killed", "killed", "chat"),
    ]


def test_what_is_reached_is_said_and_what_is_not() -> None:
    assert reached("scheduler") == [True, True]
    slow = {"quiet": [steps(1e-3, 1000)], "strangers": [steps(2e-3, 900)], "lazycast-helpers": [steps(3.1e-3, 800)]}
    assert reached("scheduler", scheduler=slow) == [False, False]
    assert reached("photos") == [True, True]
    assert (
        reached("photos", photos={"lazycast-helpers": [9.0], "lazycast-shard": [10.0], "ideal": [20.0]}) == [False] * 2
    )
    assert reached("value") == [True, True]
    assert reached("value", value={"lazycast-helpers": [1e-3], "pool": [9e-3]}) == [False, None]
    assert reached("album") == [True]
    assert reached("album", album={"lazycast-shard": [0.4], "lazycast-each": [0.25]}) == [False]
    assert reached("hit") == [True]
    assert reached("hit", hit={"lazycast-memo": [1.6e-3], "lazycast-small": [1e-3]}) == [False]
    assert reached("killed") == [True, True]
    assert reached("killed", killed={"lazycast-helpers": [0.1, 1.1], "replaced": [0.3, 1.2]}) == [False, False]
    assert reached("chat") == [True]
    chat = found()["chat"]
    assert reached("chat", chat={**chat, "simulated": {**chat["simulated"], "hits": 6}}) == [False]


def test_ways_are_held_against_each_other_round_by_round() -> None:
    first, _ = verdicts.of({"scheduler": found()["scheduler"]})
    assert first.figure is not None
    assert first.figure.median == pytest.approx((2 / 2 + 5 / 4) / 2)
    assert verdicts.lost(found()["scheduler"], "strangers") == pytest.approx([0.1, 0.1])
    assert verdicts.worst_p99(found()["scheduler"]["quiet"]) == [1e-3, 2e-3]


def run_of(load: float) -> dict[str, Any]:
    rows = found()
    plan = Plan("torch")
    return {
        "machine": {"cpu": "one", "cores": 2, "memory_gib": 8.0, "kernel": "6", "load_before": load},
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"lazycast": "0.1", "python": "3.11"},
        "plan": {name: getattr(plan, name) for name in ("backend", "ranks", "helpers", "rounds", "rate")},
        "rows": rows,
        "absent": {"executor": "no torch"},
        "verdicts": [verdict._asdict() for verdict in verdicts.of(rows)],
    }


def test_a_busy_machine_has_no_verdicts_but_of_what_was_counted() -> None:
    quiet, busy = ("\n".join(report.lines(run_of(load))) for load in (0.1, 5.0))
    assert quiet.count("| yes |") == 11
    assert "machine was busy" not in quiet
    assert busy.count("| machine was busy |") == 10
    assert busy.count("| yes |") == 1
    assert "- executor: a ProcessPoolExecutor at the root, and broadcast_object_list (not available: no torch)" in quiet


def test_what_should_be_remembered() -> None:
    requests = [(1, 10), (2, 10), (1, 10), (3, 10), (2, 10), (4, 40), (3, 10)]
    assert lru.simulate(requests, 20) == lru.Remembered(hits=2, values=2, nbytes=20, evictions=2)
    assert lru.simulate(requests, 5) == lru.Remembered(0, 0, 0, 0)
    assert lru.simulate([], 5) == lru.Remembered(0, 0, 0, 0)


def test_some_photos_are_asked_for_far_more_often_than_others() -> None:
    sequence = chat_sequence(1000)
    counts = sorted((sequence.count(photo) for photo in range(CHAT)), reverse=True)
    assert sequence == chat_sequence(1000)
    assert counts[0] > 10 * max(1, counts[100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "film"], "argument --rows: unknown: 'film'; there are scheduler, photos, "),
        (["--helpers", "0"], "argument --helpers: must be a whole number of at least 1, got '0'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "making", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err

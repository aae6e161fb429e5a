"""What a benchmark says before it begins: how long it will take, and that the machine is busy."""

from __future__ import annotations

import argparse

import pytest

from lazycast.tools.bench import machine
from lazycast.tools.bench import plan as plans
from lazycast.tools.bench.qps import plan as qps_plans
from lazycast.tools.cli import announce, bench, bench_qps


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_quick_run_is_announced_to_take_less_than_two_minutes() -> None:
    args = asked("--quick", "--report", "there")
    plan = bench._plan(args, "torch", 4)
    requests = bench_qps.of_report(args, "torch", bench._QUICK_REQUESTS)
    assert plan.sizes == plans.QUICK_SIZES
    assert not plan.memory
    assert 30 < plan.about_s + bench_qps.about_s(requests) <= 120


def test_more_is_announced_to_take_longer() -> None:
    quick, short, whole = (bench._plan(asked(*words), "torch", 4).about_s for words in (["--quick"], ["--short"], []))
    assert quick < short < whole
    plan = qps_plans.Plan("torch", 4, ("photo",), seconds=1.0, rounds=3, slowdown_s=0.0)
    assert plan.about_s(2, 3) > plan.about_s(1, 3) > plan.about_s(1, 2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "about 10 seconds"), (44, "about 40 seconds"), (100, "about 2 minutes"), (9000, "about 2 hours")],
)
def test_durations_are_said_in_round_figures(seconds: float, said: str) -> None:
    assert plans.duration_text(seconds) == said


def test_a_busy_machine_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for load, cores, busy in ((2.0, 2, False), (2.1, 2, True)):
        monkeypatch.setattr(machine, "load_before", lambda load=load: load)
        monkeypatch.setattr(announce.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        announce.announce("lazycast bench", 100)
        first, *rest = capsys.readouterr().err.splitlines()
        assert first == "lazycast bench: this takes about 2 minutes on a quiet machine"
        assert bool(rest) is busy
        assert all("allow no conclusions" in line for line in rest)


def test_what_the_runs_add_to_the_load_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.load_before.cache_clear()
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    assert machine.load_before() == 0.5
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (9.0, 0.5, 0.5))  # by its own ranks
    assert machine.describe()["load_before"] == 0.5
    machine.load_before.cache_clear()

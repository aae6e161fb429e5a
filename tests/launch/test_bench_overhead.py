"""`lazycast bench overhead`, as a user starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lazycast.tools import cli
from lazycast.tools.bench import overhead

from .command import run


@pytest.mark.exhaustive
def test_bench_overhead(tmp_path: Path) -> None:
    options = ["--backend", "local", "--ranks", "2", "--rounds", "3", "--casts", "20", "--window", "4"]
    command = [
        sys.executable,
        "-m",
        "lazycast",
        "bench",
        "overhead",
        *options,
        "--json",
        str(tmp_path / "out" / "o.json"),
    ]
    done = run(command, timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "out" / "o.json").read_text())
    assert (said["benchmark"], said["plan"]["ranks"], said["plan"]["casts"]) == ("overhead", 2, 20)
    assert [way["way"] for way in said["ways"]] == list(overhead.WAYS)
    for way in said["ways"]:
        assert way["qps"] > 0
        assert way["cpu_s"] > 0
        assert f"{way['qps']:.0f}" in done.stdout
    assert said["ways"][0]["qps_lost_percent"]["median"] == 0


def test_there_is_a_default_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[overhead.Plan] = []
    monkeypatch.setattr(overhead, "run", lambda plan: plans.append(plan) or {})
    monkeypatch.setattr(overhead, "table", lambda measured: "a table")
    assert cli.main(["bench", "overhead", "--backend", "local"]) == 0
    assert cli.main(["bench", "overhead", "--backend", "local", "--ranks", "2,3", "--no-agree"]) == 0
    assert [(plan.ranks, plan.rounds, plan.agree) for plan in plans] == [(4, 40, True), (2, 40, False), (3, 40, False)]
    assert cli.main(["bench", "overhead", "--ranks", "2,3", "--json", "x.json"]) == 2
    assert "one number of ranks" in capsys.readouterr().err


def test_ways_are_compared_within_rounds() -> None:
    busy = [1.0, 0.5, 0.25]  # what the machine has left in each round
    found = {
        "silent": [(1000 * share, 1e-3) for share in busy],
        "counted": [(990 * share, 1.02e-3) for share in busy],
        "traced": [(900 * share, 1.1e-3) for share in busy],
    }
    silent, counted, traced = overhead.summarize(found)
    assert silent["qps_lost_percent"] == {"median": 0, "low": 0, "high": 0}
    assert counted["qps_lost_percent"]["median"] == pytest.approx(1)
    assert counted["cpu_more_percent"]["median"] == pytest.approx(2)
    assert traced["qps_lost_percent"]["high"] == pytest.approx(10)


def test_certainty_grows_with_rounds() -> None:
    few, many = (overhead._middle([float(n % 10) for n in range(count)]) for count in (10, 1000))
    assert few["high"] - few["low"] > many["high"] - many["low"]
    assert many["low"] <= many["median"] <= many["high"]

"""`lazycast bench small`, as a user starts it, and what it makes of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lazycast.tools import cli
from lazycast.tools.bench import small
from lazycast.tools.bench.ways import WAYS, PlainPython

from .command import run


@pytest.mark.exhaustive
def test_bench_small(tmp_path: Path) -> None:
    options = ["--backend", "local", "--ranks", "2", "--rounds", "2", "--calls", "3", "--casts", "20"]
    command = [sys.executable, "-m", "lazycast", "bench", "small", *options, "--out", str(tmp_path / "out")]
    done = run(command, timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "out" / "small-local-2.json").read_text())
    assert (said["benchmark"], said["plan"]["ranks"], said["plan"]["casts"]) == ("small", 2, 20)
    assert [result["way"] for result in said["results"]] == ["lazycast", "lazycast agree=False", "plain Python"]
    ours, _, floor = said["results"]
    assert list(ours["rates"]) == ["one by one", "8 outstanding", "32 outstanding", "32 outstanding, keyed"]
    assert list(floor["rates"]) == ["one by one"]
    for result in said["results"]:
        assert result["alone"]["count"] == 2 * 3
        assert 0 < result["alone"]["p10_s"] <= result["alone"]["median_s"] <= result["alone"]["p90_s"]
        assert all(0 < rate["least"] <= rate["casts_per_s"] <= rate["most"] for rate in result["rates"].values())
    assert (tmp_path / "out" / "small-local-2.md").read_text() == done.stdout


def test_the_table_divides_by_the_floor() -> None:
    def result(way: str, median_s: float) -> dict[str, Any]:
        alone = {"count": 2, "p10_s": median_s / 2, "median_s": median_s, "p90_s": median_s * 2}
        return {"way": way, "alone": alone, "alone_cpu_s": 1e-4, "rates": {}}

    plan = {"ranks": 2, "backend": "local", "rounds": 1, "calls": 2, "casts": 3, "idle_s": 2e-3}
    results = [result("lazycast", 300e-6), result("plain Python", 100e-6)]
    lines = list(small.lines({"plan": plan, "results": results, "absent": {"vLLM": "it is not installed"}}))
    assert "| lazycast | 300 µs (150 µs to 600 µs) | 3.00 | 100 µs |" in lines
    assert "not measured: vLLM (it is not installed)" in lines
    without = list(small.lines({"plan": plan, "results": results[:1], "absent": {}}))
    assert "| lazycast | 300 µs (150 µs to 600 µs) | - | 100 µs |" in without


def test_a_way_that_moves_no_objects_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "small", "--backend", "local", "--ways", "lazycast,one memcpy"]) == 2
    assert "not available: one memcpy; there are lazycast," in capsys.readouterr().err
    assert PlainPython in WAYS

"""`lazycast bench qps`, as a user starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lazycast import launch
from lazycast.start.discovery import resolve
from lazycast.tools import cli
from lazycast.tools.bench.qps import measure, ways
from lazycast.tools.bench.qps.tally import Tally
from lazycast.tools.bench.qps.workloads import WORKLOADS
from lazycast.tools.bench.sync import Sync, WrongValueError

from .command import run

QUICK = ["--seconds", "0.1", "--rounds", "1", "--concurrency", "2", "--workloads", "thumbnail"]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("warm_python")
def test_bench_qps(tmp_path: Path) -> None:
    options = ["qps", "--backend", "torch", "--ranks", "2", *QUICK, "--out", str(tmp_path)]
    done = run([sys.executable, "-m", "lazycast", "bench", *options], timeout_s=200, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"qps-torch.{e}" for e in ("json", "md", "png")]

    said = json.loads((tmp_path / "qps-torch.json").read_text())
    assert (said["benchmark"], said["plan"]["backend"], said["plan"]["ranks"]) == ("qps", "torch", 2)
    (work,) = said["workloads"]
    assert (work["workload"], work["window"]) == ("thumbnail", 2)
    assert work["yardstick_cpu_s"] > 0
    assert work["ideal_qps"] > 0
    assert [way["way"] for way in work["ways"]] == list(ways.WAYS)
    known = {way["way"] for way in work["ways"] if way["known"]}
    assert known == {"itself", "itself-pool", "root-value", "raw-all", "raw-pool"}
    made = {
        "itself": [1, 1],
        "root-value": [1, 0],
        "raw-all": [1, 1],
        "lazycast-every": [1, 1],
        "lazycast-root": [1, 0],
    }
    for way in work["ways"]:
        assert way["way"] in done.stdout
        if way["unavailable"] is not None:
            assert way["way"] not in made
            assert f"{way['way']}: not available: {way['unavailable']}" in done.stdout
            continue
        assert 0 < way["p50_s"] <= way["p99_s"]
        assert way["qps"] > 0
        assert len(way["cpu_s"]) == len(way["blocked_s"]) == 2
        assert way["materialized"] == made.get(way["way"], way["materialized"])
        assert set(way["qps_against"]) == known - {way["way"]}
        assert way["slowdown"]["steps_per_s"] > 0
        assert bool(way["lazycast_stats_s"]) is not way["known"]
        assert (way["collective_s"][0] > 0) is (way["way"] in {"root-value", "raw-all", "raw-pool"})


@pytest.mark.exhaustive
def test_options_may_stand_before_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ranks", "2", "--backend", "local", "--no-figures", "--out", str(tmp_path)]
    rate = ["--rate", "50", "--ways", "itself,raw-all,lazycast-auto"]
    assert cli.main(["bench", *options, "qps", *QUICK, *rate]) == 0
    said = json.loads((tmp_path / "qps-local.json").read_text())
    assert (said["plan"]["ranks"], said["plan"]["rate"], said["plan"]["slowdown_rounds"]) == (2, 50.0, 0)
    itself, raw, ours = said["workloads"][0]["ways"]
    assert (itself["count"], ours["count"]) == (5, 5)
    assert raw["unavailable"] == "the local backend has no broadcast of objects beside this library's"
    assert "slowdown" not in ours
    assert "raw-all: not available: the local backend" in capsys.readouterr().out


class _Faulty(ways.Itself):
    """Gives rank 1 the value of another request, once the first turn is over."""

    name = "faulty"

    def start(self, number: int, payload: object) -> ways.Future[object]:
        if self.place.rank == 1 and number > 3:
            payload = WORKLOADS["thumbnail"].pool()[0]
        return super().start(number, payload)


def _faulty(folder: Path) -> str:
    """On each rank: take turns of a way that becomes wrong; return how that was told."""
    backend = resolve("auto")
    sync = Sync(backend.rank, backend.size, folder)
    place = ways.Place(backend.rank, backend.size, "local")
    plan = measure.Plan("local", 2, ("thumbnail",), concurrency=2)
    bench = measure.Bench(plan, WORKLOADS["thumbnail"], place, sync, Tally(folder, *place[:2]))
    ways.WAYS["faulty"] = _Faulty
    course = bench.open("faulty")
    assert course is not None
    bench.turn(course, 4, 2)
    with pytest.raises(WrongValueError) as caught:
        bench.turn(course, 2, 2)
    sync.close()
    return str(caught.value)


@pytest.mark.exhaustive
def test_a_wrong_value_ends_the_run_on_every_rank(tmp_path: Path) -> None:
    messages = launch(_faulty, ranks=2, args=(tmp_path,), timeout_s=200)
    assert messages == ["rank 1: faulty: request 4 has got another value than its payload makes"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workloads", "film"], "argument --workloads: unknown: 'film'; there are photo, thumbnail, "),
        (["--ways", "pigeon"], "argument --ways: unknown: 'pigeon'; there are itself, "),
        (["--rate", "0"], "argument --rate: must be a number above 0, got '0'"),
        (["--concurrency", "none"], "argument --concurrency: must be a whole number of at least 1, got 'none'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "qps", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_importing_it_brings_in_no_framework() -> None:
    heavy = {"torch", "mpi4py", "rich", "matplotlib", "PIL", "sklearn"}
    code = (
        f"import sys, lazycast.tools.bench.qps.session, lazycast.tools.cli.bench; print({heavy!r} & set(sys.modules))"
    )
    assert run([sys.executable, "-c", code], timeout_s=200).stdout == "set()\n"

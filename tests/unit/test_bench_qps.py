"""The pure parts of the benchmark of requests: arrivals, the loop, verification, figures, tables."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazycast
from lazycast import Staged
from lazycast.tools.bench.qps import materializers, measure, plan, report, summary
from lazycast.tools.bench.qps.loop import Loop
from lazycast.tools.bench.qps.materializers import Recorder, Work
from lazycast.tools.bench.qps.records import Beside, Cell, Turn, Workbench
from lazycast.tools.bench.qps.tally import Tally
from lazycast.tools.bench.qps.ways import WAYS, Itself, ItselfPool, Place, Way
from lazycast.tools.bench.qps.workloads import WORKLOADS, Workload, fingerprint

MS = 1_000_000


def test_arrivals_keep_their_rate_and_are_the_same_everywhere() -> None:
    moments = plan.arrivals(50.0, 100, 3)
    assert moments == plan.arrivals(50.0, 100, 3) != plan.arrivals(50.0, 100, 4)
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] == pytest.approx(2.0)
    gaps = np.diff(moments)
    assert 0.5 < gaps.std() / gaps.mean() < 1.5  # as a Poisson process, not a metronome


def test_how_many_requests_a_round_has() -> None:
    closed = plan.Plan("local", 2, ("photo",), seconds=2.0)
    assert [closed.count(qps, 8) for qps in (0.1, 8.0, 100.0, 1e9)] == [16, 16, 200, plan.MAX_COUNT]
    opened = plan.Plan("local", 2, ("photo",), seconds=2.0, rate=30.0)
    assert opened.count(1.0, 64) == 60


def test_percentiles_are_times_that_were_taken() -> None:
    assert summary.percentiles([3.0, 1.0, 2.0], (50, 99)) == [2.0, 3.0]
    assert summary.percentiles([5.0], (50, 99)) == [5.0, 5.0]
    assert summary.percentiles([float(n) for n in range(1, 101)], (50, 99)) == [51.0, 100.0]


def test_large_requests_are_fewer_at_once() -> None:
    assert [WORKLOADS[name].window(8) for name in ("thumbnail", "photo", "video", "reduce")] == [8, 8, 3, 4]
    assert WORKLOADS["video"].window(1) == 1


def test_a_recorder_adds_up_and_starts_anew() -> None:
    recorder = Recorder()
    recorder.add(2.0, 1.0)
    recorder.add(1.0, 0.5)
    assert recorder.take() == Work(2, 3.0, 1.5)
    assert recorder.take() == Work()


def test_materializers_are_timed_also_when_they_fail() -> None:
    materializers.TIMES.take()
    assert materializers.cheap(np.zeros(8192, np.uint8))["rows"].shape == (2, 4096)
    with pytest.raises(ValueError, match="reshape"):
        materializers.cheap(np.zeros(5, np.uint8))
    assert materializers.TIMES.take().calls == 2


def _small(name: str) -> list[Any]:
    """Two payloads of a workload, small ones where its own are large."""
    rng = np.random.default_rng(7)
    if name == "video":
        return [rng.integers(0, 256, (2, 8, 8, 3), np.uint8) for _ in range(2)]
    if name in ("cheap", "reduce"):
        return [rng.integers(0, 256, 8192, np.uint8) for _ in range(2)]
    if name == "replicated":
        return [[rng.random((3, 4), np.float32), rng.random(2)] for _ in range(2)]
    return WORKLOADS[name].pool()


@pytest.mark.parametrize("name", WORKLOADS)
def test_values_are_the_same_each_time_and_differ_within_a_pool(name: str) -> None:
    work, pool = WORKLOADS[name], _small(name)
    before = [fingerprint(np.frombuffer(p, np.uint8) if isinstance(p, bytes) else p) for p in pool]
    found = [fingerprint(work.materialize(payload)) for payload in pool]
    assert [fingerprint(work.materialize(payload)) for payload in pool] == found
    assert len(set(found)) == len(pool)
    after = [fingerprint(np.frombuffer(p, np.uint8) if isinstance(p, bytes) else p) for p in pool]
    assert after == before
    if work.prepare is not None and work.finish is not None:
        assert [fingerprint(work.finish(p, work.prepare(p))) for p in pool] == found


def test_fingerprints_tell_types_shapes_and_order_apart() -> None:
    array = np.arange(6, dtype=np.int32)
    values = [array, array.view(np.uint32), array.reshape(2, 3), array + 1, [array], (array,)]
    values += [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}, "1", 1, ["12"], ["1", "2"]]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(np.asfortranarray(array.reshape(2, 3))) == fingerprint(array.reshape(2, 3))
    with pytest.raises(TypeError, match="fingerprint of a object"):
        fingerprint(object())


def test_a_wrong_value_is_told_by_request() -> None:
    expected = [fingerprint("zero"), fingerprint("one")]
    assert measure.wrong("itself", {6: "zero", 7: "one"}, expected) is None
    said = measure.wrong("itself", {6: "zero", 7: "zero"}, expected)
    assert said == "itself: request 7 has got another value than its payload makes"


def _double(payload: int) -> int:
    return 2 * payload


_WORK = Workload("double", "", lambda: [1, 2, 3], _double, 8)
_PLACE = Place(0, 1, "local")


@pytest.mark.parametrize("kind", [Itself, ItselfPool])
def test_a_closed_loop_asks_when_there_is_room(kind: type[Way]) -> None:
    outstanding: list[int] = []

    class Counting(kind):  # type: ignore[valid-type,misc]
        def start(self, number: int, payload: Any) -> Future[Any]:
            outstanding.append(loop.started - loop.finished)
            return super().start(number, payload)  # type: ignore[no-any-return]

    way = Counting(_PLACE, _WORK)
    loop = Loop(way, [1, 2, 3], first=4, count=20, window=3, begin_ns=time.monotonic_ns(), keep=3)
    loop.run()
    way.close()
    assert loop.values == {4: 4, 5: 6, 6: 2}
    assert len(outstanding) == 20
    assert max(outstanding) <= 3
    assert (loop.done_ns > 0).all()
    assert loop.blocked_s > 0


def test_a_closed_loop_waits_for_the_other_ranks(tmp_path: Path) -> None:
    mine, other = Tally(tmp_path, 0, 2), Tally(tmp_path, 1, 2)
    loop = Loop(Itself(_PLACE, _WORK), [1], first=0, count=5, window=2, begin_ns=time.monotonic_ns(), tally=mine)
    thread = threading.Thread(target=loop.run)
    thread.start()
    time.sleep(0.05)
    assert (loop.started, other.least()) == (2, 0)
    other.put(2)
    time.sleep(0.05)
    assert (loop.started, other.least()) == (4, 2)
    other.put(5)
    thread.join(30)
    assert (loop.finished, mine.least()) == (5, 5)


def test_in_a_closed_loop_requests_arrive_when_the_last_rank_makes_room() -> None:
    root = _turn(None, [10, 20, 40, 30], cpu_s=0.1, calls=4, window=2)
    other = _turn(None, [15, 12, 35, 50], cpu_s=0.1, calls=4, window=2)
    arrived, done = summary.moments([root, other])
    assert (arrived / MS).tolist() == [0, 0, 15, 20]
    assert (done / MS).tolist() == [15, 20, 40, 50]


def test_an_open_loop_asks_at_its_moments_and_counts_waiting() -> None:
    asked: list[int] = []

    class Slow(Itself):
        def start(self, number: int, payload: Any) -> Future[Any]:
            asked.append(time.monotonic_ns())
            time.sleep(0.02)
            return super().start(number, payload)

    begin_ns = time.monotonic_ns() + 5 * MS
    schedule = [0.0, 0.001, 0.1]
    loop = Loop(Slow(_PLACE, _WORK), [1], first=0, count=3, window=64, begin_ns=begin_ns, schedule=schedule)
    loop.run()
    assert all(at_ns >= begin_ns + at * 1e9 for at_ns, at in zip(asked, schedule, strict=True))
    assert loop.done_ns[1] - begin_ns >= 40 * MS  # it waited for the first one


def test_what_a_request_fails_with_ends_the_loop() -> None:
    class Failing(ItselfPool):
        def start(self, number: int, payload: Any) -> Future[Any]:
            return self._threads.submit(_double, None)

    way = Failing(_PLACE, _WORK)
    loop = Loop(way, [1], first=0, count=2, window=1, begin_ns=time.monotonic_ns())
    with pytest.raises(TypeError, match="NoneType"):
        loop.run()
    way.close()


@pytest.mark.parametrize("name", ["root-value", "raw-all", "raw-pool"])
def test_a_backend_without_a_broadcast_of_objects_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="the local backend has no broadcast of objects"):
        WAYS[name](_PLACE, _WORK)


class _Library:
    """Notes how `LazyBroadcast` is constructed and called."""

    def __init__(self, materialize: Any, **options: Any) -> None:
        self.materialize, self.options, self.asked = materialize, options, []

    def broadcast_async(self, payload: Any, *, key: int) -> Future[Any]:
        self.asked.append((payload, key))
        return Future()


@pytest.mark.parametrize("name", [name for name in WAYS if name.startswith("lazycast-")])
def test_lazycast_gets_both_stages_where_every_rank_has_the_payload(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazycast, "LazyBroadcast", _Library)
    for work in (WORKLOADS["replicated"], WORKLOADS["photo"]):
        for rank in (0, 1):
            way: Any = WAYS[name](Place(rank, 2, "local"), work)
            way.start(5, "payload")
            library = way._lazy
            assert library.options["placement"] == name.partition("-")[2]
            if work.replicated:
                assert library.materialize == Staged(materializers.hash_arrays, materializers.attach)
                assert library.options["replicated"] is True
            else:
                assert library.materialize is materializers.photo
                assert "replicated" not in library.options
            assert library.asked == [("payload" if work.replicated or rank == 0 else None, 5)]


def _turn(arrived_ms: list[int] | None, done_ms: list[int], *, cpu_s: float, calls: int, window: int = 64) -> Turn:
    schedule = None if arrived_ms is None else [moment / 1e3 for moment in arrived_ms]
    done = np.array(done_ms, np.int64) * MS
    work = Work(calls, 0.01 * calls, 0.005 * calls)
    return Turn(0, schedule, window, done, 0.2, 0.1, cpu_s, work, {"total": (2, 0.5)})


def test_a_request_is_done_when_the_last_rank_has_it() -> None:
    root = _turn([0, 100], [50, 150], cpu_s=0.4, calls=2)
    other = _turn([0, 100], [60, 140], cpu_s=0.2, calls=0)
    found = summary.turn_figures([root, other])
    assert found["count"] == 2
    assert found["qps"] == pytest.approx(2 / 0.150)
    assert (found["p50_s"], found["p99_s"]) == pytest.approx((0.060, 0.060))
    assert found["cpu_s"] == pytest.approx([0.2, 0.1])
    assert found["blocked_s"] == pytest.approx([0.1, 0.1])
    assert found["collective_s"] == pytest.approx([0.05, 0.05])
    assert found["materialized"] == [1.0, 0.0]
    assert found["materialize_s"] == pytest.approx([0.01, 0.0])
    alone = summary.alone_figures([root, other])
    assert alone == {"alone_s": pytest.approx(0.055), "broadcast_s": pytest.approx(0.045)}


def test_the_slowdown_beyond_the_processor_time() -> None:
    quiet = summary.steps([Beside(1000, 1.0, 0.9, 0.0), Beside(1000, 1.0, 1.1, 0.0)])
    beside = summary.steps([Beside(600, 1.0, 0.7, 0.2), Beside(1400, 2.0, 1.6, 0.8)])
    assert quiet == {"steps_per_s": 1000, "main_cpu": 2.0, "other_cpu": 0.0}
    found = summary.slowdown(quiet, beside)
    assert found["lost"] == pytest.approx(0.35)
    assert found["cpu_cores"] == pytest.approx(0.6)
    assert found["cpu_share"] == pytest.approx(0.3)
    assert found["beyond"] == pytest.approx(0.05)


def _run() -> dict[str, Any]:
    """A run as `session.run` returns it, of made-up records of two ranks."""
    ranks = []
    for _ in range(2):
        turns = [_turn([0, 100], [50, 150 + later], cpu_s=0.4, calls=2) for later in (0, 50, 10)]
        there = [
            Cell("photo", way, None, turns, turns, [Beside(1000, 1.0, 1.0, 0.0)], [Beside(900, 1.0, 0.9, 0.1)])
            for way in ("itself", "raw-pool", "lazycast-auto")
        ]
        cells = [*there, Cell("photo", "lazycast-shard", "no such placement [yet]")]
        alone = [Work(1, 0.05, cpu_s) for cpu_s in (0.02, 0.01, 0.03)]
        ranks.append([Workbench("photo", 8, 2.0, alone, cells)])
    return {
        "date": "2024-01-01",
        "machine": {"cpu": "some", "cores": 2, "memory_gib": 4.0, "kernel": "6", "load_before": 0.1},
        "plan": {"backend": "torch", "ranks": 2, "rate": None, "concurrency": 8, "rounds": 3, "seconds": 1.0}
        | {"slowdown_s": 1.0},
        "versions": {"lazycast": "0"},
        "workloads": summary.summarize(ranks, cores=2),
    }


def test_a_run_is_plain_data_with_medians_over_rounds() -> None:
    (work,) = json.loads(json.dumps(_run()))["workloads"]
    assert (work["yardstick_cpu_s"], work["yardstick_s"]) == (0.02, 0.05)
    assert work["ideal_qps"] == 100
    ways = {way["way"]: way for way in work["ways"]}
    assert ways["lazycast-shard"]["unavailable"] == "no such placement [yet]"
    ours = ways["lazycast-auto"]
    assert ours["qps"] == pytest.approx(2 / 0.160)
    assert ours["of_ideal"] == pytest.approx(0.125)
    assert ours["cpu_in_materializations"] == pytest.approx(20)
    assert ours["qps_against"] == {"itself": 1.0, "raw-pool": 1.0}
    assert ways["itself"]["qps_against"] == {"raw-pool": 1.0}
    assert ours["lazycast_stats_s"] == {"total": 0.25}
    assert len(ours["rounds"]) == 3
    assert ours["slowdown"]["lost"] == pytest.approx(0.1)


def test_tables_have_a_row_for_every_way_and_say_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    run = _run()
    figures, against, beside = report.tables(run["workloads"][0])
    assert [row[0] for row in figures.rows] == ["itself", "raw-pool", "lazycast-auto", "lazycast-shard"]
    assert figures.rows[-1] == ["lazycast-shard", "not available: no such placement [yet]"]
    assert all(len(row) == len(figures.headings) for row in figures.rows[:-1])
    assert against.headings == ("way", "itself", "raw-pool")
    assert against.rows == [
        ["itself", "-", "1.00"],
        ["raw-pool", "1.00", "-"],
        ["lazycast-auto", "1.00", "1.00"],
    ]
    assert beside.rows[0] == ["itself", "1000", "900", "10.0%", "0.20", "10.0%", "0.0%"]

    text = report.markdown(run, plot="qps.png")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in lines} == {len(t.headings) + 1 for t in (figures, against, beside)}
    assert "![QPS, latency and CPU by way](qps.png)" in text
    report.print_run(run)
    said = capsys.readouterr().out
    assert re.search(r"^lazycast-shard: not available: no such placement \[yet\]$", said, re.MULTILINE)
    assert re.search(r"^ lazycast-auto +12\.5 +12\.5%", said, re.MULTILINE)


def test_the_pool_of_a_rank_is_its_share_of_the_cores() -> None:
    from lazycast.tools.bench.qps import ways

    threads = ways._pool(Place(0, 10_000, "local"))
    assert isinstance(threads, ThreadPoolExecutor)
    assert threads._max_workers == 4
    threads.shutdown()

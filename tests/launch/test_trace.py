"""Traces of real groups: every cast on every rank, arrows between them, and what a killed rank leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from lazycast import LaunchError, LazyBroadcast, PeerLostError, Tuning, clock_id, launch
from lazycast.net.backend import Backend
from lazycast.start.discovery import resolve
from lazycast.tools import cli
from lazycast.watch.tracing import events
from lazycast.watch.tracing.events import Event
from lazycast.watch.tracing.merge import merge, read_all

pytestmark = pytest.mark.usefixtures("warm_python")
RANKS, CASTS = 4, 12


def _digest(payload: bytes) -> bytes:
    return hashlib.sha512(payload).digest() * 4000


def cast_some(casts: int = CASTS) -> int:
    """On each rank."""
    with LazyBroadcast(_digest, name="job", placement="shard") as lazy:
        futures = [lazy.broadcast_async(bytes(30_000 * n), key=f"k{n}") for n in range(casts)]
        for future in futures:
            future.result(60)
        lazy.broadcast(b"plain", materialize=None)
    return lazy.rank


def _phases(merged: list[Event], pid: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in merged:
        if event["pid"] == pid and event["ph"] in "Xb" and event["name"] != "broadcast":
            found.setdefault(event["name"], []).append(event["args"]["seq"])
    return {name: sorted(seqs) for name, seqs in found.items()}


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["local", "torch"])
@pytest.mark.timeout(400)
def test_every_cast_is_seen_on_every_rank(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAZYCAST_TRACE", str(tmp_path / "traces"))
    assert sorted(launch(cast_some, ranks=RANKS, backend=backend, timeout_s=200)) == list(range(RANKS))
    assert cli.main(["trace", "merge", str(tmp_path / "traces"), "-o", str(tmp_path / "trace.json")]) == 0
    said = capsys.readouterr()
    assert f"of {RANKS} files, 1 object:" in said.out
    steps = [line.removeprefix("lazycast trace merge: ").split(" ")[0] for line in said.err.splitlines()]
    assert steps == ["reading"] * RANKS + ["aligning", "sorting", "writing"], "its progress, off a terminal"
    written = json.loads((tmp_path / "trace.json").read_text())
    assert written["otherData"]["notes"] == []
    merged = written["traceEvents"]
    assert list(events.problems(merged)) == []
    titles = {e["pid"]: e["args"]["name"] for e in merged if e["name"] == "process_name"}
    assert [title.split(" (")[0] for _, title in sorted(titles.items())] == [f"rank {r}" for r in range(RANKS)]
    everything = list(range(1, CASTS + 2))
    made: Counter[int] = Counter()
    for pid, title in titles.items():
        phases = _phases(merged, pid)
        assert phases["total"] == phases["agree"] == everything, title
        if title.startswith("rank 0"):
            assert phases["queue"] == phases["held"] == phases["encode"] == phases["send"] == everything
        else:
            assert phases["arrive"] == phases["transfer"] == everything
            assert sorted(phases.get("wait", []) + phases.get("unread", [])) == everything
        made.update(phases["materialize"])
    assert made == dict.fromkeys(everything, 1), "in a shard each is made once"
    arrows = Counter(event["name"] for event in merged if event["ph"] == "f")
    assert arrows == {"cast": len(everything) * (RANKS - 1), "value": len(everything) * (RANKS - 1)}
    for event in merged:
        if event["ph"] == "X" and event["name"] == "arrive":
            assert event["args"]["placement"] == "shard"
            assert event["args"]["nbytes"] > 0
    keys = {e["args"]["seq"]: e["args"]["key"] for e in merged if e["name"] == "total" and e["ph"] == "b"}
    assert keys == {**{n + 1: f"k{n}" for n in range(CASTS)}, CASTS + 1: None}


@pytest.mark.timeout(400)
def test_the_picture_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    monkeypatch.setenv("LAZYCAST_TRACE", str(tmp_path / "traces"))
    launch(cast_some, ranks=2, timeout_s=200)
    merged, picture = tmp_path / "trace.json", tmp_path / "pictures" / "trace.png"
    assert cli.main(["trace", "merge", str(tmp_path / "traces"), "-o", str(merged)]) == 0
    capsys.readouterr()
    assert cli.main(["trace", "plot", str(merged), "-o", str(picture), "--casts", "2-5", "--width", "8"]) == 0
    progress = capsys.readouterr().err
    assert re.findall(r"^lazycast trace plot: (\w+) ", progress, re.MULTILINE) == [
        *("reading", "drawing", "drawing", "writing")
    ], progress
    pixels = image.imread(picture)
    assert pixels.shape[1] == 8 * 110
    green = (pixels[..., 1] > pixels[..., 0] + 0.2) & (pixels[..., 1] > pixels[..., 2] + 0.2)
    assert green.sum() > 500, "nothing is seen to materialize"
    capsys.readouterr()
    assert cli.main(["trace", "plot", str(merged), "-o", str(picture), "--casts", "900"]) == 2
    assert "there are no such casts in this trace" in capsys.readouterr().err
    assert cli.main(["trace", "plot", str(tmp_path / "none.json")]) == 2
    assert cli.main(["trace", "merge", str(tmp_path / "pictures")]) == 2
    assert "there is no trace in" in capsys.readouterr().err


def _with_a_clock_of_its_own() -> None:
    backend: Backend = resolve("auto")
    clock_id.ident = lambda: f"clock of rank {backend.rank}"  # type: ignore[assignment]
    # Without agreement the root is ahead, and may close before it hears what others have read. In a window of eight it
    # has to hear of most.
    tuning = Tuning(max_inflight=8)
    for agree in (True, False):
        with LazyBroadcast(name=f"agree={agree}", agree=agree, tuning=tuning) as lazy:
            for n in range(30):
                lazy.broadcast(n)
            assert lazy.stats().transfer.count == 0, "times of two clocks were compared"
            while lazy.is_root and "0 on the books" not in lazy.dump():  # a root that closes hears no more
                time.sleep(0.005)


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_clocks_that_are_said_to_differ_are_found_to_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is known here: they do not differ. What is found must be as near as it is said to be."""
    monkeypatch.setenv("LAZYCAST_TRACE", str(tmp_path))
    launch(_with_a_clock_of_its_own, ranks=3, timeout_s=200)
    merged = merge(*read_all(tmp_path))
    assert list(events.problems(merged.events)) == []
    assert len(merged.offsets) == 6
    for path, offset in merged.offsets.items():
        if "rank0" in path.name:
            assert offset.us == 0
            continue
        assert offset.how == "messages both ways", path.name
        assert offset.error_us is not None
        assert abs(offset.us) <= offset.error_us + 0.01, path.name
    seen = Counter(e["args"]["seq"] for e in merged.events if e["name"] == "transfer" and e["ph"] == "b")
    assert seen == dict.fromkeys(range(1, 31), 4), "2 objects, 2 ranks each"


def _with_a_clock_of_each_host() -> None:
    backend: Backend = resolve("auto")
    host = str(min(backend.rank, 1))
    os.environ["LAZYCAST_HOST"] = host
    clock_id.ident = lambda: f"clock of host {host}"  # type: ignore[assignment]
    with LazyBroadcast(name="job") as lazy:
        for n in range(20):
            lazy.broadcast(n)


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_the_clock_of_a_rank_that_another_one_speaks_for_is_found_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAZYCAST_TRACE", str(tmp_path))
    launch(_with_a_clock_of_each_host, ranks=3, timeout_s=200)
    merged = merge(*read_all(tmp_path))
    far = [offset for path, offset in merged.offsets.items() if "rank0" not in path.name]
    assert [offset.how for offset in far] == ["messages both ways"] * 2
    for offset in far:
        assert offset.error_us is not None
        assert abs(offset.us) <= offset.error_us + 0.01


def _is_written(rank: int, name: str, times: int) -> bool:
    """Whether so many events of a name are in a rank's file by now: they wait there before they are written."""
    found = Path(os.environ["LAZYCAST_TRACE"]).glob(f"*-rank{rank}.json")
    lines = [line.rstrip(",\n") for path in found for line in path.read_text().splitlines(keepends=True)]
    seen = [json.loads(line) for line in lines if f'"{name}"' in line and line.endswith("}")]
    return sum(event["name"] == name and event["ph"] in "bi" for event in seen) == times


def _with_a_death() -> None:
    with LazyBroadcast(name="doomed") as lazy:
        for n in range(3):
            lazy.broadcast(n)
        name, times = ("total", 3) if lazy.rank == 1 else ("lost", 1)
        while not _is_written(lazy.rank, name, times):
            time.sleep(0.01)
        if lazy.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerLostError):
            lazy.broadcast("never", key="never")


@pytest.mark.timeout(400)
def test_a_killed_rank_leaves_what_it_had_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYCAST_TRACE", str(tmp_path))
    with pytest.raises(LaunchError, match="rank 1"):
        launch(_with_a_death, ranks=3, timeout_s=200)
    traces, notes = read_all(tmp_path)
    assert [trace.about["rank"] for trace in traces] == [0, 1, 2]
    assert traces[1].whole is False
    assert any("-rank1.json has no end: its process died or still runs" in note for note in notes)
    merged = merge(traces, notes)
    assert list(events.problems(merged.events)) == []
    of_dead = [e["args"]["seq"] for e in merged.events if e["pid"] == 2 and e["name"] == "total" and e["ph"] == "b"]
    assert of_dead == [1, 2, 3]
    moments = [(e["pid"], e["name"]) for e in merged.events if e["ph"] == "i"]
    assert {(1, "lost"), (3, "lost")} <= set(moments)
    assert (1, "failed") in moments

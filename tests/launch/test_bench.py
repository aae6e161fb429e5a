"""`lazycast bench`, as a user starts it, on every backend; and that it notices a wrong value."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import launch
from lazycast.tools import cli
from lazycast.tools.bench import measure, memory, plan, plot, report, touch, ways
from lazycast.tools.bench.payloads import SOURCES, ArraySource
from lazycast.tools.bench.sync import Sync, WrongValueError

from .command import run

SELDOM = pytest.mark.exhaustive
KIB, MIB = 1 << 10, 1 << 20
EVERYWHERE = ["lazycast", "lazycast agree=False", "lazycast values=copy", "one memcpy"]
PEERS = {
    "local": ["Ray put and get", "Dask scatter"],
    "torch": [
        "broadcast_object_list",
        "accelerate broadcast_object_list",
        "dist.broadcast (ready buffer)",
        "vLLM MessageQueue",
        "vLLM MessageQueue (tensor arena)",
    ],
    "mpi": ["mpi4py bcast", "mpi4py pkl5 bcast", "MPI Bcast (ready buffer)"],
}
#: What each of them needs beside its backend. None of it is needed to test lazycast.
EXTRA = {
    "accelerate broadcast_object_list": "accelerate",
    "Ray put and get": "ray",
    "Dask scatter": "distributed",
    "vLLM MessageQueue": "vllm",
    "vLLM MessageQueue (tensor arena)": "vllm",
}
#: Those that are here or needed, so that the rest runs in seconds.
LIGHT = {backend: [name for name in peers if name not in EXTRA] for backend, peers in PEERS.items()}
RAW = {"dist.broadcast (ready buffer)", "MPI Bcast (ready buffer)", "one memcpy"}
TINY = ["--ranks", "2", "--sizes", "1KiB,64KiB", "--rounds", "3", "--cell-s", "5"]


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize("backend", ["local", *(pytest.param(it, marks=SELDOM) for it in ("torch", "mpi"))])
def test_bench(backend: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lazycast", "bench", "--backend", backend, *TINY, "--out", str(tmp_path)]
    command += ["--ways", ",".join(EVERYWHERE + LIGHT[backend])]
    done = run(command, timeout_s=180, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"bench-{backend}.{e}" for e in ("json", "md", "png")]

    said = json.loads((tmp_path / f"bench-{backend}.json").read_text())
    assert (said["plan"]["backend"], said["plan"]["ranks"], said["plan"]["sizes"]) == (backend, 2, [KIB, 64 * KIB])
    assert {"lazycast", "python", "numpy"} <= set(said["versions"])
    assert said["machine"]["cores"] == len(os.sched_getaffinity(0))
    expected = {
        (kind, nbytes, way, column)
        for kind in SOURCES
        for nbytes in (KIB, 64 * KIB)
        for way in EVERYWHERE + LIGHT[backend]
        for column in plan.COLUMNS
        if kind in ("array", "tensor") or way not in RAW
    }
    found = [(r["kind"], r["nbytes"], r["way"], r["column"]) for r in said["results"]]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for result in said["results"]:
        assert result["count"] == 3
        assert 0 < result["p10_s"] <= result["median_s"] <= result["p90_s"]
    idle, threads = said["figures"]["idle_cpu_fraction"], said["figures"]["idle_threads_fraction"]
    assert len(idle) == len(threads) == 2
    assert all(0 <= own <= whole + 1e-3 for own, whole in zip(threads, idle, strict=True))
    assert said["figures"]["async_blocked"]["median_s"] > 0
    assert said["memory"] == []  # such payloads are too small to tell

    text = (tmp_path / f"bench-{backend}.md").read_text()
    assert text == report.markdown(said, plot=f"bench-{backend}.png")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in table} == {len(report.HEADINGS)}
    for way in EVERYWHERE + LIGHT[backend]:
        rows = [row for row in table if row[1] == way]
        assert len(rows) == 2 * (2 if way in RAW else 4)
        assert all(row[4] == "1.00" for row in rows) is (way == "lazycast")
        assert way in done.stdout
    assert (tmp_path / f"bench-{backend}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    steps = [line.split("  ")[-1] for line in done.stderr.splitlines() if "%" in line]
    assert steps[-2:] == ["nested, 64 KiB", "done"], done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", [name for name in EXTRA if "arena" not in name])
def test_a_peer_that_is_not_always_there(way: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(EXTRA[way]) is None:
        pytest.skip(f"{EXTRA[way]} is not installed")
    (backend,) = [backend for backend, peers in PEERS.items() if way in peers]
    command = [
        sys.executable,
        "-m",
        "lazycast",
        "bench",
        "--backend",
        backend,
        *TINY,
        "--json",
        str(tmp_path / "run.json"),
    ]
    command += ["--ways", f"lazycast,{way}", "--no-figures", "--rounds", "2", "--ranks", "3"]
    done = run(command, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "run.json").read_text())
    found = {(r["kind"], r["nbytes"], r["way"], r["column"]) for r in said["results"]}
    whose = ("lazycast", way)
    assert found == {(k, n, w, c) for k in SOURCES for n in (KIB, 64 * KIB) for w in whose for c in plan.COLUMNS}
    assert EXTRA[way] in said["versions"]
    assert said["absent"] == {}


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_bench_memory(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lazycast",
        "bench",
        "--backend",
        "local",
        "--ranks",
        "3",
        "--sizes",
        "1KiB,64MiB",
    ]
    command += ["--rounds", "1", "--kinds", "array,images", "--ways", "lazycast,one memcpy", "--out", str(tmp_path)]
    done = run(command, timeout_s=180, COLUMNS="200", NO_COLOR="1")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "bench-local.json").read_text())
    found = {(need.pop("kind"), need.pop("column")): need for need in said["memory"]}
    assert len(found) == len(said["memory"]) == 4
    for (kind, column), need in found.items():
        values = (kind == "images") + (column == "overwritten")  # `bytes` are copied; overwriting takes new ones
        assert (need["nbytes"], need["way"]) == (64 * MIB, "lazycast")
        reused = values == 2  # overwriting frees as it goes, and the heap may use that again
        late = 1 if values else 0  # a rank may still have the value before, where there is one
        assert values - reused - 0.2 < need["others_nbytes"] / need["nbytes"] < values + late + 0.2
        assert -0.2 < need["root_nbytes"] / need["nbytes"] - (values == 2) < late + 0.2
        assert 64 * MIB <= need["shared_nbytes"] <= 4 * 65 * MIB  # nor may its slot be free yet
    text = (tmp_path / "bench-local.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| 64 MiB | la" in line]
    seen = [row for row in rows if len(row) == len(report.MEMORY_HEADINGS)]
    assert [row[:3] for row in seen if row[0] != "64 MiB"] == [
        ["NumPy array", "64 MiB", "lazycast"],
        ["dict of JPEG bytes", "64 MiB", "lazycast"],
    ]
    assert report.MEMORY_HEADINGS[3] in done.stdout


def test_a_way_whose_values_cannot_be_overwritten_has_no_time_for_it() -> None:
    result = {"kind": "array", "nbytes": KIB, "count": 1, "p10_s": 1.0, "median_s": 1.0, "p90_s": 1.0}
    need = {"kind": "array", "nbytes": 64 * MIB, "root_nbytes": 0, "others_nbytes": 32 * MIB, "shared_nbytes": 0}
    known = [(way, column) for way in ("lazycast", "other") for column in plan.COLUMNS]
    known.remove(("other", "overwritten"))
    said = {
        "results": [{**result, "way": way, "column": column} for way, column in known],
        "memory": [{**need, "way": way, "column": column} for way, column in known if column != "holds"],
    }
    (_, whole), (_, partial) = report.rows(said, "array")
    assert (whole[-2:], partial[-2:]) == (["1.00 s (1.00 s to 1.00 s)", "1.00"], ["-", "-"])
    assert [cells[3:] for _, cells in report.memory_rows(said)] == [
        ["0.00", "0.50", "0.00", "0.50", "-"],
        ["0.00", "0.50", "-", "-", "-"],
    ]
    del said["memory"]  # as in files of older runs
    assert list(report.memory_rows(said)) == []


def test_memory_is_seen_though_it_is_given_back_again() -> None:
    watch = memory.Watch([os.getpid()])
    for payloads in (3, 1):
        for attempt in range(1, 6):  # the child may have to wait for a core
            memory.settle()
            watch.begin()
            held = [np.full(32 * MIB, 1, np.uint8) for _ in range(payloads)]
            time.sleep(0.2 * attempt**2)
            del held
            seen = watch.end()[0] / (32 * MIB)
            if abs(seen - payloads) < 0.2:
                break
        else:
            raise AssertionError(f"{seen} payloads were seen, and {payloads} held")
    watch.close()


class _Faulty(ways.Way):
    """Brings the payload with number 1 to the others, whatever the root sends."""

    name = "faulty"

    def run(self, payload: Any) -> Any:
        return payload if payload is not None else ArraySource(64 * KIB).at(1)


class _Shared(_Faulty):
    """Gives ranks 1 and 2 the same memory."""

    name = "shared"

    def __init__(self, rank: int, folder: Path) -> None:
        super().__init__(rank)
        self._path = folder / "memory"

    def run(self, payload: Any) -> Any:
        if payload is not None:
            return payload
        self._path.open("ab").close()
        os.truncate(self._path, 64 * KIB)
        return np.asarray(np.memmap(self._path, np.uint8, "r+"))


def _take(folder: Path) -> list[str]:
    """On each rank: time ways that are wrong; return how that was told."""
    rank = int(os.environ["LAZYCAST_RANK"])
    sync = Sync(rank, 3, folder)
    cell = measure.Cell(ArraySource(64 * KIB), ArraySource(64 * KIB) if rank == 0 else None, [], itertools.count(1))
    faulty, shared = _Faulty(rank), _Shared(rank, folder)
    assert measure.take(faulty, "holds", cell, sync) > 0  # number 1 is right, once
    messages = []
    for way, column in ((faulty, "holds"), (faulty, "read"), (shared, "overwritten")):
        with pytest.raises(WrongValueError) as caught:
            measure.take(way, column, cell, sync)
        messages.append(str(caught.value))
    sync.close()
    return messages


def test_a_wrong_value_ends_the_run_on_every_rank(tmp_path: Path) -> None:
    messages = launch(_take, ranks=3, args=(tmp_path,), timeout_s=200)
    assert messages[0] == messages[1] == messages[2]
    holds, read, overwritten = messages[0]
    assert holds == "rank 1: faulty (holds): the value: byte 0 of 65536 is 1, not 2"
    assert read == "rank 1: faulty (read): the value: byte 0 of 65536 is 1, not 3"
    assert re.match(
        r"rank [12]: shared \(overwritten\): the value: byte \d+ of 65536 is (29|30), not (29|30)", overwritten
    )


def everything() -> dict[str, Any]:
    """A value with everything that payloads are made of."""
    return {"a": np.arange(12, dtype=np.int16).reshape(3, 4), "b": [b"\xff\xd8" * 700, "text", 1, 2.0], "c": {1: (2,)}}


def test_no_difference() -> None:
    assert touch.difference(everything(), everything()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["a"].__setitem__((2, 3), 99), "['a']: byte 22 of 24 is 99, not 11"),
        (lambda v: v.__setitem__("a", v["a"].reshape(4, 3)), "['a']: shape (4, 3), not (3, 4)"),
        (lambda v: v.__setitem__("a", v["a"].view(np.uint16)), "['a']: dtype uint16, not int16"),
        (
            lambda v: v["b"].__setitem__(0, b"\xff\xd8" * 699 + b"\xff\xd9"),
            "['b'][0]: byte 1399 of 1400 is 217, not 216",
        ),
        (lambda v: v["b"].__setitem__(0, b"\xff"), "['b'][0]: 1 bytes, not 1400"),
        (lambda v: v["b"].__setitem__(0, bytearray(v["b"][0])), "['b'][0]: a bytearray, not a bytes"),
        (lambda v: v["b"].__setitem__(1, "tExt"), "['b'][1]: 'tExt', not 'text'"),
        (lambda v: v["b"].__setitem__(2, True), "['b'][2]: a bool, not a int"),
        (lambda v: v["b"].pop(), "['b']: 3 items, not 4"),
        (lambda v: v["c"].update({1: (3,)}), "['c'][1][0]: 3, not 2"),
        (lambda v: v.update(d=1), ": keys ['a', 'b', 'c', 'd'], not ['a', 'b', 'c']"),
        (lambda v: v.update(a=v.pop("a")), ": keys ['b', 'c', 'a'], not ['a', 'b', 'c']"),
    ],
)
def test_every_difference_is_found(change: Any, said: str) -> None:
    value = everything()
    change(value)
    assert touch.difference(everything(), value) == said


def test_tensors_are_compared_by_their_bytes() -> None:
    import torch

    one, other = torch.arange(300_000), torch.arange(300_000)
    assert touch.difference(one, other) is None
    other[262_144] = 0  # beyond the first piece
    assert touch.difference(one, other) == ": byte 2097154 of 2400000 is 0, not 4"
    assert touch.difference(one, other.float()) == ": dtype torch.float32, not torch.int64"


@pytest.mark.parametrize("kind", SOURCES)
def test_payloads_are_what_they_say(kind: str) -> None:
    source, other = SOURCES[kind](64 * KIB), SOURCES[kind](64 * KIB)
    assert touch.difference(source.at(5), other.at(5)) is None
    assert touch.difference(other.at(5), source.at(6)) is not None  # with sources that refill one object, too
    assert touch.read(source.at(5)) != touch.read(other.at(6))
    damaged = touch.overwrite(source.at(5), 3)
    assert touch.difference(other.at(5), damaged) is not None
    assert touch.difference(touch.overwrite(other.at(7), 3), touch.overwrite(source.at(7), 3)) is None
    assert touch.difference(other.at(8), source.at(8)) is None


def test_reading_reads_every_byte() -> None:
    array = np.zeros(4099, np.uint8)
    for at in (0, 7, 2048, 4095, 4096, 4098):
        array[:] = 0
        array[at] = 1
        assert touch.read(array) > 0


def test_what_nobody_can_touch_is_refused() -> None:
    for act in (touch.read, lambda v: touch.overwrite(v, 1), lambda v: touch.difference(v, object())):
        with pytest.raises(TypeError, match=r"cannot .* object"):
            act(object())


def test_rounds_and_sizes() -> None:
    some = plan.Plan("local", 2, ("array",), plan.SIZES)
    assert [some.rounds(nbytes) for nbytes in plan.SIZES] == [200, 200, 200, 16, 7, 7]
    assert dataclasses.replace(some, min_rounds=1, max_rounds=1).rounds(KIB) == 1
    assert [plan.size_text(plan.parse_size(text)) for text in ("1KiB", "1024 kib", "3b", "1GiB", "1025")] == [
        "1 KiB",
        "1 MiB",
        "3 B",
        "1 GiB",
        "1025 B",
    ]
    assert [report.seconds_text(s) for s in (1.234e-6, 99.94e-6, 99.96e-6, 0.9994e-3, 0.9996e-3, 0.5, 12.3)] == [
        "1.23 µs",
        "99.9 µs",
        "100 µs",
        "999 µs",
        "1.00 ms",
        "500 ms",
        "12.3 s",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "smoke"], "argument --backend: invalid choice: 'smoke'"),
        (["--ranks", "1"], "argument --ranks: must be a whole number of at least 2, got '1'"),
        (["--sizes", "1KiB,huge"], "argument --sizes: a size is a whole number of B, KiB, MiB or GiB, got 'huge'"),
        (["--sizes", "0"], "argument --sizes: a size is a whole number of B, KiB, MiB or GiB, got '0'"),
        (["--kinds", "array,film"], "argument --kinds: unknown: 'film'; there are array, tensor, images, nested"),
        (["--ways", "pigeon"], "argument --ways: unknown: 'pigeon'; there are lazycast, "),
        (["--cell-s", "inf"], "argument --cell-s: must be a number above 0, got 'inf'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_matplotlib_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert cli.main(["bench", "--backend", "local", "--plot", str(tmp_path / "plot.png")]) == 2
    assert capsys.readouterr().err == "lazycast bench: a plot needs matplotlib: pip install matplotlib\n"


def test_importing_the_benchmark_brings_in_no_framework() -> None:
    heavy = {"torch", "mpi4py", "rich", "matplotlib", "PIL", "sklearn"}
    code = f"import sys, lazycast.tools.bench.session, lazycast.tools.cli.bench; print({heavy!r} & set(sys.modules))"
    assert run([sys.executable, "-c", code], timeout_s=200).stdout == "set()\n"

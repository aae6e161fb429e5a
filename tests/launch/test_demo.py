"""`lazycast demo`, as a user starts it, on every backend."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from lazycast import BackendUnavailableError, LaunchError, __version__
from lazycast.tools import cli
from lazycast.tools.cli import demo

pytestmark = pytest.mark.usefixtures("warm_python")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def python(*arguments: str) -> Ended:
    """Run a Python child to its end, on a wide terminal without colours."""
    env = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, out, err)


def float32(number: float) -> float:
    """Round to float32. Of a sum or quotient of two float32 numbers, this is what float32 arithmetic gives."""
    rounded: float = struct.unpack("=f", struct.pack("=f", number))[0]
    return rounded


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """The digests of the two photos of scikit-learn, without NumPy and without lazycast."""
    digests = {}
    for name in ("china.jpg", "flower.jpg"):
        jpeg = (folder_of("sklearn") / "datasets/images" / name).read_bytes()
        image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448), Image.Resampling.BICUBIC)
        hashed = hashlib.sha256()
        for channel, mean, std in zip(image.split(), map(float32, MEAN), map(float32, STD), strict=True):
            table = [struct.pack("=f", float32(float32(float32(value / 255) - mean) / std)) for value in range(256)]
            hashed.update(b"".join(map(table.__getitem__, channel.tobytes())))
        digests[name] = hashed.hexdigest()
    return digests


@pytest.mark.parametrize(
    ("backend", "ranks"),
    [
        ("torch", 3),
        *(pytest.param(*it, marks=pytest.mark.exhaustive) for it in (("local", 4), ("threads", 3), ("mpi", 3))),
    ],
)
def test_every_rank_gets_the_same_pixels_as_plain_python(backend: str, ranks: int, expected: dict[str, str]) -> None:
    ended = python("-m", "lazycast", "demo", "--backend", backend, "--ranks", str(ranks), "--json")
    assert ended.code == 0, ended
    said = json.loads(ended.out)
    assert said["equal"] is True
    assert said["version"] == __version__
    (run,) = said["runs"]
    assert run["backend"] == backend
    assert [report["rank"] for report in run["ranks"]] == list(range(ranks))
    assert len({report["pid"] for report in run["ranks"]}) == (1 if backend == "threads" else ranks)
    jpegs_nbytes = sum((folder_of("sklearn") / "datasets/images" / name).stat().st_size for name in expected)
    for report in run["ranks"]:
        assert expected.items() <= report["photos"].items()
        assert report["digest"] == hashlib.sha256("".join(report["photos"].values()).encode()).hexdigest()
        assert report["casts"] == 1 + len(report["photos"])
        if report["rank"] > 0:
            assert report["nbytes_received"] > 2 * jpegs_nbytes  # each photo was cast twice
    made, casts = sum(report["materialized"] for report in run["ranks"]), run["ranks"][0]["casts"]
    assert casts <= made <= casts * ranks  # as the root has chosen
    assert sum(report["materialize_ms"] for report in run["ranks"]) > 0


@pytest.mark.exhaustive
def test_root_placement_sends_pixels_and_nobody_else_decodes(expected: dict[str, str]) -> None:
    ended = python("-m", "lazycast", "demo", "--ranks", "2", "--placement", "root", "--json")
    assert ended.code == 0, ended
    root, other = json.loads(ended.out)["runs"][0]["ranks"]
    assert (root["materialized"] > 0, other["materialized"]) == (True, 0)
    assert other["nbytes_received"] > 2 * len(other["photos"]) * 3 * 448 * 448 * 4
    assert root["photos"] == other["photos"]
    assert expected.items() <= other["photos"].items()


@pytest.mark.exhaustive
def test_one_rank() -> None:
    ended = python("-m", "lazycast", "demo", "--ranks", "1", "--json")
    assert ended.code == 0, ended
    assert [report["rank"] for report in json.loads(ended.out)["runs"][0]["ranks"]] == [0]


def test_table() -> None:
    ended = python("-m", "lazycast", "demo", "--ranks", "2")
    assert ended.code == 0, ended
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if "│ local" in line]
    assert [row[:2] for row in rows] == [["local", "0"], ["local", "1"]], ended.out
    assert rows[0][-1] == rows[1][-1]
    assert len(rows[0][-1]) == 16
    assert ended.out.splitlines()[-1] == "all equal"
    assert [line.split("%  ")[-1] for line in ended.err.splitlines()] == [
        *("local: starting ranks", "local: photos together", "local: photos one by one", "local: done")
    ]


def test_version() -> None:
    ended = python("-m", "lazycast", "--version")
    assert (ended.code, ended.out) == (0, f"lazycast {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "carrier-pigeon"], "argument --backend: invalid choice: 'carrier-pigeon'"),
        (["--ranks", "0"], "argument --ranks: must be a whole number of at least 1, got '0'"),
        (["--ranks", "-2"], "argument --ranks: must be a whole number of at least 1, got '-2'"),
        (["--ranks", "many"], "argument --ranks: must be a whole number of at least 1, got 'many'"),
        (["--placement", "moon"], "argument --placement: invalid choice: 'moon'"),
        (["--timeout-s", "nan"], "argument --timeout-s: must be a number above 0, got 'nan'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def without(module: str, *arguments: str) -> Ended:
    """Run the command where a module is not installed."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; from lazycast.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return python("-c", code, *arguments)


@pytest.mark.parametrize(
    ("module", "package"), [("rich", "rich"), ("PIL", "pillow"), ("sklearn", "scikit-learn")], ids=str
)
def test_missing_extra_is_named_with_its_command(module: str, package: str) -> None:
    ended = without(module, "demo")
    assert ended == (2, "", f"lazycast demo: {package} not found; run: pip install 'lazycast[cli]'\n")


@pytest.mark.parametrize(("module", "backend"), [("torch", "torch"), ("mpi4py", "mpi")])
def test_missing_backend(module: str, backend: str) -> None:
    ended = without(module, "demo", "--backend", backend)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert f"pip install 'lazycast[{backend}]'" in ended.err
    assert "Traceback" not in ended.err


def fake_launch(*, digests: list[str], unavailable: str | None = None, broken: str | None = None) -> Any:
    """A `launch` whose ranks report what they are told to."""

    def launch(fn: object, *, backend: str, **_: object) -> list[demo.RankReport]:
        if backend == unavailable:
            raise BackendUnavailableError("install it")
        if backend == broken:
            raise LaunchError("rank 1 [red] was killed by signal 9", rank=1)
        return [demo.RankReport(rank, 7, 3, 9, 3, 1.0, 2.0, digest, {}) for rank, digest in enumerate(digests)]

    return launch


def test_differing_ranks_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "launch", fake_launch(digests=["a", "b", "a", "c"]))
    assert cli.main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "local: differing from rank 0: 1, 3" in out
    assert out.splitlines()[-1] == "not all equal"
    assert cli.main(["demo", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["equal"], said["runs"][0]["differing"]) == (False, [1, 3])


def test_all_shows_what_is_unavailable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "launch", fake_launch(digests=["a", "a"], unavailable="mpi"))
    assert cli.main(["demo", "--backend", "all"]) == 2
    out = capsys.readouterr().out
    assert [out.count(f"│ {backend} ") for backend in demo.BACKENDS] == [2, 2, 2, 1]
    assert "unavailable" in out
    assert "mpi: install it" in out
    assert out.splitlines()[-1] == "all equal where ranks could be started"


def test_all_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "launch", fake_launch(digests=["a"], unavailable="mpi", broken="torch"))
    assert cli.main(["demo", "--backend", "all"]) == 1
    out = capsys.readouterr().out
    assert "torch: LaunchError: rank 1 [red] was killed by signal 9" in out
    assert out.splitlines()[-1] == "not all equal"


def test_one_backend_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "launch", fake_launch(digests=["a"], broken="local"))
    assert cli.main(["demo"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "lazycast: LaunchError: rank 1 [red] was killed by signal 9"


@pytest.mark.cold
def test_importing_lazycast_brings_in_nothing_of_the_command() -> None:
    code = "import lazycast, sys; print(sorted({'rich', 'PIL', 'sklearn', 'lazycast.tools.cli'} & set(sys.modules)))"
    assert python("-c", code) == (0, "[]\n", "")

"""Commands that are told to end: their exit code says by what, and neither ranks nor folders are left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TOLD = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}
COMMANDS = {
    "demo": ["demo", "--backend", "local", "--ranks", "3"],
    "bench": ["bench", "--backend", "local", "--ranks", "3", "--ways", "lazycast"],
    "bench small": ["bench", "small", "--backend", "local", "--ranks", "3"],
    "bench qps": ["bench", "qps", "--backend", "local", "--ranks", "3"],
    "bench overhead": ["bench", "overhead", "--ranks", "3"],
    "soak": ["soak", "--backend", "local", "--ranks", "3"],
}
OFTEN = ("demo", "bench")


def running(group: str) -> list[int]:
    """The processes that have this in their environment, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if group.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(autouse=True)
def _signals_are_not_ignored() -> Iterator[None]:
    """Under `nohup` and in the background some are, and what is started inherits that."""
    before = {number: signal.getsignal(number) for number in TOLD.values()}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def started(name: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A command, whose ranks run by now, with its folder for temporary files and a mark in its environment."""
    folder = tmp_path / "t"
    folder.mkdir()
    mark = f"LAZYCAST_TEST_MARK={folder}"
    with subprocess.Popen(
        [sys.executable, "-m", "lazycast", *COMMANDS[name]],
        env={**os.environ, "TMPDIR": str(folder), "LAZYCAST_TEST_MARK": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,  # a process group of its own, as a shell gives it
    ) as process:
        try:
            wait_until_ranks_run(process, mark)
            assert list(folder.glob("lazycast-*")), "folders are elsewhere: this test sees nothing"
            yield process, folder, mark
        finally:
            process.kill()


def wait_until_ranks_run(process: subprocess.Popen[str], mark: str) -> None:
    """The command's own process, and at least two ranks of it."""
    deadline_s = time.monotonic() + 60
    while len(running(mark)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "no ranks were started"
        time.sleep(0.01)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.exhaustive]) for name in COMMANDS]
)
def test_nothing_is_left(name: str, told: str, tmp_path: Path) -> None:
    with started(name, tmp_path) as (process, folder, mark):
        process.send_signal(TOLD[told])
        out, err = process.communicate(timeout=200)
        assert process.returncode == 128 + TOLD[told], (out, err)
        assert "Traceback" not in err, err
        assert [path.name for path in folder.iterdir()] == []
        assert running(mark) == []


@pytest.mark.parametrize("name", OFTEN)
def test_ctrl_c_again_and_again_leaves_nothing_either(name: str, tmp_path: Path) -> None:
    """A terminal interrupts the whole process group."""
    with started(name, tmp_path) as (process, folder, mark):
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 128 + signal.SIGINT, (out, err)
        assert "Traceback" not in err, err
        assert [path.name for path in folder.iterdir()] == []
        assert running(mark) == []


@pytest.mark.exhaustive
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with started("demo", tmp_path) as (process, folder, _):
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, (out, err)
        assert [path.name for path in folder.iterdir()] == []

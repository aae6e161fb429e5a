"""Starts the ranks of a combination, thaws who is frozen, ends who does not end, and returns what they have said."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import warm
from tests.faults.matrix.combinations import Combination

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0

Event = dict[str, Any]


@dataclass
class Seen:
    """What became of a combination."""

    codes: dict[int, int]  # by rank; none under mpirun
    said: dict[int, list[Event]]  # by rank
    stderr: dict[int, str]
    left: list[str] = field(default_factory=list)  # files and sockets


class Zygote:
    """A process that forks ranks (see `zygote`)."""

    def __init__(self, *modules: str, within: Sequence[str] = (), **env: str) -> None:
        python = warm.python() if modules else sys.executable  # without torch it forks in less time
        self._process = subprocess.Popen(
            [*within, python, "-m", "tests.faults.matrix.zygote", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )

    def _ask(self, order: dict[str, Any]) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: list[int] = json.loads(self._process.stdout.readline())
        return answer

    def fork(self, folder: Path, ranks: Sequence[int]) -> list[int]:
        """Start ranks; return their process ids."""
        return self._ask({"folder": str(folder), "ranks": list(ranks)})

    def codes(self) -> list[int]:
        """Wait for the ranks that were forked last; return their exit codes."""
        return self._ask({})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Zygotes:
    """A zygote for each backend that can have one, started when it is needed."""

    def __init__(self) -> None:
        self._started: dict[str, Zygote] = {}

    def __enter__(self) -> Zygotes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for zygote in self._started.values():
            zygote.close()

    def of(self, backend: str) -> Zygote:
        if backend not in self._started:
            self._started[backend] = Zygote(*(["torch.distributed"] if backend == "torch" else []))
        return self._started[backend]


@contextlib.contextmanager
def folder_for(spec: dict[str, Any]) -> Iterator[Path]:
    """Make the folder of a run, with the spec and places to meet in."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        for place in ("meeting", "again", "tmp"):
            (folder / place).mkdir()
        (folder / "spec.json").write_text(json.dumps(spec))
        yield folder


def run(it: Combination, zygotes: Zygotes, *, patience: int = 1) -> Seen:
    """Run a combination; MPI under `mpirun`.

    Args:
        patience: how many times longer than usual a rank waits for an answer: on a busy machine.
    """
    with folder_for({**it.spec(), "patience": patience}) as folder:
        if it.backend == "mpi":
            codes = _under_mpirun(it, folder)
        else:
            zygote = zygotes.of(it.backend)
            pids = zygote.fork(folder, range(it.size))
            watch(folder, pids, _thaw(it, pids))
            codes = dict(enumerate(zygote.codes()))
        seen = collect(folder, it.size, codes)
        seen.left = [str(path) for place in ("meeting", "again", "tmp") for path in (folder / place).iterdir()]
    return seen


@dataclass(frozen=True)
class Then:
    """What is to be done once some ranks have seen the fault."""

    ranks: Sequence[int]
    act: Callable[[], None]


def _thaw(it: Combination, pids: Sequence[int]) -> Then | None:
    if it.fault != "freeze":
        return None
    return Then(it.survivors, lambda: os.kill(pids[it.victim], signal.SIGCONT))


def watch(folder: Path, pids: Sequence[int], then: Then | None) -> None:
    """Wait for processes to end; do what is to be done when ranks have seen the fault; after the limit kill all."""
    waiting = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended before it could be watched
            waiting.add(os.pidfd_open(pid))
    until_s = time.monotonic() + LIMIT_S
    poller = select.poll()
    for pidfd in waiting:
        poller.register(pidfd, select.POLLIN)
    try:
        while waiting:
            for pidfd, _ in poller.poll(20):
                poller.unregister(pidfd)
                os.close(pidfd)
                waiting.remove(pidfd)
            if then is not None and all((folder / f"saw.{rank}").exists() for rank in then.ranks):
                then.act()
                then = None
            if time.monotonic() > until_s:
                for pidfd in waiting:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                until_s += LIMIT_S
    finally:
        for pidfd in waiting:
            os.close(pidfd)


def collect(folder: Path, size: int, codes: dict[int, int]) -> Seen:
    """Read what the ranks have left in their folder."""
    said, stderr = {}, {}
    for rank in range(size):
        path, err = folder / f"said.{rank}", folder / f"err.{rank}"
        said[rank] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        stderr[rank] = err.read_text() if err.exists() else ""
    return Seen(codes, said, stderr)


def mpirun(ranks: int, *options: str) -> list[str]:
    """The command that starts MPI ranks; fails without one, since the MPI of the tests is a package."""
    found = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, "no mpirun on PATH"
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [found, "-n", str(ranks), "--oversubscribe", *root, *options]


def _under_mpirun(it: Combination, folder: Path) -> dict[int, int]:
    command = [*mpirun(it.size, "--with-ft", "ulfm"), sys.executable, "-m", "tests.faults.matrix.rank", str(folder)]
    with (folder / "mpirun").open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    pids = []
    until_s = time.monotonic() + LIMIT_S
    while len(pids) < it.size and time.monotonic() < until_s:
        pids = [int(path.read_text()) for path in sorted(folder.glob("pid.*"))]
        time.sleep(0.02)
    assert len(pids) == it.size, (folder / "mpirun").read_text()
    try:
        watch(folder, pids, _thaw(it, pids))
        process.wait(LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {}

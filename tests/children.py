"""Runs a command so that nothing of it is left: not on a time-out, nor what its own children have started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)


def adopt() -> None:
    """From now on whatever a descendant of this process leaves behind becomes its child."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """From now on, or as a `preexec_fn`: end with the process that has started this one."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def of_this_process() -> list[int]:
    """Return the children of all threads of this process."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def run(command: Sequence[str], *, cwd: Path, timeout_s: float) -> tuple[int | None, str]:
    """Return the exit code, None after the time limit, and what it said. For a process that has adopted."""
    with (
        (cwd / ".said").open("w+", errors="replace") as said,
        subprocess.Popen(
            command,
            cwd=cwd,
            stdout=said,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        ) as child,
    ):
        try:
            code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            _end_orphans()
        said.seek(0)
        return code, said.read()


def _end_orphans() -> None:
    """Ranks are in sessions of their own: those that outlived their launcher are children of this process now."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in map(int, children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

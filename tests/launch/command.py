"""Runs a launcher's command so that nothing of it outlives a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence


def run(command: Sequence[str], *, timeout_s: float, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own; on a time-out end the whole session and raise with its output."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # torchrun starts each rank in a session of its own, and ends them when it is told to.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"{' '.join(command)} took longer than {timeout_s:g} s:\n{stdout}{stderr}") from None
    return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)

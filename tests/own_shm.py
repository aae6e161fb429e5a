"""A `/dev/shm` that nobody else uses: what is in it at the end was left there by the commands that ran in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_SCRIPT = "mount -t tmpfs none /dev/shm && echo mounted && exec cat"


class OwnShm(NamedTuple):
    """A mount namespace, for as long as the process that holds it."""

    holder: int

    @property
    def within(self) -> list[str]:
        """What to put before a command so that it runs there."""
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--wd={os.getcwd()}", "--"]

    def files(self) -> list[str]:
        return os.listdir(Path(f"/proc/{self.holder}/root/dev/shm"))


@contextlib.contextmanager
def own_shm() -> Iterator[OwnShm]:
    """Make one, or skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("a mount of one's own needs root")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"nothing can be mounted here: {holder.stderr.read()}")
        yield OwnShm(holder.pid)  # then its standard input is closed: `cat` ends, and with it the namespace

"""What a rank writes down while it runs, one line of JSON each, and how that is read.

A file needs nobody at the other end: what a killed rank has written is there to be read. Times are of the monotonic
clock, which the processes of a machine share.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def path(folder: Path, rank: int) -> Path:
    """Return where a rank's diary is."""
    return folder / f"diary.{rank}"


class Diary:
    """The writing end. Thread-safe."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = path(folder, rank).open("a")
        self._lock = threading.Lock()
        self.write("here", pid=os.getpid())

    def write(self, event: str, **facts: Any) -> None:
        """Write a line; it is there when this returns."""
        line = json.dumps({"event": event, "at_s": time.monotonic(), **facts})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def wrong(self, where: str, what: str) -> None:
        """A cast ended otherwise than it may, or with another value."""
        self.write("wrong", where=where, what=what)

    def hang(self, where: str, what: str) -> None:
        """Something did not end within its time limit."""
        self.write("hang", where=where, what=what)

    def leak(self, where: str, what: str) -> None:
        """Something is left that should be gone."""
        self.write("leak", where=where, what=what)


class Reader:
    """The reading end: what has been written since it last looked."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = path(folder, rank)
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines that are new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written, or the rank was killed in the middle of it
                self._offset += len(line)
                yield json.loads(line)


@dataclass(frozen=True)
class Orders:
    """What a job tells its ranks."""

    seed: int
    job: int
    backend: str
    ranks: int
    limit_s: float  # of each call
    slack_s: float  # what a call may take beyond its limit on a loaded machine
    plant: str | None = None

    def write(self, folder: Path) -> None:
        (folder / "orders").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Orders:
        return Orders(**json.loads((folder / "orders").read_text()))

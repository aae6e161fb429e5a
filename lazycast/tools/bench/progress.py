"""How a run shows how far it is: rank 0 appends lines to a file, and the process that started the ranks reads them.

`launch` gives ranks no way to talk to who started them; a file needs nothing, and a reader that fails harms nobody.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

_FILE = "progress"
_POLL_S = 0.1
_REPEAT_S = 15.0
_WRITE_S = 0.2  # no more often: writing takes time from a rank that measures


class Reporter:
    """The writing end, on the ranks; only one of them writes."""

    def __init__(self, folder: Path, writes: bool) -> None:
        self._file = (folder / _FILE).open("a") if writes else None
        self._cell, self._cells, self._what = 0, 1, ""
        self._written_s = 0.0

    def say(self, what: str, fraction: float = 0.0) -> None:
        """Tell what is being done, at the start of it; `fraction` of the cell is done."""
        self._what = what
        self._write(fraction)

    def begin(self, cell: int, cells: int, what: str) -> None:
        """Begin a cell."""
        self._cell, self._cells = cell, cells
        self.say(what)

    def round(self, done: float, wanted: float) -> None:
        """Tell how far the cell is; not every call is written."""
        if time.monotonic() - self._written_s > _WRITE_S:
            self._write(done / wanted)

    def end(self, cells: int) -> None:
        """Tell that all is done."""
        self._cell = self._cells = max(1, cells)
        self.say("done")
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, fraction: float) -> None:
        if self._file is not None:
            self._written_s = time.monotonic()
            share = (self._cell + min(1.0, fraction)) / self._cells
            self._file.write(json.dumps({"share": share, "what": self._what}) + "\n")
            self._file.flush()


class Display(Protocol):
    """Where it is shown."""

    def show(self, share: float, what: str) -> None:
        """Show how far the whole is, 0 to 1, and what is being done."""


class _Lines:
    """For logs and pipes: a line for each thing that begins, and now and then one while it lasts."""

    def __init__(self) -> None:
        self._last, self._since_s, self._said_s = "", time.monotonic(), 0.0

    def show(self, share: float, what: str) -> None:
        now_s = time.monotonic()
        if what != self._last or now_s - self._said_s > _REPEAT_S:
            self._last, self._said_s = what, now_s
            print(f"{now_s - self._since_s:6.1f} s  {share:4.0%}  {what}", file=sys.stderr, flush=True)


class _Bar:
    """For terminals: rich's progress bar."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0)

    def show(self, share: float, what: str) -> None:
        self._progress.update(self._task, completed=share, description=what)


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """Show progress on standard error: as a bar on a terminal, else as lines."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def shown(folder: Path, label: str = "") -> Iterator[None]:
    """Show on standard error what the ranks write into `folder`, for as long as this is open.

    Args:
        label: stands before everything, where several runs follow each other.
    """
    over = threading.Event()
    with display() as shows:
        shows.show(0.0, f"{label}starting ranks")  # seconds, with torch
        arguments = (folder / _FILE, shows, over, label)
        thread = threading.Thread(target=_follow, args=arguments, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _follow(path: Path, shows: Display, over: threading.Event, label: str) -> None:
    path.touch()
    with path.open() as lines:
        rest = ""
        while True:
            last = over.is_set()  # asked before reading, so that nothing is missed at the end
            *whole, rest = (rest + lines.read()).split("\n")
            for line in whole:
                said = json.loads(line)
                shows.show(said["share"], label + said["what"])
            if last:
                return
            over.wait(_POLL_S)

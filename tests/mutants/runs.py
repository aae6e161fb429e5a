"""Runs the tests with a defect, and judges what came of it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import children
from tests.mutants import checkout
from tests.mutants.mutant import Mutant, plant

_NO_TESTS = 5  # how pytest ends where the selection leaves none of the files given
NONE = "none"  # the name of the run without a defect
_LATE = ("docs", "bench", "page", "doctor", "sglang", "prometheus", "package", "demo", "soak", "examples", "site")
#: Folders whose parts are tested together, and by which tests.
_WHOLE = {"core": ("lane", "protocol"), "codec": ("allowed",), "materialize": ("trust",)}


class Row(NamedTuple):
    """What came of one defect."""

    name: str
    state: str  # "caught", "hang" or "survived"
    test: str  # the first that failed, or that did not end
    seconds: float
    selection: str


class How(NamedTuple):
    """How the tests are run."""

    tests: tuple[str, ...]
    select: str
    limit_s: float
    more: tuple[str, ...]
    near: bool = False

    @property
    def selection(self) -> str:
        near = ["near ones of"] if self.near else []
        return " ".join([*near, *self.tests, "-m", repr(self.select), *self.more])


def in_order(root: Path, tests: Sequence[str], file: str) -> tuple[list[str], list[str]]:
    """Return the files of tests that lie near a defect's file, by their names, and the others: folder by folder."""
    *folders, name = file.removeprefix("lazycast/").removesuffix(".py").split("/")
    words = {*name.split("_"), *folders}
    also = {word for folder in folders for word in _WHOLE.get(folder, ())}

    def shared(path: Path) -> int:
        of_test = path.stem.removeprefix("test_").split("_")
        return 2 * len(words & set(of_test)) + len(also & set(of_test))

    def place(path: Path) -> tuple[int, bool, str]:
        return -shared(path), path.stem.removeprefix("test_").startswith(_LATE), path.stem

    found: list[Path] = []
    for given in tests:
        path = root / given
        found += sorted(path.rglob("test_*.py"), key=place) if path.is_dir() else [path]
    near, others = [path for path in found if shared(path)], [path for path in found if not shared(path)]
    return [str(path.relative_to(root)) for path in near], [str(path.relative_to(root)) for path in others]


def judged(code: int | None, said: str) -> tuple[str, str]:
    """Return the state and the test that tells, of how pytest ended and what it wrote with `-v`."""
    if code == 0 or code == _NO_TESTS:
        return "survived", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", said, re.MULTILINE)
    if failed is None:
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if code in (1, 2) and failed is not None:
        return "caught", failed[1]
    begun = re.findall(r"^(tests/\S+::.*?)(?: (?:PASSED|SKIPPED|XFAIL).*)?$", said, re.MULTILINE)
    if code is None or "+++ Timeout +++" in said:
        return "hang", begun[-1] if begun else "before the first test"
    if code in (1, 2) or code < 0:  # it died
        return "caught", begun[-1] if begun else "before the first test"
    raise RuntimeError(f"pytest ended with {code}, which says nothing of the tests:\n{said[-3000:]}")


class _Worker:
    """One process with a copy of its own."""

    def __init__(self, source: Path, folder: Path) -> None:
        children.adopt()
        children.die_with_parent()
        self._root = folder / str(os.getpid())
        self._root.mkdir()
        self._python = checkout.copy(source, self._root)

    def run(self, mutant: Mutant | None, how: How) -> Row:
        name, file = (mutant.name, mutant.file) if mutant is not None else (NONE, "")
        began_s = time.monotonic()
        state, test = "survived", ""
        with plant(mutant, self._root) if mutant is not None else contextlib.nullcontext():
            # Those nearby first by themselves: to collect all tests takes longer than most defects live.
            near, others = in_order(self._root, how.tests, file)
            for files in (near, [] if near and how.near else others):  # without any nearby, all
                if files and state == "survived":
                    state, test = self._pytest(files, how)
        return Row(name, state, test, round(time.monotonic() - began_s, 1), how.selection)

    def _pytest(self, files: Sequence[str], how: How) -> tuple[str, str]:
        command = [str(self._python), "-m", "pytest", "-x", "-v", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
        command += ["-m", how.select, *how.more, *files]
        return judged(*children.run(command, cwd=self._root, timeout_s=how.limit_s))


_worker: _Worker  # of a process of the pool


def begin(source: Path, folder: Path) -> None:
    global _worker
    _worker = _Worker(source, folder)


def run(mutant: Mutant | None, how: How) -> Row:
    return _worker.run(mutant, how)

"""What a planted defect is, and how it gets into a file and out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A defect: in `file`, the one place that reads `old` reads `new` instead. `breaks` is the promise it breaks."""

    name: str
    file: str
    old: str
    new: str
    breaks: str


def planted(mutant: Mutant, root: Path) -> str:
    """Return the file with the defect. Raises ValueError unless its place is found, once."""
    text = (root / mutant.file).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"mutant {mutant.name}: {mutant.file} has {mutant.old!r} {found} times; it must be there once")
    return text.replace(mutant.old, mutant.new)


@contextlib.contextmanager
def plant(mutant: Mutant, root: Path) -> Iterator[None]:
    """Have the defect in a checkout."""
    path, text = root / mutant.file, planted(mutant, root)
    sound = path.read_text()
    try:
        _write(path, text)
        yield
    finally:
        _write(path, sound)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    # Python compares whole seconds and the size: of two versions in one second it would run the first.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)

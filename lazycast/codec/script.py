"""The program that a rank runs as `__main__`, and whether the other ranks run the same one.

Classes and functions of a program have no module that others could import. Where all ranks run one program, each has
them itself: they travel by their names, and a rank gets its own, so `isinstance`, `==` of dataclasses and the identity
of enum members hold. Where programs differ, or have no file (notebooks, standard input, `-c`), what one rank has the
others do not: classes and functions travel as code, in payloads, values and materializers alike, and each other rank
gets one copy of each.

Guarantees: what is "the same" is decided once, at construction, for all ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from lazycast import clock_id

_MAIN = "__main__"
#: What a child that multiprocessing has spawned calls its parent's program.
_NAMES = frozenset({_MAIN, "__mp_main__"})


def ident() -> str:
    """Return the digest of this process's program, or, if that has no file to be compared, a name of this process."""
    file = getattr(sys.modules.get(_MAIN), "__file__", None)
    with contextlib.suppress(OSError):
        if isinstance(file, str):
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return f"process {os.getpid()} of {clock_id.ident()}"  # ranks that are threads of it run one program


def has_file() -> bool:
    """Whether this process's program is a file that another process can run."""
    file = getattr(sys.modules.get(_MAIN), "__file__", None)
    return isinstance(file, str) and Path(file).is_file()


def same(idents: Sequence[str]) -> bool:
    """Return whether all ranks run one program, by what `ident` returned on each."""
    shared = bool(idents[0]) and len(set(idents)) == 1
    if shared:
        sys.modules.setdefault("__mp_main__", sys.modules[_MAIN])  # spawned children have both; their parent needs both
    return shared


def place_of(thing: object) -> str | None:
    """Return the name under which a class or function is found in this process's program, or None."""
    if not isinstance(thing, (type, FunctionType)) or thing.__module__ not in _NAMES:
        return None
    name = thing.__qualname__
    found: Any = sys.modules.get(_MAIN)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    return name if found is thing else None


class Shared:
    """For a pickler of cloudpickle's: classes and functions of the program travel by name."""

    def reducer_override(self, obj: Any) -> Any:
        name = place_of(obj)
        return name if name is not None else super().reducer_override(obj)  # type: ignore[misc]  # of the pickler

"""Helpers that process images: how a server is told to have them, and which there are."""

from __future__ import annotations

import os
from pathlib import Path

from lazycast.adapters.sglang.processors import PROCESSORS

_STARTED_WITH = Path(__file__).with_name("started_with")


def in_helpers(count: int) -> dict[str, str]:
    """Return what the environment says then. On its path is what makes SGLang importable in a new interpreter."""
    return {PROCESSORS: str(count), "PYTHONPATH": f"{_STARTED_WITH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def helpers_of(pid: int) -> list[int]:
    """Return the helpers that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if parent == pid and b"lazycast" in command and b"helper" in command:
            found.append(int(stat.parent.name))
    return found

"""One run from outside: start the ranks, show how far they are, and put together what they bring back."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lazycast.errors import BackendUnavailableError
from lazycast.start.launcher import launch
from lazycast.tools.bench import machine, progress
from lazycast.tools.bench.sglang.measure import combine, run_rank
from lazycast.tools.bench.sglang.plan import Plan

#: Of the layout of what `run` returns.
FORMAT = 1


def recorded(command: str) -> str:
    """Return a command as reports show it: without `--out`, which says where this machine keeps them."""
    words = shlex.split(command)
    kept = []
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if not (len(name) > 2 and "--out".startswith(name)):  # argparse takes beginnings as well
            kept.append(word)
        elif not value:
            del words[:1]
    return shlex.join(kept)


def run(plan: Plan, *, command: str | None = None) -> dict[str, Any]:
    """Measure what `plan` says on ranks of this machine; return everything that is known of the run, as JSON has it.

    Args:
        command: what was typed, for reports, which leave out the folder that they are written to.
    Raises: BackendUnavailableError without SGLang; what `launch` raises, also if hashes differ.
    Blocking: until all is measured.
    """
    if find_spec("sglang") is None:
        raise BackendUnavailableError(
            "this benchmark runs SGLang, which is not installed here; in a checkout, `python "
            "tests/sglang/environment.py 0.5.23` makes an environment with it that needs no GPU, and prints its "
            "interpreter"
        )
    about = {
        "format": FORMAT,
        "benchmark": "sglang",
        "command": None if command is None else recorded(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "plan": asdict(plan),
    }
    cells = []
    versions: dict[str, str] = {}
    for ranks in plan.ranks:
        with (
            tempfile.TemporaryDirectory(prefix="lazycast-bench-") as name,
            progress.shown(Path(name), f"{ranks} ranks: "),
        ):
            found = launch(run_rank, ranks=ranks, backend="torch", args=(plan, Path(name)))
        versions = found[0]["versions"]
        cells += combine(found)
    return {**about, "versions": versions, "cells": cells}

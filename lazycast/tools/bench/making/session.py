"""One run from outside: start the ranks, show how far they are, and judge what they bring back."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lazycast.start.launcher import launch
from lazycast.tools.bench import machine, progress
from lazycast.tools.bench.making import verdicts
from lazycast.tools.bench.making.measure import run_rank
from lazycast.tools.bench.making.plan import Plan

#: Of the layout of what `run` returns.
FORMAT = 1


def run(plan: Plan, *, command: str | None = None, label: str = "") -> dict[str, Any]:
    """Measure what `plan` says on ranks of this machine; return everything that is known of the run, as JSON has it.

    Args:
        command: what was typed, for reports.
        label: stands before everything that is shown of its progress.
    Raises: what `launch` raises; LaunchError also if some rank got another value than the payload makes.
    Blocking: until all is measured.
    """
    about = {
        "format": FORMAT,
        "benchmark": "making",
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "plan": asdict(plan),
    }
    with tempfile.TemporaryDirectory(prefix="lazycast-bench-") as name, progress.shown(Path(name), label):
        measured, *_ = launch(run_rank, ranks=plan.ranks, backend=plan.backend, args=(plan, Path(name)))
    return {**about, **measured, "verdicts": [verdict._asdict() for verdict in verdicts.of(measured["rows"])]}

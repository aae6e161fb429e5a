"""One run from outside: start the ranks, show how far they are, and put together what they bring back."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lazycast.start.launcher import launch
from lazycast.tools.bench import machine, progress
from lazycast.tools.bench.qps.measure import run_rank
from lazycast.tools.bench.qps.plan import Plan
from lazycast.tools.bench.qps.summary import summarize

#: Of the layout of what `run` returns.
FORMAT = 1


def run(plan: Plan, *, command: str | None = None, label: str = "") -> dict[str, Any]:
    """Measure what `plan` says on ranks of this machine; return everything that is known of the run, as JSON has it.

    Args:
        command: what was typed, for reports.
        label: stands before everything that is shown of its progress.
    Raises: what `launch` raises; LaunchError also if some rank got another value than the others.
    Blocking: until all is measured.
    """
    box = machine.describe()
    about = {
        "format": FORMAT,
        "benchmark": "qps",
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": box,
        "plan": asdict(plan),
    }
    with tempfile.TemporaryDirectory(prefix="lazycast-bench-") as name, progress.shown(Path(name), label):
        found = launch(run_rank, ranks=plan.ranks, backend=plan.backend, args=(plan, Path(name)))
    return {**about, "versions": found[0][1], "workloads": summarize([benches for benches, _ in found], box["cores"])}

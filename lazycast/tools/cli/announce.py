"""What a benchmark says before it begins."""

from __future__ import annotations

import os
import sys

from lazycast.tools.bench import machine
from lazycast.tools.bench.plan import duration_text


def announce(command: str, seconds: float) -> None:
    """Say before a run how long it will take, and whether the machine is too busy for it."""
    print(f"{command}: this takes {duration_text(seconds)} on a quiet machine", file=sys.stderr)
    load, cores = machine.load_before(), len(os.sched_getaffinity(0))
    if machine.busy(load, cores):
        busy = f"the machine is busy (load {load:g} on {cores} cores): it will take longer, and allow no conclusions"
        print(f"{command}: {busy}", file=sys.stderr, flush=True)

"""Two ranks on two hosts, one of which is killed in the middle of a body.

Run as `python transit.py transit BACKEND`; VICTIM says which. See `scenarios` for how ranks are told who they are, and
say what has happened.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scenarios import RANK, VICTIM, backend, outcome, say

from lazycast import LazyBroadcast
from tests.faults.matrix import resources

NBYTES, BEGUN_NBYTES = 96 << 20, 9 << 20
STILL_S = 0.2


def mark(name: str) -> Path:
    return Path(os.environ["FOLDER"], name)


def wait_until_still(lazy: LazyBroadcast[Any, Any]) -> None:
    """Until what was under way has arrived: then this rank waits for the rest of a body."""
    seen, since_s = lazy.stats().nbytes_received, time.monotonic()
    while time.monotonic() < since_s + STILL_S:
        time.sleep(0.01)
        if (now := lazy.stats().nbytes_received) != seen:
            seen, since_s = now, time.monotonic()


def main() -> None:
    os.environ["LAZYCAST_HOST"] = str(RANK)
    engine = backend(sys.argv[2])
    before = resources.held()
    lazy: LazyBroadcast[Any, Any] = LazyBroadcast(backend=engine, timeout_s=40)
    assert lazy.broadcast("first" if lazy.is_root else None) == "first"
    say("holds", more=resources.more(resources.held(), before))
    mark(f"pid.{RANK}").write_text(str(os.getpid()))
    future = lazy.broadcast_async(np.ones(NBYTES, np.uint8) if lazy.is_root else None)
    if not lazy.is_root:
        while lazy.stats().nbytes_received < BEGUN_NBYTES:
            time.sleep(0.0005)
        mark("begun").touch()
    if RANK != VICTIM:
        while not mark("stopped").exists():
            time.sleep(0.005)
        wait_until_still(lazy)
        mark("still").touch()
    outcome(lambda: future.result(30))
    outcome(lambda: lazy.broadcast("later" if lazy.is_root else None, timeout_s=30))
    lazy.close(timeout_s=20)
    say("left", more=resources.settled(before))
    say("done")


if __name__ == "__main__":
    main()

"""One rank that holds values while another is killed: `python shared_memory_scenarios.py BACKEND`; see `scenarios`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading

import numpy as np
from scenarios import RANK, VICTIM, backend

from lazycast import LazyBroadcast, PeerLostError, Tuning


def payload(n: int) -> np.ndarray:
    return np.frombuffer(random.Random(n).randbytes(70_000 + n), np.uint8).copy()


def main() -> None:
    lazy = LazyBroadcast(backend=backend(sys.argv[1]), tuning=Tuning(arena_nbytes=4 << 20), timeout_s=30)
    held: dict[int, np.ndarray] = {}
    for n in range(100_000):
        if n == 50 and RANK == VICTIM:  # from another thread, so that it comes at any point of a cast
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        try:
            held[n] = lazy.broadcast(payload(n) if lazy.is_root else None)
        except PeerLostError as exc:
            error = exc
            break
        held.pop(n - 40, None)
    else:
        raise AssertionError("nobody died")
    for n, value in held.items():
        assert value.tobytes() == payload(n).tobytes(), f"the value of cast {n} has changed"
    sys.stdout.write(json.dumps({"kind": type(error).__name__, "rank": error.rank, "held": len(held)}) + "\n")
    lazy.close()


main()

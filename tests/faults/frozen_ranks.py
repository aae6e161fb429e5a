"""One rank is stopped by a signal, for three seconds and until the others have seen it; then it goes on.

Run as `python frozen_ranks.py SCENARIO BACKEND`.

See `scenarios` for how ranks are told who they are, and how they say what has happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scenarios import RANK, SIZE, VICTIM, backend, say

from lazycast import LazyBroadcast, LazycastError, Tuning
from lazycast.core import waits

FROZEN_S = 3.0
#: How many times longer than usual answers may take: on a busy machine.
PATIENCE = int(os.environ.get("PATIENCE", "1"))
waits._ASK_BEFORE_S *= PATIENCE
#: Of a call that the frozen rank keeps from its end: time for the root to ask all, and to tell who is silent.
WAITED_S = 5.0 * PATIENCE


def mark(what: str, rank: int = RANK) -> Path:
    """The mark of a rank that has come so far."""
    return Path(os.environ["FOLDER"], f"{what}.{rank}")


def wait_for(*marks: Path) -> None:
    while not all(path.exists() for path in marks):
        time.sleep(0.02)


def outcome(what: str, call: Callable[[], Any]) -> None:
    """Say how a call ended, and whom it names."""
    try:
        value = call()
    except LazycastError as exc:
        named = {"missing": exc.missing, "silent": exc.silent, "rank": exc.rank}
        say(what, kind=type(exc).__name__, message=exc.message, **named)
    else:
        say(what, value=value)


def freeze() -> None:
    """Stop this process, but not while others still wait for its part in the first cast.

    Whoever wakes it has none of its descriptors.
    """
    wait_for(*(mark("ready", rank) for rank in range(SIZE)))
    mark("pid").symlink_to(str(os.getpid()))  # whole as soon as it is there
    seen = " && ".join(f"test -e {mark('saw', rank)}" for rank in range(SIZE) if rank != RANK)
    over = f"! test -d {os.environ['FOLDER']}"  # of a test that has failed
    wait = f"sleep {FROZEN_S}; until {seen} || {over}; do sleep 0.05; done; kill -CONT {os.getpid()}"
    waker = subprocess.Popen(["sh", "-c", wait])
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()


def wait_until_frozen() -> None:
    """Wait for the victim to be stopped: its state, as the system has it."""
    while not mark("pid", VICTIM).is_symlink():
        time.sleep(0.02)
    stat = Path("/proc", os.readlink(mark("pid", VICTIM)), "stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.02)


def goes_on(lazy: LazyBroadcast[Any, Any]) -> None:
    """It finds what was cast meanwhile, and everybody goes on together."""
    if RANK == VICTIM:
        freeze()
    else:
        wait_until_frozen()
        outcome("dump", lambda: lazy.dump())
    payload = "while it was frozen" if lazy.is_root else None
    outcome("meanwhile", lambda: lazy.broadcast(payload, timeout_s=WAITED_S if RANK != VICTIM else 20))
    mark("saw").touch()
    outcome("after", lambda: lazy.broadcast("after" if lazy.is_root else None, timeout_s=20))
    lazy.close()


def is_told_that_its_time_was_over(lazy: LazyBroadcast[Any, Any]) -> None:
    """A call that it was waiting for when it was stopped."""
    pending = lazy.broadcast_async(key="never", timeout_s=1.0) if not lazy.is_root else None
    if RANK == VICTIM:
        freeze()
    if pending is not None:
        outcome("pending", pending.result)
    mark("saw").touch()
    outcome("after", lambda: lazy.broadcast("after" if lazy.is_root else None, timeout_s=20))
    while lazy.is_root and " 0 on the books" not in lazy.dump():
        time.sleep(0.05)  # somebody still waits for what does not come
    lazy.close()


def is_left_behind(lazy: LazyBroadcast[Any, Any]) -> None:
    """The others have closed meanwhile, within the time that they allow for it."""
    if RANK == VICTIM:
        freeze()
        outcome("after", lambda: lazy.broadcast("x" if lazy.is_root else None, timeout_s=20))
        lazy.close()
        mark("saw").touch()
    else:
        wait_until_frozen()
        lazy.close(timeout_s=1.0)
        say("closed")
        mark("saw").touch()
        wait_for(mark("saw", VICTIM))  # a process that ends would be seen to


if __name__ == "__main__":
    shared = os.environ.get("SHARED_MEMORY", "auto")
    the_object = LazyBroadcast(backend=backend(sys.argv[2]), tuning=Tuning(shared_memory=shared == "auto" and "auto"))
    assert the_object.broadcast("first" if the_object.is_root else None) == "first"
    mark("ready").touch()
    {fn.__name__: fn for fn in (goes_on, is_told_that_its_time_was_over, is_left_behind)}[sys.argv[1]](the_object)
    say("done")

"""What one rank of a fault test does: `python scenarios.py SCENARIO BACKEND`, with RANK, WORLD_SIZE and FOLDER set.

A rank says what happened to it in lines of JSON; the test reads them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lazycast import ClosedError, KeyInUseError, LazyBroadcast, LazycastError, Tuning
from lazycast.net.backend import Backend
from lazycast.testing.kit import raises

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
VICTIM = int(os.environ.get("VICTIM", "-1"))


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def backend(name: str) -> Backend:
    folder = os.environ["FOLDER"]
    if name == "local":
        from lazycast.backends.local import LocalBackend

        return LocalBackend(RANK, SIZE, folder)
    import torch.distributed as dist

    from lazycast.backends.torch_distributed import TorchBackend

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=RANK, world_size=SIZE)
    return TorchBackend()


def outcome(call: Callable[[], Any]) -> None:
    """Say how a call ended."""
    try:
        value = call()
    except LazycastError as exc:
        say("error", kind=type(exc).__name__, rank=exc.rank, message=exc.message)
    else:
        say("value", value=repr(value))


def interrupts_at_any_moment(lazy: LazyBroadcast[Any, Any]) -> None:
    """Ctrl-C hits the root again and again, wherever it is; it makes the call again, and nobody is out of step."""
    casts, interrupted, armed, over = int(os.environ["CASTS"]), 0, False, threading.Event()

    def on_interrupt(_number: int, _frame: Any) -> None:
        nonlocal armed, interrupted
        if armed:  # in the call; not in what this scenario itself does
            armed, interrupted = False, interrupted + 1
            raise KeyboardInterrupt

    def interrupt() -> None:
        chance = random.Random(7)
        while not over.wait(chance.uniform(0.0005, 0.004)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    signal.signal(signal.SIGINT, on_interrupt)
    thread = threading.Thread(target=interrupt)
    if lazy.is_root:
        thread.start()
    for number in range(casts):
        payload, value = np.full(1000 * (number % 30), number), None
        while value is None:
            try:
                armed = True
                value = lazy.broadcast(payload if lazy.is_root else None, key=number, timeout_s=20)
                armed = False
            except KeyboardInterrupt:
                pass  # the handler has disarmed itself
            except KeyInUseError:  # the call that was interrupted is not done yet
                armed = False
                time.sleep(0.02)
        assert len(value) == len(payload)
        assert (value == number).all()
    if lazy.is_root:
        over.set()
        thread.join()
        say("interrupted", times=interrupted)
    assert lazy.broadcast("the last", key="the last") == "the last"


def exit_without_close(lazy: LazyBroadcast[Any, Any]) -> None:
    """The interpreter ends with casts pending on some ranks; nobody hangs, nobody crashes."""
    assert lazy.broadcast("one") == "one"
    if not lazy.is_root:
        lazy.broadcast_async(key="never sent")
    say("leaving")


def fork_while_open(lazy: LazyBroadcast[Any, Any]) -> None:
    """A forked child cannot use the object, and its end harms nobody."""
    value = lazy.broadcast(np.arange(50_000))

    def child() -> None:
        raises(ClosedError, "parent of this forked process", lambda: lazy.broadcast(1))
        lazy.close()
        assert value.sum() == 1249975000

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    say("child", exitcode=process.exitcode)
    outcome(lambda: lazy.broadcast("after the fork"))
    lazy.close()


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def death_with_a_child_alive(lazy: LazyBroadcast[Any, Any]) -> None:
    """A child forked by the victim lives on with copies of its descriptors; the death is told all the same."""
    folder = Path(os.environ["FOLDER"])

    def child() -> None:
        for standard in (1, 2):
            os.close(standard)  # of these the test waits for the end
        (folder / "child").touch()
        while folder.exists():  # until all have ended
            time.sleep(0.1)

    lazy.broadcast(0)
    if RANK == VICTIM:
        multiprocessing.get_context("fork").Process(target=child).start()
        while not (folder / "child").exists():
            time.sleep(0.01)
        (folder / "victim").symlink_to(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    while not (folder / "victim").is_symlink() or _runs(int(os.readlink(folder / "victim"))):
        time.sleep(0.01)
    outcome(lambda: lazy.broadcast("x", timeout_s=30))


def death_of_one_of_several_roots(lazy: LazyBroadcast[Any, Any]) -> None:
    """Every rank waits for casts of all others when one dies: all of them end, each names it, and it is lost once."""
    lazy.broadcast(RANK, key="first")
    for root in range(SIZE):
        if root != RANK:
            lazy.broadcast(key="first", root=root)
    if RANK == VICTIM:
        time.sleep(0.3)  # the others ask meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    futures = [lazy.broadcast_async(key="never", root=root, timeout_s=30) for root in range(SIZE) if root != RANK]
    for future in futures:
        outcome(future.result)
    outcome(lambda: lazy.broadcast("own", timeout_s=30))
    outcome(lambda: [lazy.next(timeout_s=30) for _ in range(SIZE)])  # what had come before the news is taken first
    say("stats", lost=lazy.stats().lost)
    lazy.close()


def closing_at_the_first_failure(lazy: LazyBroadcast[Any, Any]) -> None:
    """One rank dies, and each of the others closes as soon as one of its calls has failed."""
    roots = [root for root in range(SIZE) if root not in (RANK, VICTIM)]
    lazy.broadcast(RANK, key="first")
    if RANK == VICTIM:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    futures = [lazy.broadcast_async(key="never", root=root, timeout_s=30) for root in roots]
    failed = threading.Event()
    for future in futures:
        future.add_done_callback(lambda _: failed.set())
    failed.wait(30)
    lazy.close(timeout_s=0)
    for future in futures:
        outcome(future.result)


SCENARIOS = {
    fn.__name__: fn
    for fn in (
        interrupts_at_any_moment,
        exit_without_close,
        fork_while_open,
        death_with_a_child_alive,
        death_of_one_of_several_roots,
        closing_at_the_first_failure,
    )
}

if __name__ == "__main__":
    the_backend = backend(sys.argv[2])
    inflight = int(os.environ.get("MAX_INFLIGHT", "64"))
    tuning = Tuning(max_inflight=inflight, shared_memory=os.environ.get("SHARED_MEMORY", "auto") == "auto" and "auto")
    SCENARIOS[sys.argv[1]](LazyBroadcast(backend=the_backend, roots=os.environ.get("ROOTS", "one"), tuning=tuning))
    say("done")

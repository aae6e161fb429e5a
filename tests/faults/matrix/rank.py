"""What one rank of a combination does, told by `spec.json` in a folder, and said in lines of JSON in the same folder.

Ranks keep in step by marks, which are empty files. Whoever does the work of a step marks "reached" and holds still
until the victim has marked "struck", just before its fault. Times are monotonic seconds, which all processes of a
machine share.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lazycast import LazyBroadcast, LazycastError, Shard, Tuning
from lazycast.net.backend import Backend
from tests.faults.matrix import groups, resources
from tests.faults.matrix.combinations import ORDERLY

TIMEOUT_S = 2.5  # of everything that a rank waits for when nobody answers
CONSTRUCT_S = 3.0
LONG_S = 15.0  # of everything that must not need its time limit
HOLD_S = 0.3  # how long a step lasts after the fault
NBYTES, TRANSIT_NBYTES = 1 << 20, 96 << 20

me: Rank  # one rank is one process


class Rank:
    """This process's part."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.spec = json.loads((folder / "spec.json").read_text())
        self.victim, self.size = self.spec["victim"], self.spec["size"]
        self.step, self.fault = self.spec["step"], self.spec["fault"]
        self.is_victim, self.is_root = number == self.victim, number == 0
        #: The rank that keeps others from agreeing.
        self.blocker = max(rank for rank in range(1, self.size) if rank != self.victim)
        #: Whether things are as before after a while.
        self.passes = self.fault in ("freeze", "cut")
        self.timeout_s = TIMEOUT_S * self.spec["patience"] if self.passes else LONG_S
        self._said = (folder / f"said.{number}").open("a")

    def say(self, event: str, **facts: Any) -> None:
        self._said.write(json.dumps({"event": event, "at_s": time.monotonic(), **facts}) + "\n")
        self._said.flush()

    def mark(self, name: str) -> None:
        (self.folder / name).touch()

    def await_mark(self, name: str, timeout_s: float = LONG_S) -> bool:
        until_s = time.monotonic() + timeout_s
        while not (self.folder / name).exists():
            if time.monotonic() > until_s:
                return False
            time.sleep(0.005)
        return True

    def hold_the_step(self) -> None:
        """What does the work of a step: say so, and go on when the fault has come."""
        self.mark("reached")
        outlast_the_fault()

    # The fault

    def strike(self, lazy: LazyBroadcast[Any, Any] | None = None) -> None:
        self.say("fault")
        self.mark("struck")
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault in ("term", "exit"):
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.fault == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
            self.say("thawed")
            self.mark("thawed")
        elif self.fault == "raise":
            raise OutOfHere
        elif lazy is not None:
            lazy.close(timeout_s=TIMEOUT_S)

    # Telling how things end

    def outcome(self, what: str, call: Callable[[], Any]) -> bool:
        """Say what came of a call; return whether that was a value."""
        began_s = time.monotonic()
        try:
            value = call()
        except (LazycastError, concurrent.futures.CancelledError) as exc:
            text = getattr(exc, "message", str(exc))
            rank = getattr(exc, "rank", None)
            self.say("outcome", what=what, kind=type(exc).__name__, rank=rank, message=text, began_s=began_s)
            return False
        self.say("outcome", what=what, kind="value", value=repr(value)[:80], began_s=began_s)
        return True


class OutOfHere(Exception):
    """Leaves the `with` block of the victim."""


class Slow:
    """Pickles as "encoded", on a rank that holds the step meanwhile."""

    def __reduce__(self) -> Any:
        me.hold_the_step()
        return str, ("encoded",)


class SlowToLoad:
    """Unpickles as "loaded", on the rank that keeps others from agreeing only after the fault."""

    def __reduce__(self) -> Any:
        return load, ()


def load() -> str:
    if me.number == me.blocker:
        outlast_the_fault()
    return "loaded"


def outlast_the_fault() -> None:
    me.await_mark("struck", 5.0)
    time.sleep(HOLD_S)


def work(payload: Any) -> Any:
    """A materializer that holds the step where it is the victim's."""
    if me.step == "materializing" and me.is_victim:
        me.hold_the_step()
    if me.step == "agreeing" and me.number == me.blocker:
        outlast_the_fault()
    if me.step == "agreeing" and me.is_victim:
        me.mark("reached")
        if me.spec["role"] == "owner":
            return SlowToLoad()
    if me.step == "closing" and me.number == me.blocker:
        me.hold_the_step()
    return Slow() if me.step == "encoding" else payload


# The steps: each begins what the step needs, and returns what is pending


Pending = dict[str, "concurrent.futures.Future[Any]"]


def a_cast(lazy: LazyBroadcast[Any, Any], payload: Any, materialize: Any = None) -> Pending:
    return {"cast": lazy.broadcast_async(payload if me.is_root else None, key="cast", materialize=materialize)}


def begin(lazy: LazyBroadcast[Any, Any]) -> Pending:
    if me.step == "encoding":
        if me.spec["role"] == "owner":
            return a_cast(lazy, "payload", work)
        return a_cast(lazy, Slow())
    if me.step in ("materializing", "agreeing"):
        return a_cast(lazy, "payload", work)
    if me.step == "transit":
        pending = a_cast(lazy, np.ones(TRANSIT_NBYTES, np.uint8))
        if me.number == (2 if me.spec["layout"] == "two" else 1):  # a leader that gets it from another host
            until_s = time.monotonic() + LONG_S
            while lazy.stats().nbytes_received < 9 << 20 and time.monotonic() < until_s:
                time.sleep(0.0005)
            me.mark("reached")
        return pending
    if me.step == "closing" and me.victim == 0:
        return a_cast(lazy, "payload", work)
    if me.is_victim:
        me.mark("reached")
    if me.is_root or me.passes or (me.fault in ORDERLY and me.victim != 0):
        return {}  # such an ask would have to wait for the root, whoever else is frozen or has left
    return {"ask": lazy.broadcast_async(key="never sent")}


def close_and_strike(lazy: LazyBroadcast[Any, Any]) -> None:
    """The fault comes while the main thread is in `close`."""
    if me.victim != 0:
        lazy.broadcast_async(key="keeps close() waiting")
    timer = threading.Timer(0.15, me.strike)
    timer.start()
    lazy.close(timeout_s=TIMEOUT_S)
    timer.join()


# One rank from start to end


@contextlib.contextmanager
def constructed(backend: Backend, **options: Any) -> Iterator[LazyBroadcast[Any, Any]]:
    spec = me.spec
    owners = [me.victim] if spec["role"] == "owner" else None
    placement = Shard(owners) if owners else "every"
    tuning = Tuning(arena_nbytes=256 << 20)
    with LazyBroadcast(backend=backend, timeout_s=me.timeout_s, placement=placement, tuning=tuning, **options) as lazy:
        yield lazy


def as_victim(lazy: LazyBroadcast[Any, Any]) -> None:
    value = lazy.broadcast(np.full(NBYTES, 7, np.uint8) if me.is_root else None, timeout_s=LONG_S)
    assert value[0] == 7
    for rank in range(me.size):  # a death now would keep the verdict from those that have not heard it
        assert rank == me.number or me.await_mark(f"holds.{rank}"), f"rank {rank} has no value"
    pending = begin(lazy)
    if not me.await_mark("reached"):
        raise AssertionError(f"{me.step} was not reached")
    if me.step == "agreeing":
        time.sleep(0.05)  # for its report to leave
    if me.step == "closing":
        close_and_strike(lazy)
    else:
        me.strike(lazy)
    # Only a frozen rank, and one that has closed, get here.
    for what, future in pending.items():
        me.outcome(what, lambda future=future: future.result(LONG_S))
    if me.fault == "freeze" and me.step != "closing":
        if not me.is_root:
            lazy.discard("later 0")
        elif not pending:
            lazy.broadcast_async("later", key="later 0")  # which the others have given up
        me.outcome("after", lambda: lazy.broadcast("after", key="after", timeout_s=LONG_S))


def as_survivor(lazy: LazyBroadcast[Any, Any]) -> None:
    value = lazy.broadcast(np.full(NBYTES, 7, np.uint8) if me.is_root else None, timeout_s=LONG_S)
    me.mark(f"holds.{me.number}")
    pending = begin(lazy)
    fine = True
    for what, future in pending.items():
        fine = me.outcome(what, lambda future=future: future.result(LONG_S)) and fine
    me.await_mark("struck")
    if not me.passes or fine:
        cast_until_it_fails(lazy)
    if me.passes:
        me.mark(f"saw.{me.number}")
        me.await_mark("thawed")
        me.outcome("after", lambda: lazy.broadcast("after", key="after", timeout_s=LONG_S))
    assert (value == 7).all(), "a value that is held has changed"


def cast_until_it_fails(lazy: LazyBroadcast[Any, Any]) -> None:
    """A rank that is on its way out may still take what comes before its farewell."""
    for n in range(300):
        key = f"later {n}"
        if not me.outcome("later", lambda key=key: lazy.broadcast("later", key=key)):
            return
        time.sleep(0.01)
    raise AssertionError("casts work without the victim")


def live(rank: Rank) -> None:
    """Be one rank of a combination."""
    global me
    me = rank
    os.environ["TMPDIR"] = tempfile.tempdir = str(me.folder / "tmp")
    os.environ["LAZYCAST_HOST"] = me.spec["hosts"][me.number]
    if me.fault == "exit" and me.is_victim:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if me.step == "constructing":
        me.timeout_s = CONSTRUCT_S
    group = groups.join(me.spec["backend"], me.folder, me.number, me.size)
    if me.spec["backend"] == "mpi":  # which opens things at its first use and keeps them
        with LazyBroadcast(backend=group.backend(), name="warm-up", timeout_s=LONG_S) as lazy:
            lazy.broadcast(np.zeros(NBYTES))
    before = resources.held()
    try:
        if me.step == "constructing":
            constructs(group)
        else:
            with constructed(group.backend()) as lazy:
                as_victim(lazy) if me.is_victim else as_survivor(lazy)
    except OutOfHere:
        me.say("left")
    me.say("resources", more=resources.settled(before))
    again(group)
    me.say("done")
    group.leave()


def constructs(group: groups.Group) -> None:
    """The victim's fault comes in its own construction; then those that are left construct once more."""
    backend = groups.Interrupted(group.backend(), me.strike) if me.is_victim else group.backend()

    def construct() -> str:
        with constructed(backend):
            return "constructed"

    me.outcome("construction", construct)
    me.mark(f"saw.{me.number}")


def again(group: groups.Group) -> None:
    """The remedy that the errors name: a new group of those that are left works."""
    if me.passes:
        me.await_mark("thawed")
        left = list(range(me.size))
    else:
        left = [rank for rank in range(me.size) if rank != me.victim]
    if me.number not in left:
        return
    me.timeout_s = LONG_S
    renewed = group.renewed(left)
    if renewed is None:
        return
    spec_owner, me.spec["role"] = me.spec["role"], "plain"
    with constructed(renewed, name="again") as lazy:
        me.outcome("again", lambda: lazy.broadcast("again"))
    me.spec["role"] = spec_owner


def main(folder: Path, number: int) -> None:
    """Run as a rank; what it raises goes to a file of its own."""
    with (folder / f"err.{number}").open("w") as err:
        os.dup2(err.fileno(), 2)
        os.dup2(err.fileno(), 1)
    faulthandler.dump_traceback_later(40, file=sys.__stderr__)
    rank = Rank(folder, number)
    part = folder / f"part.{number}"  # whoever sees the name reads the whole number
    part.write_text(str(os.getpid()))
    part.rename(folder / f"pid.{number}")
    live(rank)


if __name__ == "__main__":
    from tests.faults.matrix import rank as module  # by its name, as those who unpickle it know it

    module.main(Path(sys.argv[1]), int(os.environ["OMPI_COMM_WORLD_RANK"]))

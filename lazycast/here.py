"""What the current thread does: lazycast's own work, with or without user code in the middle of it.

Guarantees: looked at and changed by the thread itself alone, without locks. What comes in the middle of lazycast's own
work, from a finalizer that the collector runs say, can tell that it does, and waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any


class _Here(threading.local):
    """See the module's text.

    `depth`: how many pieces of lazycast's own work this thread is in; 0 in user code. `defers`: whether signals wait
    for their end, as they do not in user code. `holds`: whether their handlers have been put aside. `main`: whether
    this thread runs them. `unwanted`: in a materializer, says whether anybody still waits for what it makes.
    `item`: at which item of an `Each` the materializer has raised.
    """

    depth = 0
    defers = False
    holds = False
    unwanted: Callable[[], bool] | None = None
    item: int | None = None

    def __init__(self) -> None:
        self.main = threading.get_ident() == threading.main_thread().ident
        self.roles: list[tuple[object, str]] = []  # for whom this thread runs user code, and as what


here = _Here()


#: How a forked child ends that user code has let come back (as `sysexits.h` has it: a defect of software).
_EXIT_SOFTWARE = 70

#: Signals whose handlers wait, and what runs them: `lazycast.core.interrupts` says so.
_put_off: Collection[int] = ()
_deliver: Callable[[], object] = int  # nothing, until then


def delivers(put_off: Collection[int], deliver: Callable[[], object]) -> None:
    """Say what waits for user code to be interrupted, and how that is done."""
    global _put_off, _deliver
    _put_off, _deliver = put_off, deliver


def own_thread() -> None:
    """This thread is one of lazycast's own: all it does is lazycast's work, but for the user code that it calls."""
    here.depth = 1


def end_forked(parent: int, exc: BaseException | None) -> None:
    """End a process that user code has forked and let come back: it must not go on in the place of its parent.

    In the main thread the child is the user's own, and may come back to the user's program.
    """
    code = exc.code if isinstance(exc, SystemExit) else _EXIT_SOFTWARE
    if not isinstance(exc, SystemExit):
        text = f"lazycast: process {os.getpid()}, forked by user code in a thread of process {parent}"
        os.write(2, f"{text}, came back from it and is ended here; let it end by os._exit()\n".encode())
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def call_out(fn: Callable[..., Any], *args: object) -> Any:
    """Call user code in the middle of lazycast's own work: no lock is held."""
    before, pid, main = (here.depth, here.defers), os.getpid(), here.main  # a fork makes any thread the main one
    here.depth, here.defers = 0, False
    try:
        if _put_off and here.main:
            _deliver()  # it may take long, or wait for what the handler does
        return fn(*args)
    finally:  # no context: an interrupt could keep its end from being run
        here.depth, here.defers = before
        if os.getpid() != pid and not main:
            end_forked(pid, sys.exc_info()[1])


def cancelled() -> bool:
    """Return whether nobody waits any more for what the calling materializer makes.

    So after the root has withdrawn its cast (`CastFuture.cancel`), after the cast has failed elsewhere, and after this
    rank has given it up where it materializes for itself. A materializer that takes long asks now and then, and
    returns, or raises, whatever it likes: nobody will see it. Outside of a materializer, and in threads that one has
    started, it is False.
    Collective: no. Blocking: never. Threads: safe.
    """
    unwanted = here.unwanted
    return unwanted is not None and unwanted()


def _after_fork_in_child() -> None:
    here.main = True  # whichever thread forked is the only one


os.register_at_fork(after_in_child=_after_fork_in_child)

"""Ends what is still open when the interpreter exits, and detaches a forked child from its parent's objects.

Order at exit: lazycast's objects are closed by `atexit`, which runs before torch and MPI tear down what they sit on.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import Protocol

from lazycast.tracebacks import log

logger = logging.getLogger("lazycast")


class Closable(Protocol):
    """What lives here."""

    def close(self, timeout_s: float) -> None: ...

    def after_fork_in_child(self) -> None: ...

    def dump(self) -> str: ...


class Watcher(Protocol):
    """Who wants to know what is open."""

    def began(self, thing: Closable) -> None:
        """Learn that something was opened."""

    def ended(self, thing: Closable) -> None:
        """Learn, maybe more than once, that something is closed. It still counts as open."""


#: How long all objects together may wait for pending calls at exit (seconds).
_EXIT_TIMEOUT_S = 5.0

_open: set[Closable] = set()  # not weak: an object that its user has dropped without closing must still say farewell
_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
_lock = threading.RLock()  # a finalizer may close an object in the middle


def watch(thing: Closable) -> None:
    """Close `thing` at exit, and tell it of a fork."""
    with _lock:
        _open.add(thing)
    for watcher in list(_watchers):
        watcher.began(thing)


def forget(thing: Closable) -> None:
    """It was closed."""
    if thing in _open:
        for watcher in list(_watchers):
            watcher.ended(thing)
    with _lock:
        _open.discard(thing)


def tell(watcher: Watcher) -> None:
    """Tell `watcher`, as long as it lives, of all that is opened and closed from now on."""
    _watchers.add(watcher)


def tell_no_more(watcher: Watcher) -> None:
    """Leave it alone."""
    _watchers.discard(watcher)


def open_now() -> list[Closable]:
    """Return what is open. Without the lock, which a signal handler may have interrupted: a copy takes one step."""
    return list(_open)


def _close_all() -> None:
    with _lock:
        things = list(_open)
    deadline_s = time.monotonic() + _EXIT_TIMEOUT_S
    for thing in things:
        try:
            thing.close(max(0.1, deadline_s - time.monotonic()))
        except Exception as exc:
            log(logger, "lazycast: closing at exit failed", exc)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it when this process was forked
    for thing in list(_open):
        thing.after_fork_in_child()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

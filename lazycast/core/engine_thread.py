"""The engine thread: it keeps time and does what is queued, and sleeps otherwise."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lazycast.core.waits import Stage, W, Waits
from lazycast.here import own_thread
from lazycast.tracebacks import forget_frames, log

logger = logging.getLogger("lazycast")


class _Served(NamedTuple):
    """Whose time it keeps."""

    waits: Waits[Any]
    on_due: Callable[[Stage, Any], None]
    work: Callable[[], float | None]
    on_failure: Callable[[BaseException], None]


class EngineThread:
    """One thread that reports due waits of all whom it serves, and does their work. `lock` guards the waits."""

    def __init__(self, lock: threading.RLock, *, name: str) -> None:
        self._lock = lock
        self._served: list[_Served] = []
        self._gate = threading.Lock()  # locked while there is nothing to do: cheaper to open than an Event to set
        self._gate.acquire()
        self._working = threading.Lock()  # held by the thread that does what is queued
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def serve(
        self,
        waits: Waits[W],
        *,
        on_due: Callable[[Stage, W], None],
        work: Callable[[], float | None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Keep time for somebody. Before `start`.

        Args:
            on_due: called without the lock for each stage of a wait that comes due.
            work: does what is queued; returns when to be called again at the latest (monotonic seconds), or None.
            on_failure: called once if one of the two raises, anybody's, which is a defect; the thread then ends.
        """
        self._served.append(_Served(waits, on_due, work, on_failure))

    def start(self) -> None:
        """Begin, if nobody has said so before."""
        if self._thread.ident is None:
            self._thread.start()

    def state(self) -> str:
        """Return a line for a dump."""
        return f"{self._thread.name}: {'lives' if self._thread.is_alive() else 'does not live'}"

    def wake(self) -> None:
        """There is something to do, or a wait that comes due earlier than all others."""
        try:  # contextlib.suppress would take as long as all the rest, and every call of the root passes here
            self._gate.release()
        except RuntimeError:
            return  # it is open already

    def work_here(self, work: Callable[[], bool]) -> None:
        """There is something to do: do `work` in this thread, unless the engine's is at it. Call it `Uninterrupted`.

        What `work` leaves undone is the engine's: it says whether there may be more.

        It saves a small cast two changes of threads, which take as long as all the rest of the root's work on it.
        """
        if not self._working.acquire(blocking=False):
            self.wake()
            return
        try:
            more = work()
        except BaseException as exc:
            self._tell_failure(exc)
            raise
        finally:
            self._working.release()
        if more:
            self.wake()

    def work_at_last(self, work: Callable[[], object], timeout_s: float) -> bool:
        """Do `work` in this thread, after what the engine's is at; return False if that takes longer than allowed."""
        if not self._working.acquire(timeout=timeout_s):
            return False
        try:
            work()
        finally:
            self._working.release()
        return True

    def stop(self) -> None:
        """End the thread, from any thread."""
        self._stopped = True
        self.wake()
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _run(self) -> None:
        own_thread()
        try:
            while not self._stopped:
                self._turn()
        except Exception as exc:
            self._tell_failure(exc)

    def _tell_failure(self, exc: BaseException) -> None:
        for served in self._served:
            try:
                served.on_failure(exc)
            except Exception as more:  # the others are to be told all the same
                log(logger, "lazycast: the failure of an engine could not be told", more)

    def _tell_due(self) -> None:
        # On its own: what it has told of must not live as long as this thread sleeps.
        for served in self._served:
            with self._lock:
                due = served.waits.due(time.monotonic())
            for stage, what in due:
                served.on_due(stage, what)

    def _turn(self) -> None:
        self._tell_due()
        next_s = math.inf
        with self._working:
            for served in self._served:
                work_s = served.work()
                if work_s is not None and work_s < next_s:
                    next_s = work_s
        with self._lock:
            for served in self._served:
                if served.waits.next_s < next_s:
                    next_s = served.waits.next_s
        forget_frames()
        # Whoever wakes us from here on opens the gate, so nothing that comes meanwhile is missed.
        self._gate.acquire(timeout=-1 if next_s == math.inf else max(0.0, next_s - time.monotonic()))

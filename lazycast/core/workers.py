"""The threads that run user code: a pool for materializers, one thread for callbacks.

Guarantees:

* Of what waits, what has the highest priority runs first, and of that what came first.
* Threads start on first use, are daemons, and end with `stop`; a materializer that never returns cannot keep the
  interpreter from exiting (a `ThreadPoolExecutor` would).
* What is submitted runs: where no thread can be started any more (interpreter exit), in the submitting thread.
* While user code of an object runs, `inside` knows; a blocking call on that object is refused instead of waiting for
  itself.
"""

from __future__ import annotations

import functools
import heapq
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lazycast.here import end_forked, here, own_thread
from lazycast.tracebacks import forget_frames, left, log

logger = logging.getLogger("lazycast")

P = ParamSpec("P")
T = TypeVar("T")

Task = Callable[[], object]


def unforked(fn: Callable[P, T]) -> Callable[P, T]:
    """Wrap what runs user code without `call_out`: a process that it has forked is ended where it would return."""

    @functools.wraps(fn)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        pid, main = os.getpid(), here.main  # before a fork, which makes any thread the main one
        try:
            return fn(*args, **kwargs)
        finally:
            if os.getpid() != pid and not main:
                end_forked(pid, sys.exc_info()[1])

    return guarded


class inside:  # a class, since a generator made into a context takes 2 µs longer, and every cast passes here
    """Mark this thread as running user code (`role`: "materializer", "callback") on behalf of `owner`."""

    __slots__ = ("_mark",)

    def __init__(self, owner: object, role: str) -> None:
        self._mark = owner, role

    def __enter__(self) -> None:
        here.roles.append(self._mark)

    def __exit__(self, *_: object) -> None:
        here.roles.pop()


def role_of(owner: object) -> str | None:
    """Return the role in which this thread runs user code for `owner`, or None."""
    for marked, role in reversed(here.roles):
        if marked is owner:
            return role
    return None


class Workers:
    """Up to `threads` daemon threads with one queue. Thread-safe."""

    def __init__(self, threads: int, name: str) -> None:
        self._limit = threads
        self._name = name
        self._tasks: list[tuple[int, int, Task]] = []  # a heap: (-priority, number, task)
        self._submitted = 0
        #: For each task that waits, one True: whoever takes it takes the first task. Then False for each thread.
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        self._stopped = False

    def submit(self, task: Task, priority: int = 0) -> None:
        """Run `task`, which must not raise, on a worker."""
        with self._lock:
            self._under_way += 1
            if self._under_way > len(self._threads) and len(self._threads) < self._limit and not self._stopped:
                self._start_one()
            if self._threads and not self._stopped:
                self._submitted += 1
                heapq.heappush(self._tasks, (-priority, self._submitted, task))
                self._turns.put(True)
                return
        self._run(task)

    def state(self) -> str:
        """Return a line for a dump. Takes no lock."""
        lives = sum(thread.is_alive() for thread in list(self._threads))
        return f"{self._name}: {lives} of {self._limit} threads, {self._under_way} tasks, {len(self._tasks)} queued"

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is exiting: the threads there are must do, or the caller's
            return
        self._threads.append(thread)

    def _run(self, task: Task) -> None:
        try:
            task()
        except BaseException as exc:  # SystemExit too: whoever calls sys.exit() in a callback does not mean this thread
            log(logger, "lazycast: a worker's task raised", exc)
        finally:
            with self._lock:
                self._under_way -= 1

    def _work(self) -> None:
        own_thread()
        while self._turns.get():
            with self._lock:
                task = heapq.heappop(self._tasks)[2]
            self._run(task)
            del task  # what it holds must not live until the next one comes
            if left.frames:
                forget_frames()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the threads after what is queued; wait for them up to `timeout_s`."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            threads = list(self._threads)
        for _ in threads:
            self._turns.put(False)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout_s)

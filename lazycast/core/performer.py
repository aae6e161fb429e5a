"""Runs user code for an object: on its own threads or a given executor. What user code raises comes back as data.

Guarantees: every part that is handed in is followed by its `done`, once, also if the executor drops it.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from lazycast.core import failures
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.workers import Workers
from lazycast.here import call_out, here
from lazycast.materialize.cores import Cores, together
from lazycast.materialize.each import place_of_failure
from lazycast.materialize.materializers import name_of
from lazycast.net.wire import Failure, FailureKind
from lazycast.tracebacks import forget_frames, forget_our_locals

if TYPE_CHECKING:
    from lazycast.core.helpers.pool import Pool

COROUTINE = "it returned a coroutine, which nobody awaits; return the value: asyncio.run() gives it"
_SHOWN_HOLDERS = 3


class Group(NamedTuple):
    """Who is who, as found at construction."""

    rank: int
    size: int
    root: int
    hosts: Sequence[str]
    cores: Sequence[Cores]
    clocks: Sequence[str] = ()  # ranks with the same have the same monotonic clock
    same_program: bool = False  # whether all run one: see `lazycast.codec.script`
    ident: str = ""  # of the object, the same on all its ranks, and no other object's

    def clock_of(self, rank: int) -> str:
        """Name the clock of a rank."""
        return self.clocks[rank] if self.clocks else ""


class Result(msgspec.Struct, frozen=True):
    """How a cast ended on this rank. `cause` is the original exception, where it happened."""

    value: Any = None
    failure: Failure | None = None
    cause: BaseException | None = None


def pool_threads(group: Group) -> int:
    """Return how many materializers may run at once on this rank: its share of the cores it may use."""
    beside = [rank for rank, host in enumerate(group.hosts) if host == group.hosts[group.rank]]
    return max(1, int(together([group.cores[rank] for rank in beside])) // len(beside))


class _Once:
    """A task for a given executor, whose threads keep what they have run; it is let go of as it is run."""

    __slots__ = ("_task", "started")

    def __init__(self, task: Callable[[], None]) -> None:
        self._task: Callable[[], None] | None = task
        self.started = False

    def __call__(self) -> None:
        self.started = True
        task, self._task = self._task, None
        assert task is not None, "an executor runs what it is given once"
        with Uninterrupted():  # unlike our own threads, this one may be interrupted, and is not always at our work
            task()
        del task
        forget_frames()


class Performer:
    """See the module's text. Thread-safe."""

    def __init__(self, owner: object, group: Group, executor: concurrent.futures.Executor | None, name: str) -> None:
        self._owner = owner
        self._group = group
        self._executor = executor
        self._workers = Workers(pool_threads(group), name)
        self._light = Workers(1, f"{name}-light")
        self._apart = Workers(1, f"{name}-apart")
        self._pool: Pool | None = None
        self._helped = self._workers
        self._waiting: set[int] = set()  # casts whose part no worker has begun
        self._running: dict[int, tuple[int, float]] = {}  # by thread: the cast that it works on, since when

    def use(self, pool: Pool, name: str) -> None:
        """Have parts that are `helped` run beside the others, as many at a time as there are helpers."""
        self._pool, self._helped = pool, Workers(pool.count, f"{name}-helped")

    def failure(self, kind: FailureKind, what: str, exc: BaseException) -> Failure:
        """Put an exception of this rank into the form that travels."""
        rank = self._group.rank
        failure = failures.from_exception(kind, what, exc, rank=rank, host=self._group.hosts[rank])
        forget_our_locals(exc)
        return failure

    def materialize(self, fn: Callable[..., Any], *args: object) -> Result:
        """Call a materializer, or a stage of one, in this thread and a context of its own."""
        try:
            value = call_out(contextvars.Context().run, fn, *args)
            if isinstance(value, CoroutineType):
                value.close()
                raise TypeError(COROUTINE)
            return Result(value)
        except BaseException as exc:  # KeyboardInterrupt and SystemExit too: every rank must learn of it
            what = f"materializer {name_of(fn)!r} raised{place_of_failure()}"
            return Result(failure=self.failure("materialize", what, exc), cause=exc)

    def run(
        self,
        part: Callable[[], Result],
        done: Callable[[Result], None],
        *,
        here: bool = False,
        light: bool = False,
        helped: bool = False,
        splits: bool = False,
        seq: int = 0,
        priority: int = 0,
        unwanted: Callable[[], bool] | None = None,
    ) -> None:
        """Run `part`, which runs user code, and then `done`, on a worker; or here if it is small.

        What is `light` does not wait for workers that materialize, nor what only `splits` a payload, which others that
        are light do not wait for; what is `helped` waits for a helper. `seq` is the number of the cast, and `unwanted`
        says whether anybody still waits for it. A given executor keeps an order of its own, whatever the `priority`.
        """
        if here:
            with Uninterrupted():
                self._do(part, done, unwanted)
            return
        task = functools.partial(self._work_on, seq, part, done, unwanted)
        self._waiting.add(seq)
        if helped:
            self._helped.submit(task, priority)
        elif self._executor is None:
            workers = self._light if light else self._apart if splits else self._workers
            workers.submit(task, priority)
        else:
            self._submit(self._executor, task, done, seq)

    def _work_on(
        self,
        seq: int,
        part: Callable[[], Result],
        done: Callable[[Result], None],
        unwanted: Callable[[], bool] | None,
    ) -> None:
        me = threading.get_ident()
        self._waiting.discard(seq)
        outer = self._running.get(me)  # of an executor that runs what it is given at once, in the middle of another
        self._running[me] = seq, time.monotonic()
        try:
            self._do(part, done, unwanted)
        finally:
            if outer is None:
                del self._running[me]
            else:
                self._running[me] = outer

    def holders(self, seq: int | None = None) -> str:
        """Say which casts hold the workers that others, or the cast with this number, wait for; nothing if none does.

        Takes no lock.
        """
        if not self._waiting or (seq is not None and seq not in self._waiting):
            return ""
        now_s = time.monotonic()
        running = list(self._running.values())  # in one step: workers come and go meanwhile
        running.sort(key=lambda held: held[1])
        shown = ", ".join(f"cast #{number} for {now_s - since_s:.1f} s" for number, since_s in running[:_SHOWN_HOLDERS])
        return f"a worker of rank {self._group.rank}, held by {shown}" if shown else ""

    def _do(
        self, part: Callable[[], Result], done: Callable[[Result], None], unwanted: Callable[[], bool] | None
    ) -> None:
        outer, here.unwanted = here.unwanted, unwanted
        here.roles.append((self._owner, "materializer"))  # as `inside` does
        try:
            result = part()
        except BaseException as exc:  # a defect: what user code raises is in the result
            result = Result(failure=self.failure("materialize", "lazycast itself failed", exc), cause=exc)
        finally:
            here.unwanted = outer
            here.roles.pop()
        done(result)

    def _submit(
        self,
        executor: concurrent.futures.Executor,
        task: Callable[[], None],
        done: Callable[[Result], None],
        seq: int,
    ) -> None:
        once = _Once(task)
        del task

        def refused(exc: BaseException) -> None:
            self._waiting.discard(seq)
            failure = self.failure("materialize", "the given executor did not run the materializer", exc)
            done(Result(failure=failure, cause=exc))

        def check(future: concurrent.futures.Future[None]) -> None:
            if not once.started:
                cancelled = RuntimeError("cancelled by the executor")
                refused(cancelled if future.cancelled() else future.exception() or cancelled)

        try:
            future = executor.submit(once)
        except Exception as exc:  # it was shut down, or is no good
            refused(exc)
        else:
            future.add_done_callback(check)

    def state(self) -> list[str]:
        """Return lines for a dump."""
        given = [f"materializers run on {self._executor!r}"] if self._executor is not None else []
        if held := self.holders():
            given.append(f"{len(self._waiting)} casts wait for {held}")
        helped = [self._helped.state()] if self._pool is not None else []
        return [*given, self._workers.state(), self._light.state(), self._apart.state(), *helped]

    def close_after_fork(self) -> None:
        """In a forked child: the helpers are its parent's."""
        if self._pool is not None:
            self._pool.close_after_fork()

    def stop(self) -> None:
        """End the threads, and the helpers first. A given executor stays the user's."""
        if self._pool is not None:
            self._pool.stop()
            self._helped.stop()
        self._workers.stop()
        self._light.stop()
        self._apart.stop()

"""Runs user code for an object: on its own threads or a given executor. What user code raises comes back as data.

Guarantees: every part that is handed in is followed by its `done`, once, also if the executor drops it.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lazycast import failures
from lazycast.cores import Cores, together
from lazycast.engine.interrupts import Uninterrupted
from lazycast.engine.workers import Workers, inside
from lazycast.here import call_out
from lazycast.materializers import name_of
from lazycast.wire import Failure, FailureKind


class Group(NamedTuple):
    """Who is who, as found at construction."""

    rank: int
    size: int
    root: int
    hosts: Sequence[str]
    cores: Sequence[Cores]
    clocks: Sequence[str] = ()  # ranks with the same have the same monotonic clock
    ident: str = ""  # of the object, the same on all its ranks, and no other object's

    def clock_of(self, rank: int) -> str:
        """Name the clock of a rank."""
        return self.clocks[rank] if self.clocks else ""


class Result(NamedTuple):
    """How a cast ended on this rank. `cause` is the original exception, where it happened."""

    value: Any = None
    failure: Failure | None = None
    cause: BaseException | None = None


def pool_threads(group: Group) -> int:
    """Return how many materializers may run at once on this rank: its share of the cores it may use."""
    beside = [rank for rank, host in enumerate(group.hosts) if host == group.hosts[group.rank]]
    return max(1, int(together([group.cores[rank] for rank in beside])) // len(beside))


class Performer:
    """See the module's text. Thread-safe."""

    def __init__(self, owner: object, group: Group, executor: concurrent.futures.Executor | None, name: str) -> None:
        self._owner = owner
        self._group = group
        self._executor = executor
        self._workers = Workers(pool_threads(group), name)
        self._light = Workers(1, f"{name}-light")

    def failure(self, kind: FailureKind, what: str, exc: BaseException) -> Failure:
        """Put an exception of this rank into the form that travels."""
        rank = self._group.rank
        return failures.from_exception(kind, what, exc, rank=rank, host=self._group.hosts[rank])

    def materialize(self, fn: Callable[..., Any], *args: object) -> Result:
        """Call a materializer, or a stage of one, in this thread."""
        try:
            return Result(call_out(fn, *args))
        except BaseException as exc:  # KeyboardInterrupt and SystemExit too: every rank must learn of it
            return Result(failure=self.failure("materialize", f"materializer {name_of(fn)!r} raised", exc), cause=exc)

    def run(
        self,
        part: Callable[[], Result],
        done: Callable[[Result], None],
        *,
        here: bool = False,
        light: bool = False,
    ) -> None:
        """Run `part`, which runs user code, and then `done`, on a worker; or here if it is small.

        What is `light` does not wait for workers that materialize.
        """

        if here:
            self._do(part, done)
        elif self._executor is None:
            (self._light if light else self._workers).submit(functools.partial(self._do, part, done))
        else:
            self._submit(self._executor, functools.partial(self._do, part, done), done)

    def _do(self, part: Callable[[], Result], done: Callable[[Result], None]) -> None:
        with Uninterrupted():  # in a thread of a given executor, or of a caller
            try:
                with inside(self._owner, "materializer"):
                    result = part()
            except BaseException as exc:  # a defect: what user code raises is in the result
                result = Result(failure=self.failure("materialize", "lazycast itself failed", exc), cause=exc)
            done(result)

    def _submit(
        self, executor: concurrent.futures.Executor, task: Callable[[], None], done: Callable[[Result], None]
    ) -> None:
        started = False

        def tracked() -> None:
            nonlocal started
            started = True
            task()

        def refused(exc: BaseException) -> None:
            failure = self.failure("materialize", "the given executor did not run the materializer", exc)
            done(Result(failure=failure, cause=exc))

        def check(future: concurrent.futures.Future[None]) -> None:
            if not started:
                cancelled = RuntimeError("cancelled by the executor")
                refused(cancelled if future.cancelled() else future.exception() or cancelled)

        try:
            future = executor.submit(tracked)
        except Exception as exc:  # it was shut down, or is no good
            refused(exc)
        else:
            future.add_done_callback(check)

    def state(self) -> list[str]:
        """Return lines for a dump."""
        given = [f"materializers run on {self._executor!r}"] if self._executor is not None else []
        return [*given, self._workers.state(), self._light.state()]

    def stop(self) -> None:
        """End the threads. A given executor stays the user's."""
        self._workers.stop()
        self._light.stop()

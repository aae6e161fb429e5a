"""Ways that start processes of their own: rank 0 is their client, and a worker takes the place of each other rank.

Workers are warm before anything is timed. They note when they hold the value, have read it, have overwritten it, by the
clock that all processes of a machine share, so the way back of their answers is no part of a time. What these systems
hand out is shared, or theirs to hand out again, and must not be changed; so whoever overwrites a value copies it first.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from typing import Any

from lazycast.start import discovery
from lazycast.tools.bench.payloads import SOURCES, Source
from lazycast.tools.bench.touch import difference, mark, overwrite, use
from lazycast.tools.bench.ways.base import Done, Way


class Holder:
    """What a worker does in place of a rank.

    Args:
        rank: whose place it takes.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._source: Source | None = None
        self._value: Any = None

    def prepare(self, kind: str, nbytes: int) -> None:
        """Get ready for payloads of this kind and size."""
        self._source = SOURCES[kind](nbytes)

    def take(self, value: Any, column: str, number: int) -> int:
        """Hold a value, and do with it what the column says; return when that was done (CLOCK_MONOTONIC)."""
        self._value = value = copy.deepcopy(value) if column == "overwritten" else value
        use(value, column, mark(number, self._rank))
        return time.monotonic_ns()

    def wrong(self, column: str, number: int) -> str | None:
        """Say what is wrong with the value that it holds, and hold it no longer."""
        if self._source is None:
            raise RuntimeError("asked before it was prepared")
        value, self._value = self._value, None
        expected = self._source.at(number)
        if column == "overwritten":
            expected = overwrite(expected, mark(number, self._rank))
        found = difference(expected, value)
        return found and f" of worker {self._rank}{found}"


class Store(Way):
    """A way with workers of its own, each with a `Holder`."""

    backend = "local"
    root_only = True

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        if rank == 0:
            self._start(discovery.resolve("auto").size - 1)

    def prepare(self, source: Source) -> None:
        if self.rank == 0:
            self._ask("prepare", source.kind, source.nbytes)

    def run(self, payload: Any) -> Any:
        return self.turn(payload, "holds", 0).value

    def turn(self, payload: Any, column: str, number: int) -> Done:
        if self.rank != 0:
            return Done(None, time.monotonic_ns())
        pending = self._send(payload, column, number)
        use(payload, column, mark(number, 0))  # as roots do
        end_ns = time.monotonic_ns()
        return Done(payload, max(end_ns, *self._results(pending)))

    def elsewhere(self, column: str, number: int) -> str | None:
        return next((said for said in self._ask("wrong", column, number) if said), None)

    @abstractmethod
    def _start(self, workers: int) -> None:
        """Start the workers, on the root."""

    @abstractmethod
    def _send(self, payload: Any, column: str, number: int) -> Any:
        """Bring a payload to all workers, and have them `take` it; return what `_results` waits for."""

    @abstractmethod
    def _results(self, pending: Any) -> list[Any]:
        """Wait for what the workers return."""

    @abstractmethod
    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every holder, and return what they return."""

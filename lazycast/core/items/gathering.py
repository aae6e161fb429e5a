"""The parts of a cast that several make, as one rank sees them: plain data, no threads.

Guarantees:

* Of each part this rank hears once: by a `Value` of whoever makes it, or because it has made that itself.
* The first failure counts, and is known at once; what comes later only counts as heard.
* A rank's part of the cast ends once: `step` and `end` say so to one caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from lazycast.core.performer import Result
from lazycast.net.wire import Failure, Value

#: Parts for each helper: more of them, and whoever is done early finds something to do; fewer, and less is said.
PARTS_PER_HELPER = 2


class Step(Enum):
    """What is to be done next."""

    MAKE = "make the parts that are this rank's"
    END = "make the value, or fail"


class Gathering:
    """See the module's text. Not thread-safe.

    Args:
        makers: who makes each part, by its number.
    """

    def __init__(self, makers: Sequence[int], rank: int) -> None:
        self.makers = makers
        self._rank = rank
        self.todo = [part for part, maker in enumerate(makers) if maker == rank]
        self._left = {part for part, maker in enumerate(makers) if maker != rank}
        self.busy = 0
        self.lacks: str | None = None  # the code without which a part could not be made
        self.count: int | None = None  # of items, once a part was made
        self.made: dict[int, object] = {}  # by this rank
        self.heard: dict[int, tuple[Value, memoryview]] = {}
        self.failure: Failure | None = None  # of any part
        self.own: Result | None = None  # with which a part of this rank failed
        self.declined = False
        self._let_go = self._ended = False

    def take(self, message: Value, body: memoryview) -> bool:
        """Take what another rank has made. Returns whether it was that one's to make."""
        part = message.part
        if part >= len(self.makers) or self.makers[part] != message.rank or part not in self._left:
            return False
        self._left.discard(part)
        failure = message.failure
        if failure is not None:
            if failure.kind == "refused":
                self.declined = True
            elif self.failure is None:
                self.failure = failure
        elif not self._let_go:
            self.heard[part] = message, body
        return True

    def gone(self, rank: int, failure: Failure) -> bool:
        """A rank sends no more: what it was to make fails. Returns whether anything was."""
        mine = [part for part in self._left if self.makers[part] == rank]
        for part in mine:
            self.take(Value(rank, 0, failure=failure, part=part), memoryview(b""))
        return bool(mine)

    @property
    def awaits(self) -> bool:
        """Whether other ranks are still to be heard of."""
        return bool(self._left)

    @property
    def waits_for(self) -> tuple[int, ...]:
        """The ranks that are still to be heard of, once this one has made what is its own."""
        return () if self.todo or self.busy else tuple(sorted({self.makers[part] for part in self._left}))

    def done(self, part: int, result: Result) -> None:
        """Book a part that this rank was to make."""
        self.busy -= 1
        if result.failure is None:
            if not self._let_go:
                self.made[part] = result.value
        else:
            self.failed(result)

    def failed(self, result: Result) -> None:
        """Book that a part of this rank's has failed, before others hear of it: else two ranks could each end because
        the other has failed, and neither would say so of itself.
        """
        if self.own is None:
            self.own = result
            self.failure = self.failure or result.failure

    def step(self, *, over: bool, wanted: bool) -> Step | None:
        """Return what is to be done now, if anything.

        Args:
            over: the cast has failed, or must.
            wanted: whether anybody here may still want the value.
        """
        if self._ended or (self.busy and self.failure is None):
            return None
        if self.todo and self.failure is None:
            return Step.MAKE
        whole = not self._left and not self.declined
        if self.failure is None and not over and wanted and not whole:
            return None
        self._ended = True
        return Step.END

    @property
    def ended(self) -> bool:
        """Whether this rank's part has ended, or is about to."""
        return self._ended

    def reopen(self) -> None:
        """The value could not be made yet."""
        self._ended = False

    def end(self) -> bool:
        """The cast has failed: whoever gets True says that this rank's part has ended."""
        first, self._ended = not self._ended, True
        return first

    def take_todo(self) -> list[int]:
        """Return the parts that this rank is to make, and has not begun."""
        todo, self.todo = self.todo, []
        return todo

    def let_go(self) -> None:
        """Let go of memory that is not needed any more."""
        self._let_go = True
        self.heard, self.made = {}, {}

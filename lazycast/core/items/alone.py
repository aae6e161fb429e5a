"""Parts of a value that helpers make for a rank that is alone: no others have to be told.

Guarantees: whoever waits for the parts works on them meanwhile, so they are made also if nobody else comes. After the
first failure no part is begun. What was made, and what went wrong, is kept alive by whoever gets it alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Crew:
    """Several threads that make the parts of one value. Thread-safe.

    Args:
        make: makes the part with a number; it also gets what says whether another part has failed. Blocking.
    """

    def __init__(self, parts: int, make: Callable[[int, Callable[[], bool]], Any]) -> None:
        self._todo = deque(range(parts))
        self._make = make
        self._made: list[Any] = [None] * parts
        self._busy = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def _has_failed(self) -> bool:
        return self._failure is not None

    def help(self) -> None:
        """Make parts as long as there are any that nobody makes. What goes wrong is raised by `work`."""
        while (part := self._take()) is not None:
            try:
                self._made[part] = self._make(part, self._has_failed)
            except BaseException as exc:  # it is the caller's of `work`
                with self._changed:
                    self._todo.clear()
                    if self._failure is None:
                        self._failure = exc
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            if not self._todo:
                return None
            self._busy += 1
            return self._todo.popleft()

    def work(self) -> list[Any]:
        """Make parts, and return all of them. Blocking: until those that others make are there, too."""
        self.help()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            made, self._made = self._made, []
            failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it leads to its traceback, and that to this frame: it would lead back to it
        return made

"""Parts of a value that helpers make for a rank that is alone: no others have to be told.

Guarantees: whoever waits for the parts works on them meanwhile, so they are made also if nobody else comes. After the
first failure no part is begun.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Crew:
    """Several threads that make the parts of one value. Thread-safe.

    Args:
        make: makes the part with a number. Blocking.
    """

    def __init__(self, parts: int, make: Callable[[int], Any]) -> None:
        self._todo = deque(range(parts))
        self._make = make
        self._made: list[Any] = [None] * parts
        self._busy = 0
        self._changed = threading.Condition()
        self.failure: BaseException | None = None

    def help(self) -> None:
        """Make parts as long as there are any that nobody makes. What goes wrong is raised by `work`."""
        while (part := self._take()) is not None:
            try:
                self._made[part] = self._make(part)
            except BaseException as exc:  # it is the caller's of `work`
                self.failure = self.failure or exc
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            if self.failure is not None or not self._todo:
                return None
            self._busy += 1
            return self._todo.popleft()

    def work(self) -> list[Any]:
        """Make parts, and return all of them. Blocking: until those that others make are there, too."""
        self.help()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
        if self.failure is not None:
            raise self.failure
        return self._made

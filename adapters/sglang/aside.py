"""What a scheduler has put aside while its inputs are made: plain data, and who may go on.

Guarantees:

* Ranks that put the same requests aside in the same order give them the same numbers. A number is never used again, so
  that it says which of two requests with one id is meant.
* The entry rank says what may go on as often as it is asked, until it has seen itself do it: what it said may have been
  dropped. Hearing it twice changes nothing.
* What is ready goes on, and waits for nothing that is not; what goes on at the same time does so in the order in which
  it was received.
* One thread, the scheduler's. Nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .features import Unopened


@dataclass(frozen=True)
class Admission:
    """What the entry rank says to all: these have their inputs everywhere, and those never will.

    Attributes:
        ready: numbers, in the order of receipt.
        failed: what to tell the client, by number.
        rids: whose numbers these are.
    """

    ready: tuple[int, ...] = ()
    failed: dict[int, str] = field(default_factory=dict)
    rids: dict[int, str] = field(default_factory=dict)


class DivergedError(RuntimeError):
    """Ranks have put different requests aside: what they have in common from now on is chance."""


@dataclass(frozen=True)
class Kept:
    """One request that is aside. `unopened`: its features that came in shared memory."""

    number: int
    request: Any
    raw: Any
    future: Future[Any]
    unopened: Sequence[Unopened]
    since_s: float = field(default_factory=time.monotonic)


class Aside:
    """The requests that this rank has put aside."""

    def __init__(self) -> None:
        self._last = 0  # the number given last
        self._kept: dict[int, Kept] = {}  # in the order of receipt

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, request: Any, raw: Any, future: Future[Any], unopened: Sequence[Unopened] = ()) -> None:
        """Put a request aside."""
        self._last += 1
        kept = Kept(self._last, request, raw, future, unopened)
        self._kept[kept.number] = kept

    def decided(self) -> Admission | None:
        """Return what the entry rank has to say, by its own futures, or None."""
        done = [kept for kept in self._kept.values() if kept.future.done()]
        if not done:
            return None
        failed = {kept.number: text for kept in done if (text := _failure(kept.future)) is not None}
        ready = tuple(kept.number for kept in done if kept.number not in failed)
        return Admission(ready, failed, {kept.number: str(kept.request.rid) for kept in done})

    def take(self, admission: Admission) -> list[tuple[Kept, str | None]]:
        """Return what goes on now, with what has failed, in the order of receipt. It is no longer aside.

        Raises: DivergedError for a number that means another request here, or none yet.
        """
        for number, rid in admission.rids.items():
            kept = self._kept.get(number)
            here = (
                "no request" if number > self._last else f"request {kept.request.rid!r}" if kept is not None else None
            )
            if here is not None and here != f"request {rid!r}":
                raise DivergedError(
                    f"lazycast: ranks have put different requests aside: the entry rank's number {number} is {rid!r}, "
                    f"and {here} here. Do all have the same environment and releases? Restart the server."
                )
        numbers = sorted({*admission.ready, *admission.failed} & self._kept.keys())
        return [(self._kept.pop(number), admission.failed.get(number)) for number in numbers]

    def withdraw(self, rid: str, *, every: bool) -> list[Kept]:
        """Return the requests whose id begins so, or all. They are no longer aside."""
        found = [kept for kept in self._kept.values() if every or str(kept.request.rid).startswith(rid)]
        for kept in found:
            del self._kept[kept.number]
        return found

    def older_than(self, limit_s: float) -> list[Kept]:
        """Return what has been aside for longer than `limit_s`."""
        before_s = time.monotonic() - limit_s
        return [kept for kept in self._kept.values() if kept.since_s < before_s]


def _failure(future: Future[Any]) -> str | None:
    if future.cancelled():
        return "the request's inputs were withdrawn"
    exc = future.exception()
    return None if exc is None else str(exc) or type(exc).__name__

"""What there is to see of one root's casts on one rank: plain data, put together by `looks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazycast.core.dump import Row
from lazycast.core.memo.store import NOTHING, Remembered
from lazycast.materialize.placement.chooser import Standing
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import Stats


@dataclass(frozen=True)
class Seen:
    """What is looked at without the lock: it may take locks of its own."""

    hosts: tuple[tuple[int, ...], ...]
    placement: tuple[str, str]  # how the last cast was placed, and why
    shared: tuple[int, int, int] = (0, 0, 0)  # slots and bytes of shared memory that somebody holds, and all taken
    remembered: Remembered = NOTHING


@dataclass(frozen=True)
class Counted:
    """What is looked at with the lock held."""

    unasked: int = 0  # casts that nobody here has asked for
    loaded: tuple[int, int] = (0, 0)  # how often a materializer was loaded already, and had to be
    nbytes: tuple[int, int, int] = (0, 0, 0)  # sent to other hosts, received from anybody, received from this host
    standings: tuple[Standing, ...] = ()  # how each kind of cast is placed now, where that is chosen
    group: Callable[[Stats], GroupStats] | None = None  # what is known of all ranks; with the lock held


def _nothing() -> list[Row]:
    return []


@dataclass(frozen=True)
class Rows:
    """Lines of a dump. None of these takes the lock, changes anything, or goes through what may change meanwhile."""

    placement: tuple[str, str]  # as in `Seen`
    nbytes: tuple[int, int, int] = (0, 0, 0)  # as in `Counted`
    ended: str | None = None  # why nothing more can come, once that is so
    queue: Callable[[], Sequence[Row]] = _nothing  # calls that have not been sent
    books: Callable[[], Sequence[Row]] = _nothing  # what the other ranks have not read, or reported
    mailbox: Callable[[], Sequence[Row]] = _nothing  # casts and calls that have not met
    casts: Callable[[], Sequence[Row]] = _nothing  # what is under way here, beside what somebody has asked for
    leases: Callable[[], Sequence[Row] | None] = _nothing  # who holds what of shared memory; None: not just now
    links: Callable[[], Sequence[Row]] = _nothing  # who was heard when, and what waits to be sent
    memo: Callable[[], Sequence[Row]] | None = None  # what is remembered

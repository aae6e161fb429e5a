"""Casts between real ranks, processes of this machine whose hosts are labels: what the simulation predicts."""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass

import lazycast
from lazycast.core.root import RootLane
from lazycast.net.wire import AnyMessage, Report

REST_S = 0.02
TIMEOUT_S = 120


@dataclass(frozen=True)
class Seen:
    """What one rank saw; times in seconds by the machine's monotonic clock, by cast.

    Attributes:
        begun_s: when the call was made, `valued_s` when this rank had made its value, `told_s` when the call returned.
        reports: of other ranks, that came to this one, of all casts.
    """

    begun_s: list[float]
    valued_s: list[float]
    told_s: list[float]
    reports: int


class Reports:
    """Counts the reports of other ranks that come to this one, of all objects made after it."""

    def __init__(self) -> None:
        self.count = 0
        lock, take = threading.Lock(), RootLane.on_message

        def counted(lane: RootLane, message: AnyMessage, body: memoryview) -> None:
            if isinstance(message, Report) and message.rank != 0:
                with lock:
                    self.count += 1
            take(lane, message, body)

        RootLane.on_message = counted  # type: ignore[method-assign]


def on_host(per_host: int) -> None:
    """Give this rank the label of its host, of so many ranks each."""
    os.environ["LAZYCAST_HOST"] = f"h{int(os.environ['LAZYCAST_RANK']) // per_host}"


def cast(per_host: int, casts: int) -> Seen:
    """Cast 1 KiB after a rest, again and again: what every rank runs."""
    on_host(per_host)
    got = Reports()
    before = 0
    begun_s, valued_s, told_s = [], [], []
    with lazycast.LazyBroadcast(made, placement="every", agree=True) as lazy:
        for seq in range(casts + 1):
            if lazy.is_root:
                time.sleep(REST_S)  # all others have asked meanwhile
            begun = time.monotonic()
            value_s = lazy.broadcast(bytes(1024) if lazy.is_root else None)
            told = time.monotonic()
            if seq == 0:  # in which code and connections are new
                before = got.count
                continue
            begun_s.append(begun)
            valued_s.append(value_s)
            told_s.append(told)
        reports = got.count - before
    return Seen(begun_s, valued_s, told_s, reports)


def made(_payload: bytes) -> float:
    """Say when this rank made its value."""
    return time.monotonic()


def measure(ranks: int, per_host: int, casts: int) -> dict[str, float]:
    """Return medians over casts of the seconds until the last rank had its value, and its verdict; reports per cast.

    Raises:
        LaunchError: a rank raised or died.
        CastTimeoutError: the ranks took longer than `TIMEOUT_S`.
    """
    seen: list[Seen] = lazycast.launch(cast, ranks=ranks, backend="local", args=(per_host, casts), timeout_s=TIMEOUT_S)
    root = seen[0]

    def median_s(ends_s: list[list[float]]) -> float:
        last_s = [max(of_ranks) for of_ranks in zip(*ends_s, strict=True)]
        return statistics.median(last - begun for last, begun in zip(last_s, root.begun_s, strict=True))

    return {
        "value_s": median_s([rank.valued_s for rank in seen]),
        "verdict_s": median_s([rank.told_s for rank in seen]),
        "reports": root.reports / casts,
    }

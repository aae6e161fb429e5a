"""What a rank brings back from a run: plain data, put together by `summary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lazycast.materialize.placement.chooser import Standing
from lazycast.tools.bench.qps.materializers import Work

Moments = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Turn:
    """One way for so many requests, on one rank.

    Attributes:
        begin_ns: when it began (CLOCK_MONOTONIC, which all processes of a machine share).
        schedule_s: when requests arrived, after that; None in a closed loop.
        window: how many were outstanding at most.
        done_ns: when this rank had the value of each request.
        blocked_s: time its main thread spent in the calls that start requests; of it, in the peers' collectives.
        cpu_s: processor time of this process, all threads, from the start until the last rank was done.
        work: its materializers.
        counted: what `LazyBroadcast.stats()` has timed meanwhile, by name: how often and for how long (seconds).
    """

    begin_ns: int
    schedule_s: Sequence[float] | None
    window: int
    done_ns: Moments
    blocked_s: float
    collective_s: float
    cpu_s: float
    work: Work
    counted: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Beside:
    """A scheduler that never rests, on one rank, for a while; beside a way, or with nothing beside it.

    Attributes:
        steps, seconds: how many it made in which time.
        main_cpu_s: its own processor time, without that of starting requests.
        other_cpu_s: all other processor time of the process.
    """

    steps: int
    seconds: float
    main_cpu_s: float
    other_cpu_s: float


@dataclass
class Cell:
    """One way under one workload, on one rank.

    Attributes:
        unavailable: why there is no such way here, if there is none.
        turns: of each round. alone: of single requests, some in each round.
        chosen: what the root has come to choose, and what it has tried, where it chooses.
        quiet, beside: the scheduler without the way, and, at once after it, beside the way.
    """

    workload: str
    way: str
    unavailable: str | None = None
    turns: list[Turn] = field(default_factory=list)
    alone: list[Turn] = field(default_factory=list)
    quiet: list[Beside] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)
    chosen: list[Standing] = field(default_factory=list)


@dataclass
class Workbench:
    """One workload on one rank. `yardstick`: materializing call by call, on as many ranks as there are cores."""

    name: str
    window: int
    rate: float = 0.0  # of requests beside the scheduler
    yardstick: list[Work] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

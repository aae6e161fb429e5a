"""What the page needs of a run, as validated records. The tables are made from its JSON as it was, kept beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

#: Times that are drawn on logarithmic axes and divided by.
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Rate = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Machine(msgspec.Struct):
    cpu: str | None
    cores: Count
    memory_gib: float
    kernel: str
    load_before: float


class Plan(msgspec.Struct):
    """What all benchmarks on ranks of one backend have."""

    backend: str
    ranks: Count


class Result(msgspec.Struct):
    """One way at one size, with one thing done to the value."""

    kind: str
    nbytes: Count
    way: str
    column: str
    count: Count
    p10_s: Seconds
    median_s: Seconds
    p90_s: Seconds


class Need(msgspec.Struct):
    """The private memory of one way, and the shared memory of all ranks."""

    kind: str
    nbytes: Count
    way: str
    column: str
    root_nbytes: int
    others_nbytes: int
    shared_nbytes: int


class Blocked(msgspec.Struct):
    nbytes: Count
    count: Count
    p10_s: Seconds
    median_s: Seconds
    p90_s: Seconds


class Figures(msgspec.Struct):
    idle_cpu_fraction: list[float] | None = None
    idle_threads_fraction: list[float] | None = None
    async_blocked: Blocked | None = None


class TimesRun(msgspec.Struct):
    """A run of `lazycast bench`."""

    format: int
    date: str
    machine: Machine
    plan: Plan
    versions: dict[str, str]
    results: list[Result]
    figures: Figures
    memory: list[Need] = []
    absent: dict[str, str] = {}
    command: str | None = None


class Round(msgspec.Struct):
    qps: Rate
    p50_s: Seconds
    p99_s: Seconds


class Chosen(msgspec.Struct):
    placement: str
    reason: str
    casts: dict[str, int]


class Slowdown(msgspec.Struct):
    steps_per_s_without: float
    steps_per_s: float
    lost: float
    cpu_cores: float
    cpu_share: float
    beyond: float


class Way(msgspec.Struct):
    """One way under one workload."""

    way: str
    known: bool
    qps: Rate
    of_ideal: Share
    p50_s: Seconds
    p99_s: Seconds
    alone_s: Share
    broadcast_s: Share
    blocked_s: Annotated[list[float], msgspec.Meta(min_length=1)]
    cpu_s: Annotated[list[float], msgspec.Meta(min_length=1)]
    cpu_in_materializations: Share
    materialize_s: list[float]
    materialized: list[float]
    chosen: list[Chosen]
    rounds: Annotated[list[Round], msgspec.Meta(min_length=1)]
    qps_against: dict[str, float]
    slowdown: Slowdown | None = None


class Absent(msgspec.Struct):
    """A way that there is not, and why."""

    way: str
    unavailable: str


class _Workload(msgspec.Struct):
    workload: str
    about: str
    window: Count
    yardstick_s: Seconds
    yardstick_cpu_s: Seconds
    ideal_qps: Rate
    slowdown_rate: float
    ways: list[dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """One workload of a run, by way. `raw` is its JSON."""

    name: str
    about: str
    ideal_qps: float
    yardstick_cpu_s: float
    ways: dict[str, Way]
    absent: dict[str, str]
    raw: dict[str, Any]

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Workload:
        """Validate one. Raises: msgspec.ValidationError."""
        found = msgspec.convert(raw, _Workload)
        absent = [msgspec.convert(way, Absent) for way in found.ways if way.get("unavailable") is not None]
        there = [msgspec.convert(way, Way) for way in found.ways if way.get("unavailable") is None]
        return cls(
            found.workload,
            found.about,
            found.ideal_qps,
            found.yardstick_cpu_s,
            {way.way: way for way in there},
            {way.way: way.unavailable for way in absent},
            raw,
        )


class RequestsPlan(Plan):
    seconds: float
    rounds: Count
    concurrency: Count
    slowdown_s: float
    rate: float | None = None


class RequestsRun(msgspec.Struct):
    """A run of `lazycast bench qps`."""

    format: int
    date: str
    machine: Machine
    plan: RequestsPlan
    versions: dict[str, str]
    workloads: list[dict[str, Any]]
    command: str | None = None


class SglangPlan(msgspec.Struct):
    ranks: list[int]


class SglangWay(msgspec.Struct):
    call_s: Annotated[list[float], msgspec.Meta(min_length=2)]
    last_s: Seconds
    qps: Rate
    cpu_s: Share


class SglangCell(msgspec.Struct):
    ranks: int
    kind: str
    text: str
    ways: dict[str, SglangWay]


class SglangRun(msgspec.Struct):
    """A run of `lazycast bench sglang`."""

    format: int
    date: str
    machine: Machine
    plan: SglangPlan
    versions: dict[str, str]
    cells: list[SglangCell]
    command: str | None = None

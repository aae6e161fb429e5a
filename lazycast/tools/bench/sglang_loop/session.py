"""One run of the loop: starts a server for each way, measures in alternating rounds, and puts figures together."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from statistics import median
from typing import Any

from lazycast.errors import BackendUnavailableError
from lazycast.tools.bench import machine
from lazycast.tools.bench.sglang import without_gpu
from lazycast.tools.bench.sglang.session import recorded
from lazycast.tools.bench.sglang_loop import fleet as fleets
from lazycast.tools.bench.sglang_loop import gpu
from lazycast.tools.bench.sglang_loop.drive import Driver, Measured
from lazycast.tools.bench.sglang_loop.plan import FLAG, SIZES, WAYS, LoopPlan
from lazycast.tools.bench.sglang_loop.prompts import Prompts
from lazycast.tools.bench.sglang_loop.sending import senders
from lazycast.tools.bench.sglang_loop.stalls import Stalls

FORMAT = 1
RELEASE = "0.5.23"
RANKS = 2


@dataclass
class _Server:
    fleet: fleets.Fleet
    driver: Driver


def run(plan: LoopPlan, *, command: str | None = None) -> dict[str, Any]:
    """Measure what `plan` says; return all that is known of the run, as JSON has it.

    Raises:
        BackendUnavailableError: without SGLang 0.5.23.
        SchedulerEndedError: a scheduler has ended.
    Blocking: until all is measured. Threads: the main thread, since it sets a handler for SIGQUIT, which a scheduler
        that fails sends.
    """
    if find_spec("sglang") is None or without_gpu.release_text() != RELEASE:
        raise BackendUnavailableError(
            f"this benchmark runs SGLang {RELEASE}, which is not installed here; in a checkout, `python "
            f"tests/sglang/environment.py {RELEASE}` makes an environment with it, and prints its interpreter"
        )
    before = signal.signal(signal.SIGQUIT, lambda *_: None)
    try:
        with contextlib.ExitStack() as stack:
            servers = {way: _start(plan, way, stack) for way in plan.ways}
            cells = _measure(plan, servers, stack.enter_context(senders()))
    finally:
        signal.signal(signal.SIGQUIT, before)
    return described("sglang-loop", asdict(plan), cells, command)


def described(benchmark: str, plan: dict[str, Any], cells: list[dict[str, Any]], command: str | None) -> dict[str, Any]:
    """Return what was measured, with all that is known of the run."""
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "command": None if command is None else recorded(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": {**machine.versions("torch"), "sglang": without_gpu.release_text()},
        "plan": plan,
        "cells": cells,
    }


def _start(plan: LoopPlan, name: str, stack: contextlib.ExitStack) -> _Server:
    _say(f"starts: {name}")
    way = WAYS[name]
    fleets.load()
    board, stalls = gpu.Board(RANKS), Stalls(RANKS)

    def within(rank: int) -> None:
        gpu.install(board, rank)
        stalls.watch(rank)

    switches = [*([FLAG] if way.flag else []), *([] if plan.overlap else ["--disable-overlap-schedule"])]
    fleet = stack.enter_context(fleets.Fleet(switches, environment=way.environment, ranks=RANKS, within=within))
    driver = Driver(fleet, Prompts(), board, stalls, hashed=way.hashed)
    stack.callback(driver.close)
    fleet.freeze()
    return _Server(fleet, driver)


def _measure(plan: LoopPlan, servers: dict[str, _Server], send_with: Callable[[bool], None]) -> list[dict[str, Any]]:
    cells = []
    for size in plan.sizes:
        for load in plan.loads:
            rounds: dict[str, list[Measured]] = {way: [] for way in plan.ways}
            for turn in range(plan.rounds):
                first = turn % len(plan.ways)
                for way in [*plan.ways[first:], *plan.ways[:first]]:
                    _say(f"{size}, {load.text}: round {turn + 1} of {plan.rounds}, {way}")
                    server = servers[way]
                    send_with(WAYS[way].plugin)
                    server.fleet.thaw()
                    rounds[way].append(server.driver.run(SIZES[size], load, plan))
                    server.fleet.freeze()
            cells.append({"size": size, "load": load.text, "ways": {way: figures(rounds[way]) for way in plan.ways}})
    return cells


def figures(rounds: Sequence[Measured]) -> dict[str, Any]:
    """Return the median over rounds of what each has found, and the rates of all."""

    def over(figure: Callable[[Measured], float]) -> float:
        return median(figure(one) for one in rounds)

    return {
        "qps": over(lambda one: one.qps),
        "qps_of_rounds": [one.qps for one in rounds],
        "latency_p50_s": over(lambda one: quantile(one.latency_s, 0.5)),
        "latency_p99_s": over(lambda one: quantile(one.latency_s, 0.99)),
        "first_p50_s": over(lambda one: quantile(one.first_s, 0.5)),
        "gap_p99_s": over(lambda one: quantile(one.gap_s, 0.99)),
        "held_p50_s": over(lambda one: quantile(one.held_s, 0.5)),
        "held_each_s": over(lambda one: one.held_each_s),
        "idle": over(lambda one: one.idle),
        "cpu_s": over(lambda one: one.cpu_s),
    }


def quantile(numbers: Sequence[float], part: float) -> float:
    """Return the number below which a part of them lies; 0 of none."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

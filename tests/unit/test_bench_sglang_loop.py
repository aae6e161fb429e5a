"""The benchmark of SGLang's loop where SGLang is not installed: what it counts, and how it says so."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

import pytest

from lazycast.errors import BackendUnavailableError
from lazycast.tools.bench.sglang_loop import report, session
from lazycast.tools.bench.sglang_loop.drive import Measured
from lazycast.tools.bench.sglang_loop.plan import WAYS, Load, LoopPlan
from lazycast.tools.bench.sglang_loop.stalls import Stalls
from lazycast.tools.cli import bench_sglang_loop


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    bench_sglang_loop.add_arguments(parser)
    return parser.parse_args(words)


def test_what_can_be_chosen() -> None:
    found = parsed("--loads", "8,4/s,0.5/s", "--ways", "flag,deferred", "--sizes", "large")
    assert found.loads == (Load(outstanding=8), Load(per_s=4), Load(per_s=0.5))
    assert [load.text for load in found.loads] == ["8 outstanding", "4 a second", "0.5 a second"]
    assert found.ways == ("flag", "deferred")
    assert found.sizes == ("large",)


@pytest.mark.parametrize("words", [("--loads", "8/m"), ("--ways", "flags"), ("--sizes", "huge"), ("--loads", "0")])
def test_what_cannot(words: tuple[str, str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parsed(*words)


@pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")
def test_without_sglang_it_says_so() -> None:
    with pytest.raises(BackendUnavailableError, match="not installed here"):
        session.run(LoopPlan())


def test_quantiles() -> None:
    assert session.quantile([], 0.5) == 0.0
    assert session.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert session.quantile([float(n) for n in range(100)], 0.99) == 99.0


def test_figures_are_medians_over_rounds() -> None:
    rounds = [Measured(qps=qps, latency_s=[qps, 10 * qps], idle=0.1) for qps in (3.0, 1.0, 2.0)]
    found = session.figures(rounds)
    assert found["qps"] == 2.0
    assert found["qps_of_rounds"] == [3.0, 1.0, 2.0]
    assert found["latency_p50_s"] == 20.0
    assert found["idle"] == 0.1


class Loop:
    """A scheduler of which nothing but its requests counts."""

    def __init__(self, *received: list[Any]) -> None:
        self.received = list(received)


def test_calls_with_images_are_timed_and_no_others() -> None:
    class Request:
        def __init__(self, mm_inputs: object) -> None:
            self.mm_inputs = mm_inputs

    stalls = Stalls(2)
    timed = stalls._timed(lambda loop: loop.received.pop(0), 1)
    loop = Loop([], [Request(None)], [Request(1), Request(None)], [object()], [Request(2)])
    for _ in range(5):
        timed(loop)
    assert (stalls.count(0), stalls.count(1)) == (0, 2)
    assert len(stalls.since(1, 1)) == 1
    assert all(took_s > 0 for took_s in stalls.since(1, 0))


def test_the_tables_have_a_row_for_each_way() -> None:
    plan = LoopPlan(sizes=("large",), loads=(Load(outstanding=8),))
    ways = {name: session.figures([Measured(qps=12.34, idle=0.5)]) for name in WAYS}
    run = {
        "plan": {"sizes": plan.sizes, "overlap": True, "ways": plan.ways},
        "cells": [{"size": "large", "load": "8 outstanding", "ways": ways}],
    }
    ((title, rows),) = report.tables(run)
    assert title == "large: 2 images, 15.1 MB"
    assert [row[:3] for row in rows][:2] == [["8 outstanding", "itself", "12.3"], ["", "flag", "12.3"]]
    assert [row[1] for row in rows] == list(WAYS)
    assert all(len(row) == len(report.HEADINGS) for row in rows)

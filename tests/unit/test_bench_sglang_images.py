"""The benchmark of SGLang's image processor where SGLang is not installed: what it counts, and how it says so."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib.util import find_spec

import pytest

from lazycast.errors import BackendUnavailableError
from lazycast.tools.bench import machine
from lazycast.tools.bench.sglang_loop import images, images_report
from lazycast.tools.bench.sglang_loop.images import ImagesPlan, Round
from lazycast.tools.cli import bench_sglang_images


@pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")
def test_without_sglang_it_says_so() -> None:
    with pytest.raises(BackendUnavailableError, match=r"SGLang 0\.5\.23, which is not installed here"):
        images.run(ImagesPlan())


def test_what_can_be_chosen() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    bench_sglang_images.add_arguments(parser)
    found = parser.parse_args(["--rounds", "3", "--requests", "8"])
    assert (found.rounds, found.requests) == (3, 8)
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--rounds", "0"])


def test_figures_are_medians_over_rounds_and_people_can_read_them() -> None:
    rounds = [Round(rate, 1e-4, rate / 1000, 0.08) for rate in (30.0, 10.0, 20.0)]
    found = images.figures(rounds)
    assert (found["per_s"], found["late_p99_s"], found["per_s_of_rounds"]) == (20.0, 0.02, [30.0, 10.0, 20.0])
    run = {
        "date": "2026-01-01",
        "machine": machine.describe(),
        "versions": {"lazycast": "1", "sglang": "0.5.23"},
        "plan": asdict(ImagesPlan(ways=("threads", "helpers"))),
        "cells": [{"processor": "fast", "ways": {"threads": found, "helpers": found}}],
    }
    lines = images_report.markdown(run).splitlines()
    assert "| fast | threads | 20.0 | 10.0-30.0 | 100 µs | 20.0 ms | 80.0 ms |" in lines
    assert "|  | helpers | 20.0 | 10.0-30.0 | 100 µs | 20.0 ms | 80.0 ms |" in lines

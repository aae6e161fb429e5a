"""What tests cost: `make test PYTEST_ARGS=-ptests.weights` prints it by folder, by file, and of the heaviest tests.

First the processor time, of the test's process and of its children, which other programs hardly change; then the time
in all. What `-n`'s processes need to start and to collect is not in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from tests import warm

#: How many of the heaviest tests are listed.
HEAVIEST = 60
_START = pytest.StashKey["tuple[float, float]"]()
_WEIGHTS: dict[str, tuple[float, float]] = {}


def _spent() -> tuple[float, float]:
    """Processor time of this process, of its children, and of theirs that these have waited for; and the clock."""
    processor_s, ticks_s = sum(os.times()[:4]), 1 / os.sysconf("SC_CLK_TCK")
    for children in Path("/proc/self/task").glob("*/children"):
        pids: list[str] = []
        with contextlib.suppress(OSError):  # a thread may end meanwhile, or a child
            pids = children.read_text().split()
        for pid in pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                processor_s += sum(map(int, fields[11:15])) * ticks_s
    return processor_s + warm.spent_s(), time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[_START] = _spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown":
        now, start = _spent(), item.stash[_START]
        report.user_properties.append(
            ("weight", [now[0] - start[0], now[1] - start[1]])
        )  # travels to `-n`'s controller
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, weight in report.user_properties:
        if report.when == "teardown" and name == "weight":
            _WEIGHTS[report.nodeid] = tuple(weight)  # type: ignore[arg-type]


def _table(rows: Iterable[tuple[str, tuple[float, float]]]) -> Generator[str, None, None]:
    for name, (processor_s, wall_s) in sorted(rows, key=lambda row: -max(row[1])):
        yield f"{processor_s:9.2f} {wall_s:9.2f}  {name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    folders: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    files: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, (processor_s, wall_s) in _WEIGHTS.items():
        file = name.split("::")[0]
        for sums, key in ((folders, os.path.dirname(file)), (files, file), (folders, "all")):
            sums[key] = (sums[key][0] + processor_s, sums[key][1] + wall_s)
    terminalreporter.section("weights: processor seconds, seconds in all")
    for rows in (folders, files, dict(list(_heaviest()))):
        for line in _table(rows.items()):
            terminalreporter.write_line(line)
        terminalreporter.write_line("")


def _heaviest() -> Iterable[tuple[str, tuple[float, float]]]:
    return sorted(_WEIGHTS.items(), key=lambda row: -max(row[1]))[:HEAVIEST]

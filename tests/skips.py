"""Fails a test that was skipped without permission, where `LAZYCAST_PERMITTED_SKIPS` names the file that permits some.

A line of it is a pattern (as of `fnmatch`) for the ids of tests, two spaces or more, and why they may be skipped. So a
machine that lacks a package, or root, does not pass for one on which everything was tested.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import pytest

VARIABLE = "LAZYCAST_PERMITTED_SKIPS"
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@functools.cache
def permitted(file: str) -> tuple[str, ...]:
    """Return the patterns of a file; raise if one lacks its reason."""
    patterns = []
    for line in Path(file).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition("  ")
            if not reason.strip():
                raise pytest.UsageError(f"{file}: {line!r} lacks a reason, after two spaces")
            patterns.append(pattern)
    return tuple(patterns)


def _judged(report: Report) -> Report:
    file = os.environ.get(VARIABLE)
    if not file or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    if any(fnmatchcase(report.nodeid, pattern) for pattern in permitted(file)):
        return report
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {why}; {file} does not permit that"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself for want of a package."""
    return _judged((yield))


def pytest_configure() -> None:
    if file := os.environ.get(VARIABLE):
        permitted(file)

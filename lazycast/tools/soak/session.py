"""A soak from outside: job after job until the time is over."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lazycast.start.commands import require
from lazycast.tools.bench.progress import Display, display
from lazycast.tools.soak.diary import Orders
from lazycast.tools.soak.job import Job, Outcome
from lazycast.tools.soak.report import Report


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Args:
        orders: of all jobs; `orders.job` is the first.
        minutes: how long to go on starting jobs; None: one job.
        folder: where what the ranks of a failing job have written is kept.
    """

    orders: Orders
    minutes: float | None
    folder: Path


def run(wish: Wish) -> Report:
    """Run jobs and report on them.

    Raises: BackendUnavailableError if a library or launcher is missing.
    Blocking: until the last job that was begun in time is done.
    """
    require(wish.orders.backend)
    report = Report(wish.orders)
    with display() as shows:
        for number in _numbers(wish, shows, report):
            report.add(_job(replace(wish.orders, job=number), wish.folder))
    return report


def _numbers(wish: Wish, shows: Display, report: Report) -> Iterator[int]:
    began_s = time.monotonic()
    for number in itertools.count(wish.orders.job):
        passed_s, wanted_s = time.monotonic() - began_s, 60.0 * (wish.minutes or 0.0)
        if report.jobs and passed_s >= wanted_s:
            return
        shows.show(min(1.0, passed_s / wanted_s) if wanted_s else 0.0, f"job {number}; so far {report.in_short()}")
        yield number


def _job(orders: Orders, folder: Path) -> Outcome:
    here = Path(tempfile.mkdtemp(prefix="lazycast-soak-"))
    try:
        outcome = Job(orders, here).run()
        if not outcome.good:
            kept = folder / f"soak-{orders.backend}-seed{orders.seed}-job{orders.job}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(here, kept)
        return outcome
    finally:
        shutil.rmtree(here, ignore_errors=True)

"""Runs the behaviours on a group, in step, and brings every rank's outcome to every rank."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lazycast.net.backend import Backend
from lazycast.testing import (
    aborts,
    arriving,
    contract,
    diagnosis,
    failures,
    helpers,
    lifecycle,
    load,
    memory,
    observing,
    placements,
    pressure,
    roots,
    trust,
    values,
)
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviours, name_of

#: Behaviours register when their modules are loaded.
MODULES = (
    contract,
    values,
    placements,
    helpers,
    memory,
    failures,
    diagnosis,
    pressure,
    lifecycle,
    aborts,
    arriving,
    roots,
    load,
    observing,
    trust,
)

#: How much longer than any wait inside a behaviour its slowest rank may take (seconds).
_SLACK_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How one behaviour ended: for each rank None, or the error as text."""

    name: str
    errors: list[str | None]

    @property
    def passed(self) -> bool:
        return not any(self.errors)


class _Unexpected(logging.Filter):
    """Leaves out the log of failed calls: behaviours make hundreds fail on purpose, and look at the errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "lazycast_kind", None) not in ("failed", "left out")


def run(
    backend: Backend,
    *,
    only: str = "",
    shared_memory: bool | str = "auto",
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run all behaviours whose name contains `only`; return the outcomes, the same on every rank.

    With `shared_memory=False` everything travels through the backend, also between ranks of one host.

    Collective: every rank. Blocking: some minutes at most; a behaviour that hangs fails by time-out.
    """
    context = backend.open(timeout_s=TIMEOUT_S)
    rank = Rank(backend, shared_memory)
    outcomes = []
    logger, unexpected = logging.getLogger("lazycast"), _Unexpected()  # one of each rank's: they may be threads
    logger.addFilter(unexpected)
    try:
        for fn in behaviours(backend.size):
            if only not in name_of(fn):
                continue
            error = None
            try:
                rank.begin(name_of(fn))
                fn(rank)
            except Exception:
                error = traceback.format_exc()[-8000:]
            blobs = context.exchange(msgspec.json.encode(error), timeout_s=TIMEOUT_S + _SLACK_S)
            outcome = Outcome(name_of(fn), [msgspec.json.decode(blob, type=str | None) for blob in blobs])
            outcomes.append(outcome)
            report(outcome)
            if not outcome.passed:
                rank.end()
    finally:
        rank.end()
        context.close()
        logger.removeFilter(unexpected)
    return outcomes

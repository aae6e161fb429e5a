"""Builds a real `LazyBroadcast` on all ranks, and finds out who shares memory with whom on the way."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from lazycast.api import LazyBroadcast
from lazycast.errors import LazycastError
from lazycast.net.backend import Backend
from lazycast.start import meeting
from lazycast.tools.doctor import selftest
from lazycast.tools.doctor.selftest import Outcome


class Trial(msgspec.Struct):
    """What one rank has come to.

    Attributes:
        step: what it began last.
        error: why that failed, if so.
        reached: for each rank, the lower ones with which it has exchanged a descriptor; `refused`: why this rank could
            not, by lower rank.
        hosts: as the object has them.
    """

    rank: int
    step: str = "connecting the ranks"
    error: str | None = None
    reached: list[list[int]] = []
    refused: dict[int, str] = {}
    hosts: list[list[int]] = []
    construct_s: float = 0.0
    outcome: Outcome | None = None


def run(trial: Trial, backend: Backend, *, self_test: bool, timeout_s: float) -> None:
    """Go as far as possible, and leave in `trial` what came of it.

    Collective: every rank of the backend. Blocking: each step up to `timeout_s`.
    """
    try:
        trial.step = "meeting, and passing descriptors to each other"
        _meet(trial, backend, timeout_s)
        trial.step = "constructing a LazyBroadcast"
        start_s = time.perf_counter()
        lazy: LazyBroadcast[Any, Any] = LazyBroadcast(name="doctor", backend=backend, timeout_s=timeout_s)
        with lazy:
            trial.construct_s = time.perf_counter() - start_s
            trial.hosts = [list(host) for host in lazy.stats().hosts]
            if self_test:
                trial.step = "the self-test"
                trial.outcome = selftest.run(backend, lazy, timeout_s)
        trial.step = "done"
    except (LazycastError, OSError, MemoryError) as exc:
        trial.error = f"{type(exc).__name__}: {exc}"


def _meet(trial: Trial, backend: Backend, timeout_s: float) -> None:
    context = backend.open(timeout_s=timeout_s)
    try:
        host = meeting.meet(context, backend.rank, backend.size, wanted=True, timeout_s=timeout_s)
        for sock in host.sockets.values():
            sock.close()
        trial.reached = [sorted(ranks) for ranks in host.reached]
        trial.refused = host.refused
        # Nobody gives up the context before all have what they need of it.
        context.exchange(b"", timeout_s=timeout_s)
    finally:
        context.close()

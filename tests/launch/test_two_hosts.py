"""Two hosts of two ranks on one machine, told apart by a label: who shares memory, and how often a payload crosses."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import lazycast
from lazycast import LazyBroadcast, Tuning, launch
from lazycast.start.discovery import resolve
from lazycast.testing import run
from lazycast.testing.kit import same

pytestmark = pytest.mark.usefixtures("warm_python")


def rank_of_environment() -> int:
    return int(
        next(os.environ[name] for name in ("LAZYCAST_RANK", "RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ)
    )


def crosses_once() -> tuple[int, int, tuple[tuple[int, ...], ...]]:
    rank = rank_of_environment()
    os.environ["LAZYCAST_HOST"] = "ab"[rank // 2]
    payload = np.random.default_rng(1).integers(0, 255, (20 << 20) + 3, np.uint8)
    with LazyBroadcast(root=1, timeout_s=60) as lazy:
        for n in range(3):
            value = lazy.broadcast(payload if lazy.is_root else None)
            same(value[:: n + 1], payload[:: n + 1])
            if not lazy.is_root:
                value += 1  # private: nobody else sees it, and the next cast neither
        stats = lazy.stats()
        return 3 * payload.nbytes, stats.nbytes_sent, stats.hosts


@pytest.mark.parametrize(
    "backend", ["local", *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("torch", "mpi"))]
)
def test_a_payload_crosses_between_hosts_once(backend: str) -> None:
    results = launch(crosses_once, ranks=4, backend=backend, timeout_s=200)
    for rank, (nbytes, sent, hosts) in enumerate(results):
        assert hosts == ((0, 1), (2, 3))
        if rank == 1:  # the root, and so the leader of its host
            assert nbytes <= sent <= 1.05 * nbytes, (sent, nbytes)
        else:
            assert sent < 10_000, (rank, sent)


def behaves() -> list[Any]:
    os.environ["LAZYCAST_HOST"] = str(rank_of_environment() % 3)
    return [outcome for outcome in run(resolve("auto")) if not outcome.passed]


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_the_suite_passes_on_three_hosts_of_different_sizes() -> None:
    """The last rank, which many behaviours keep waiting, reports by way of another one."""
    for rank, failed in enumerate(launch(behaves, ranks=8, backend="local", timeout_s=570)):
        assert not failed, f"rank {rank}: {failed}"


def until_cancelled(payload: int) -> int:
    while rank_of_environment() == 2 and not lazycast.cancelled():
        time.sleep(0.01)
    return payload


def waits_for_one() -> tuple[Any, ...]:
    """Rank 1 has done its part, and speaks for rank 2, which has not."""
    os.environ["LAZYCAST_HOST"] = str(min(rank_of_environment(), 1))
    with LazyBroadcast(timeout_s=60, placement="every") as lazy:
        payload = (1,) if lazy.is_root else ()
        with pytest.raises(lazycast.CastTimeoutError) as caught:
            lazy.broadcast(*payload, materialize=until_cancelled, timeout_s=1.5 if lazy.is_root else 60)
        exc, after = caught.value, lazy.broadcast(2 if lazy.is_root else None)
        return exc.rank, exc.missing, set(exc.answered) >= {0, 1}, after


def test_who_speaks_for_others_is_not_named_for_them() -> None:
    assert launch(waits_for_one, ranks=3, backend="local", timeout_s=200) == [(0, (2,), True, 2)] * 3


def late_on_one(payload: str) -> str:
    """Rank 2 never ends what it was given last; what comes before ends when the time of that is nearly over."""
    rank = rank_of_environment()
    if (payload, rank) in {("before", 2), ("both", 0), ("both", 1)}:
        time.sleep(4.4)
    while (payload, rank) in {("after", 2), ("both", 2)} and not lazycast.cancelled():
        time.sleep(0.01)
    return payload


def waits_late() -> list[tuple[Any, ...]]:
    """Calls whose casts, or the root's part of them, come after the root has asked who is missing."""
    rank, found = rank_of_environment(), []
    os.environ["LAZYCAST_HOST"] = str(min(rank, 1))
    one, held = Tuning(max_inflight=1), ("before", "after")
    with (
        LazyBroadcast(late_on_one, timeout_s=60, placement="every", name="held", tuning=one) as narrow,
        LazyBroadcast(late_on_one, timeout_s=60, placement="every", name="own") as wide,
    ):
        timeout_s = 60 if rank else 5
        calls = [wide.broadcast_async(None if rank else "both", timeout_s=timeout_s)]
        calls += [narrow.broadcast_async(None if rank else payload, timeout_s=timeout_s) for payload in held]
        for call in (calls[0], calls[2]):
            with pytest.raises(lazycast.CastTimeoutError) as caught:
                call.result()
            found.append((caught.value.rank, caught.value.missing))
        assert calls[1].result() == "before"
    return found


def test_who_has_reported_after_the_roll_call_is_not_named() -> None:
    assert launch(waits_late, ranks=3, backend="local", timeout_s=200) == [[(0, (2,))] * 2] * 3


def is_idle() -> int:
    os.environ["LAZYCAST_HOST"] = str(rank_of_environment())
    with LazyBroadcast(timeout_s=5) as lazy:
        assert lazy.broadcast(1) == 1
        time.sleep(8)
        return lazy.broadcast(2)


@pytest.mark.parametrize(
    "backend", ["local", *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("torch", "mpi"))]
)
def test_a_group_may_be_idle_for_longer_than_its_calls_may_take(backend: str) -> None:
    assert launch(is_idle, ranks=2, backend=backend, timeout_s=200) == [2, 2]

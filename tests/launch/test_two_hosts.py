"""Two hosts of two ranks on one machine, told apart by a label: who shares memory, and how often a payload crosses."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch
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


@pytest.mark.parametrize("backend", ["local", "torch", pytest.param("mpi", marks=pytest.mark.exhaustive)])
def test_a_payload_crosses_between_hosts_once(backend: str) -> None:
    results = launch(crosses_once, ranks=4, backend=backend, timeout_s=100)
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
@pytest.mark.timeout(300)
def test_the_suite_passes_on_three_hosts_of_different_sizes() -> None:
    for rank, failed in enumerate(launch(behaves, ranks=7, backend="local", timeout_s=280)):
        assert not failed, f"rank {rank}: {failed}"


def is_idle() -> int:
    os.environ["LAZYCAST_HOST"] = str(rank_of_environment())
    with LazyBroadcast(timeout_s=2) as lazy:
        assert lazy.broadcast(1) == 1
        time.sleep(4)
        return lazy.broadcast(2)


@pytest.mark.parametrize(
    "backend", ["local", *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("torch", "mpi"))]
)
def test_a_group_may_be_idle_for_longer_than_its_calls_may_take(backend: str) -> None:
    assert launch(is_idle, ranks=2, backend=backend, timeout_s=60) == [2, 2]

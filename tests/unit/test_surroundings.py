"""What a materializer sees of what its caller has set for itself: with one rank as little as with many."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lazycast import LazyBroadcast, launch
from lazycast.surroundings import nothing_set

MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "device": lambda: torch.device("meta"),
}


def look(payload: object) -> tuple[Any, ...]:
    """What torch has set in this thread."""
    autocast = torch.is_autocast_enabled("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, str(torch.empty(1).device), payload


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_materializer_runs_as_in_a_new_thread(ranks: int, mode: str) -> None:
    def rank() -> list[Any]:
        with LazyBroadcast(look) as lazy, MODES[mode]():
            return [lazy.broadcast(n, key=n) for n in range(2)] + [lazy.broadcast_async(2, key=2).result(30)]

    assert (
        launch(rank, ranks=ranks, backend="threads", timeout_s=60)
        == [[(True, False, False, "cpu", n) for n in range(3)]] * ranks
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_thread_in_a_mode_is_not_as_a_new_one(mode: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as new:
        assert new.submit(nothing_set).result()
    with MODES[mode]():
        assert not nothing_set()
    assert nothing_set()

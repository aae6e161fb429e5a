"""What a materializer sees of what its caller has set for itself: with one rank as little as with many."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lazycast import LazyBroadcast, Staged, launch, register_materializer
from lazycast.core.surroundings import nothing_set

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
        launch(rank, ranks=ranks, backend="threads", timeout_s=200)
        == [[(True, False, False, "cpu", n) for n in range(3)]] * ranks
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_thread_in_a_mode_is_not_as_a_new_one(mode: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as new:
        assert new.submit(nothing_set).result()
    with MODES[mode]():
        assert not nothing_set()
    assert nothing_set()


WEIGHT = torch.ones(3, requires_grad=True)


def scaled(payload: torch.Tensor) -> dict[str, torch.Tensor]:
    """A value with a history."""
    return {"y": payload * WEIGHT}


def again(payload: torch.Tensor, hint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return hint


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("placement", ["every", "demand", "shard", "root"])
@pytest.mark.parametrize("staged", [False, True], ids=["plain", "staged"])
@pytest.mark.parametrize("trust", ["pickle", "data"])
@pytest.mark.parametrize("replicated", [False, True], ids=["root's", "replicated"])
def test_a_tensor_has_a_history_on_all_ranks_or_on_none(
    replicated: bool, trust: str, staged: bool, placement: str, ranks: int
) -> None:
    fn = register_materializer("scaled twice", Staged(scaled, again)) if staged else scaled
    register_materializer("scaled", scaled)

    def rank() -> list[tuple[Any, ...]]:
        with LazyBroadcast(fn, placement=placement, trust=trust, replicated=replicated) as lazy:
            found = []
            for _ in range(ranks):
                y = lazy.broadcast(torch.arange(3.0) if lazy.is_root or replicated else None)["y"]
                found.append((y.requires_grad, y.is_leaf, y.tolist()))
            return found

    shared = ranks > 1 and placement in ("shard", "root")
    seen = launch(rank, ranks=ranks, backend="threads", timeout_s=200)
    assert seen == [[(True, shared, [0.0, 1.0, 2.0])] * ranks] * ranks

"""How much memory a cast takes: beyond the arena, nothing but what is promised; and the arena, no more than is in use.

Private memory is looked at by a process beside each rank, while casts of 64 MiB run. It is the same for every run, so
unlike time it can be asserted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch
from lazycast.tools.bench import memory, touch
from lazycast.tools.bench.sync import Sync

MIB = 1 << 20
NBYTES = 64 * MIB
RANKS = 3

#: What threads, heaps and the interpreter take by the way (payloads).
SLACK = 10 / 64
NOTHING, ONE = (-1.0, SLACK), (1 - SLACK, 1 + SLACK)


def array(byte: int) -> np.ndarray:
    return np.full(NBYTES, byte, np.uint8)


def strided(byte: int) -> np.ndarray:
    return np.full((NBYTES, 2), byte, np.uint8)[:, 0]


def jpegs(byte: int) -> dict[str, bytes]:
    return {str(i): bytes([byte]) * (NBYTES // 64) for i in range(64)}


def tensor(byte: int) -> Any:
    import torch

    return torch.full((NBYTES,), byte, dtype=torch.uint8)


def overwrite(value: Any) -> object:
    return touch.overwrite(value, 7)


def nothing_else(value: Any) -> None:
    return None


#: What is cast, with which `values`, what is done with the value; what the root and the others need (payloads).
CASES: list[tuple[Callable[[int], Any], str, Callable[[Any], object], tuple[float, float], tuple[float, float]]] = [
    (array, "private", nothing_else, NOTHING, NOTHING),
    (array, "private", touch.read, NOTHING, NOTHING),
    (array, "private", overwrite, NOTHING, ONE),  # own copies of the pages, and the root's value is its payload
    (array, "readonly", touch.read, NOTHING, NOTHING),
    (array, "copy", nothing_else, NOTHING, ONE),
    (array, "copy", overwrite, NOTHING, ONE),
    (strided, "private", nothing_else, (-1.0, ONE[1]), NOTHING),
    (jpegs, "private", touch.read, NOTHING, ONE),  # `bytes` cannot be views
    (tensor, "private", touch.read, NOTHING, NOTHING),
    (tensor, "readonly", touch.read, NOTHING, ONE),  # a tensor cannot be read-only
    (tensor, "copy", touch.read, NOTHING, ONE),
]


def needs(folder: Path, backend: str) -> list[tuple[str, float]]:
    """On each rank: return for each case what it was and how many payloads of private memory it took."""
    rank = int(os.environ["LAZYCAST_RANK" if backend == "local" else "RANK"])
    sync, watch, found = Sync(rank, RANKS, folder), memory.Watch([os.getpid()]), []
    for make, values, act, *_ in cases(backend):
        with LazyBroadcast[Any, Any](values=values, timeout_s=60) as lazy:
            for byte in (1, 2):  # the first warms what is kept, such as imports
                payload = make(byte) if lazy.is_root else None
                memory.settle()
                watch.begin()
                sync.gather()  # a value may come as soon as the root has made its call
                value = lazy.broadcast(payload)
                act(value)
                taken = watch.end()[0] / NBYTES
                del value, payload
                sync.gather()
            if lazy.is_root:  # it has grown to what was in use at a time, and not more
                assert NBYTES <= lazy.stats().arena_nbytes <= NBYTES + MIB, lazy.stats()
            found.append((f"{make.__name__}, {values}, {act.__name__}", taken))
    watch.close()
    sync.close()
    return found


def cases(backend: str) -> Iterator[Any]:
    return (case for case in CASES if backend == "torch" or case[0] is not tensor)


@pytest.mark.cold
@pytest.mark.exhaustive
@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", ["local", "torch"])
def test_a_cast_takes_no_more_private_memory_than_is_promised(backend: str, tmp_path: Path) -> None:
    by_rank = launch(needs, ranks=RANKS, backend=backend, args=(tmp_path, backend), timeout_s=220)
    wrong = []
    for rank, found in enumerate(by_rank):
        for (what, taken), case in zip(found, cases(backend), strict=True):
            least, most = case[3] if rank == 0 else case[4]
            if not least <= taken <= most:
                wrong.append(f"rank {rank}: {what}: {taken:.2f} payloads, not {least:.2f} to {most:.2f}")
    assert not wrong, "\n".join(wrong)


def arena_sizes(folder: Path) -> list[int]:
    """On each rank: cast with one value held at a time, then with three; return the sizes of its arena."""
    sync, sizes = Sync(int(os.environ["LAZYCAST_RANK"]), RANKS, folder), []
    payload = array(3)
    with LazyBroadcast[Any, Any](timeout_s=60) as lazy:
        sizes.append(lazy.stats().arena_nbytes)
        for held_at_a_time in (1, 3):
            for _ in range(20):
                held = [lazy.broadcast(payload) for _ in range(held_at_a_time)]
                assert all(value[-1] == 3 for value in held)
                del held
                sync.gather()
            sizes.append(lazy.stats().arena_nbytes)
        assert lazy.stats().shared_nbytes == 0
    sizes.append(lazy.stats().arena_nbytes)
    sync.close()
    return sizes


@pytest.mark.exhaustive
def test_the_arena_is_as_large_as_what_is_in_use_at_a_time(tmp_path: Path) -> None:
    root, *others = launch(arena_sizes, ranks=RANKS, backend="local", args=(tmp_path,), timeout_s=200)
    unused, one, three, closed = root
    assert unused == closed == 0
    assert NBYTES <= one <= NBYTES + MIB
    assert 3 * NBYTES <= three <= 3 * (NBYTES + MIB)
    assert others == [[0, 0, 0, 0]] * (RANKS - 1)  # who never writes has none

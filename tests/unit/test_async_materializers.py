"""`async def` is no materializer: nobody would await what it returns."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lazycast import LazyBroadcast, RemoteError, Staged, launch


async def later(payload: object) -> object:
    return payload


async def many(payload: object) -> AsyncIterator[object]:
    yield payload


class Later:
    async def __call__(self, payload: object) -> object:
        return payload


def plain(*args: object) -> object:
    return args[0]


ASYNC: dict[str, Callable[..., Any]] = {
    "function": later,
    "generator": many,
    "object": Later(),
    "method": Later().__call__,
    "partial": functools.partial(functools.partial(later)),
    "partial-object": functools.partial(Later()),
    "prepare": Staged(later, plain),
    "finish": Staged(plain, later),
}


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_async_materializer_is_refused_on_every_rank(name: str, ranks: int) -> None:
    def rank() -> None:
        with LazyBroadcast(plain, timeout_s=30) as lazy:
            with pytest.raises(TypeError if lazy.is_root else RemoteError, match="async function"):
                lazy.broadcast(1, materialize=ASYNC[name])
            assert lazy.broadcast(2) == 2
        with pytest.raises(TypeError, match="async function"):
            LazyBroadcast(ASYNC[name], timeout_s=30)

    launch(rank, ranks=ranks, backend="threads")

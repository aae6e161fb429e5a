"""`await lazy.cast(...)`, and calls that are not to wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lazycast import CastTimeoutError, LazyBroadcast, Tuning, WouldBlockError
from lazycast.backends.local import LocalBackend

WAIT_S = 30.0
Pair = tuple[LazyBroadcast[Any, Any], LazyBroadcast[Any, Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The root, which may be two casts ahead, and another rank that has asked for none."""
    mine, theirs = LocalBackend.threads(2)
    tuning = Tuning(max_inflight=2)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        made = thread.submit(LazyBroadcast, backend=theirs, timeout_s=WAIT_S, agree=False, tuning=tuning)
        lazy: LazyBroadcast[Any, Any] = LazyBroadcast(backend=mine, timeout_s=WAIT_S, agree=False, tuning=tuning)
        other = made.result(WAIT_S)
        yield lazy, other
        closing = thread.submit(other.close, timeout_s=1.0)
        lazy.close(timeout_s=1.0)
        closing.result(WAIT_S)


def fill(lazy: LazyBroadcast[Any, Any]) -> None:
    for number in range(2):
        lazy.broadcast(number, key=number)


def take(other: LazyBroadcast[Any, Any], keys: Any) -> list[Any]:
    return [other.broadcast(key=key) for key in keys]


def test_a_call_that_is_not_to_wait_does_not_count(pair: Pair) -> None:
    lazy, other = pair
    fill(lazy)
    for key in ("later", None):
        with pytest.raises(WouldBlockError, match=r"max_inflight=2.*rank 1 has not asked for 2 casts.*come back later"):
            lazy.broadcast_async("never cast", key=key, block=False)
    assert lazy.stats().pending == 0
    assert take(other, (0, 1)) == [0, 1]
    until_s = time.monotonic() + WAIT_S
    while not lazy.has_room():
        assert time.monotonic() < until_s
        time.sleep(0.001)
    assert lazy.broadcast_async("cast", key="later", block=False).result(WAIT_S) == "cast"
    assert take(other, ["later"]) == ["cast"]
    assert lazy.broadcast("the first without a key") == other.broadcast() == "the first without a key"


def test_on_the_thread_of_a_running_loop_no_call_waits(pair: Pair) -> None:
    lazy, other = pair
    fill(lazy)

    async def call() -> None:
        lazy.broadcast_async("never cast", key="k")

    with pytest.raises(WouldBlockError, match=r"await lazy\.cast"):
        asyncio.run(call())
    assert take(other, (0, 1)) == [0, 1]


def test_a_thousand_clients_wait_beside_the_loop(pair: Pair) -> None:
    lazy, other = pair
    ticks = 0

    async def serve() -> list[Any]:
        nonlocal ticks
        done = asyncio.Event()

        async def tick() -> None:
            nonlocal ticks
            while not done.is_set():
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        values = await asyncio.gather(*(lazy.cast(number, key=number) for number in range(1000)))
        done.set()
        await ticking
        return values

    reading = threading.Thread(target=take, args=(other, range(1000)))
    reading.start()
    assert asyncio.run(serve()) == list(range(1000))
    reading.join(WAIT_S)
    assert not reading.is_alive()
    assert ticks > 10, "the loop stood still"


def test_a_cast_for_which_there_is_no_room_in_time_counts(pair: Pair) -> None:
    lazy, other = pair
    fill(lazy)
    with pytest.raises(CastTimeoutError, match="max_inflight=2"):
        asyncio.run(lazy.cast("late", key="k", timeout_s=0.2))
    with pytest.raises(CastTimeoutError):
        other.broadcast(key="k")
    assert take(other, (0, 1)) == [0, 1]
    assert lazy.broadcast("next", key="k") == other.broadcast(key="k") == "next"


def test_a_task_that_is_cancelled_before_there_is_room_leaves_nothing_behind(pair: Pair) -> None:
    lazy, other = pair
    fill(lazy)

    async def give_up() -> None:
        task = asyncio.create_task(lazy.cast("never cast", key="k"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert take(other, (0, 1)) == [0, 1]
    assert lazy.broadcast("cast", key="k") == other.broadcast(key="k") == "cast"


def test_on_another_rank_it_waits_for_the_value(pair: Pair) -> None:
    lazy, other = pair
    got: list[Any] = []
    asking = threading.Thread(target=lambda: got.append(asyncio.run(other.cast(key="k"))))
    asking.start()
    assert asyncio.run(lazy.cast({"a": 1}, key="k")) == {"a": 1}
    asking.join(WAIT_S)
    assert got == [{"a": 1}]

"""What is asked for in the middle of lazycast's own work: done later, in its order; and kept by nobody afterwards."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from lazycast import ClosedError, LazyBroadcast, Tuning, launch

WAIT_S = 30.0


class Casts:
    """A payload that casts others while it is pickled, as a finalizer may that the collector runs there."""

    lazy: Any = None
    futures: tuple[Any, ...] = ()

    def __reduce__(self) -> Any:
        if Casts.lazy is not None and not Casts.futures:
            Casts.futures = tuple(Casts.lazy.broadcast_async(number) for number in range(400))
        return str, ("first",)


def casts_in_the_middle() -> list[Any]:
    with LazyBroadcast[Any, Any](timeout_s=WAIT_S, tuning=Tuning(max_inflight=1000)) as lazy:
        if not lazy.is_root:
            return [lazy.broadcast() for _ in range(401)]
        Casts.lazy, Casts.futures = lazy, ()
        lazy.broadcast(Casts())
        return ["first", *(future.result(WAIT_S) for future in Casts.futures)]


@pytest.mark.usefixtures("warm_python")
def test_calls_are_made_in_the_order_in_which_they_were_handed_over() -> None:
    assert launch(casts_in_the_middle, ranks=2, timeout_s=200) == [["first", *range(400)]] * 2


@pytest.mark.parametrize("call", ["broadcast", "broadcast_async", "discard"])
def test_a_closed_object_keeps_nothing_of_calls_that_it_refuses(call: str) -> None:
    lazy = LazyBroadcast[Any, Any](backend="local")
    lazy.close()
    for _ in range(10):
        with pytest.raises(ClosedError):
            lazy.discard("key") if call == "discard" else getattr(lazy, call)(bytes(100))
    assert not lazy._engine.handed.waiting


def test_a_signal_that_comes_before_a_materializer_does_not_wait_for_its_end() -> None:
    class Alarm(Exception):
        pass

    def rings(number: int, frame: object) -> None:
        raise Alarm

    def slow(payload: object) -> object:
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            time.sleep(0.01)
        return payload

    before = signal.signal(signal.SIGALRM, rings)
    try:
        with LazyBroadcast(slow, backend="local") as lazy:
            lane: Any = lazy._lane
            make: Callable[..., Any] = lane.asks.make_call

            def made(*args: Any, **more: Any) -> Any:
                os.kill(os.getpid(), signal.SIGALRM)
                return make(*args, **more)

            lane.asks.make_call = made
            began_s = time.monotonic()
            with pytest.raises(Alarm):
                lazy.broadcast(1)
            assert time.monotonic() - began_s < WAIT_S / 2
    finally:
        signal.signal(signal.SIGALRM, before)


class Inline(concurrent.futures.Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_may_run_what_it_is_given_in_the_middle_of_another() -> None:
    made: list[Any] = []

    def nests(payload: str) -> str:
        if payload == "outer":
            made.append(lazy.broadcast_async("inner"))
        return payload

    with LazyBroadcast(nests, backend="local", tuning=Tuning(executor=Inline())) as lazy:
        assert lazy.broadcast_async("outer").result(WAIT_S) == "outer"
        assert made[0].result(WAIT_S) == "inner"
        assert not lazy._engine.performer._running

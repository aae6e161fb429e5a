"""The future of a cast, in isolation: who is called back where, and what cancelling does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lazycast.core.future import CastFuture
from lazycast.net.wire import Key

WAIT_S = 10.0


class Engine:
    """What a future is given: the books on asks, but for what is on them."""

    root = 0

    def __init__(self) -> None:
        self.withdrawals = 0
        self.callbacks: list[Callable[[], None]] = []
        self.reentrant = False
        self.withdraw_result: bool | None = True
        self.run_callback = self.callbacks.append
        asks: Any = self
        self.future: CastFuture[Any] = CastFuture(asks, number=3)

    def label(self, key: Key | None, seq: int | None, nth: int | None = None) -> str:
        return "cast #3"

    def withdraw(self, call: CastFuture[Any]) -> bool:
        self.withdrawals += 1
        if self.withdraw_result:
            self.future.settle_cancelled()
        return bool(self.withdraw_result)

    forked = True  # or whatever else is a reason to ask the one below

    def guard_result(self) -> None:
        if self.reentrant:
            raise RuntimeError("reentrant")

    def run_callbacks(self) -> None:
        while self.callbacks:
            self.callbacks.pop(0)()


@pytest.fixture
def engine() -> Engine:
    return Engine()


ENDS: dict[str, Callable[[CastFuture[Any]], None]] = {
    "value": lambda f: f.settle(5),
    "error": lambda f: f.settle_error(ValueError("why")),
    "cancelled": lambda f: f.settle_cancelled(),
}


def test_it_gives_its_value(engine: Engine) -> None:
    engine.future.settle([5])
    assert engine.future.result(0) == [5]
    assert engine.future.exception(0) is None
    assert engine.future.done()
    assert not engine.future.cancelled()


def test_a_callback_keeps_no_value_alive(engine: Engine) -> None:
    class Value:
        """Something to watch."""

    value, called = Value(), []
    watch = weakref.ref(value)
    gc.disable()  # what only the collector frees would keep a slot of shared memory
    try:
        engine.future.add_done_callback(lambda future: called.append(future.done()))
        engine.future.settle(value)
        engine.run_callbacks()
        del value, engine.future
        assert called == [True]
        assert watch() is None
    finally:
        gc.enable()


def test_it_gives_its_error(engine: Engine) -> None:
    error = ValueError("why")
    engine.future.settle_error(error)
    with pytest.raises(ValueError, match="why"):
        engine.future.result(0)
    assert engine.future.exception(0) is error


def test_waiting_for_it_has_a_time_limit(engine: Engine) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        engine.future.result(0)
    with pytest.raises(concurrent.futures.TimeoutError):
        engine.future.exception(0)


@pytest.mark.parametrize("timeout", [-1, -0.5, 0, 0.01])
def test_a_time_limit_may_be_over_already(engine: Engine, timeout: float) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        engine.future.result(timeout)
    engine.future.settle(5)
    assert engine.future.result(timeout) == 5


@pytest.mark.parametrize("end", ENDS)
def test_all_who_wait_wake(engine: Engine, end: str, together: Any) -> None:
    waiting = threading.Barrier(4)

    def wait() -> str:
        waiting.wait(WAIT_S)
        try:
            return "value" if engine.future.result() == 5 else "?"
        except ValueError:
            return "error"
        except concurrent.futures.CancelledError:
            return "cancelled"

    def settle() -> None:
        waiting.wait(WAIT_S)
        ENDS[end](engine.future)

    assert together(wait, wait, wait, settle) == [end, end, end, None]


@pytest.mark.parametrize("how", ["result", "exception"])
def test_a_reentrant_wait_is_refused_until_it_is_done(engine: Engine, how: str) -> None:
    engine.reentrant = True
    with pytest.raises(RuntimeError, match="reentrant"):
        getattr(engine.future, how)(0)
    engine.future.settle(5)
    getattr(engine.future, how)(0)


# Cancelling


def test_cancelling_asks_the_engine(engine: Engine) -> None:
    assert engine.future.cancel()
    assert engine.withdrawals == 1
    assert engine.future.cancelled()
    assert engine.future.done()
    with pytest.raises(concurrent.futures.CancelledError):
        engine.future.result(0)


def test_the_engine_may_refuse(engine: Engine) -> None:
    engine.withdraw_result = False
    assert not engine.future.cancel()
    assert not engine.future.done()
    engine.future.settle(5)
    assert engine.future.result(0) == 5


@pytest.mark.parametrize("end", ENDS)
def test_cancelling_what_is_done_does_nothing(engine: Engine, end: str) -> None:
    ENDS[end](engine.future)
    assert engine.future.cancel() == (end == "cancelled")
    assert engine.withdrawals == 0


@pytest.mark.parametrize("end", ENDS)
def test_one_that_was_handed_over_ends_as_its_call_and_holds_it_no_more(engine: Engine, end: str) -> None:
    asks: Any = engine
    handed_over: CastFuture[Any] = CastFuture(asks)
    assert not handed_over.cancel()
    handed_over.follow(engine.future)
    ENDS[end](engine.future)
    assert handed_over.done()
    assert handed_over.cancelled() == (end == "cancelled")
    assert handed_over._follows is None
    assert engine.withdrawals == 0


def test_cancelling_one_that_was_handed_over_cancels_its_call(engine: Engine) -> None:
    asks: Any = engine
    handed_over: CastFuture[Any] = CastFuture(asks)
    handed_over.follow(engine.future)
    assert handed_over.cancel()
    assert handed_over.cancelled()
    assert engine.withdrawals == 1


@pytest.mark.parametrize("end", ENDS)
def test_wait_and_as_completed_return_however_it_ends(engine: Engine, end: str, together: Any) -> None:
    waiting = threading.Barrier(3)

    def wait() -> object:
        waiting.wait(WAIT_S)
        return concurrent.futures.wait([engine.future], timeout=WAIT_S)

    def as_completed() -> object:
        waiting.wait(WAIT_S)
        return list(concurrent.futures.as_completed([engine.future], timeout=WAIT_S))

    def settle() -> None:
        waiting.wait(WAIT_S)
        ENDS[end](engine.future)

    (done, not_done), completed, _ = together(wait, as_completed, settle)
    assert done == {engine.future}
    assert not_done == set()
    assert completed == [engine.future]


def test_result_wakes_when_it_is_cancelled(engine: Engine, together: Any) -> None:
    def wait() -> None:
        with pytest.raises(concurrent.futures.CancelledError):
            engine.future.result(WAIT_S)

    together(wait, engine.future.settle_cancelled)


# Callbacks


@pytest.mark.parametrize("end", ENDS)
def test_callbacks_are_handed_to_the_engine_and_not_run_where_it_settles(engine: Engine, end: str) -> None:
    called: list[object] = []
    engine.future.add_done_callback(lambda f: called.append((1, f)))
    engine.future.add_done_callback(lambda f: called.append((2, f)))
    assert engine.callbacks == []
    ENDS[end](engine.future)
    assert called == []
    engine.run_callbacks()
    assert called == [(1, engine.future), (2, engine.future)]


@pytest.mark.parametrize("end", ENDS)
def test_callbacks_of_a_future_that_is_done_run_at_once(engine: Engine, end: str) -> None:
    ENDS[end](engine.future)
    called: list[object] = []
    engine.future.add_done_callback(called.append)
    assert called == [engine.future]
    assert engine.callbacks == []


def test_a_callback_that_raises_is_logged_and_the_others_run(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    called: list[object] = []
    engine.future.add_done_callback(lambda _: 1 / 0)
    engine.future.add_done_callback(called.append)
    engine.future.settle(5)
    with caplog.at_level(logging.ERROR, "lazycast"):
        engine.run_callbacks()
    assert called == [engine.future]
    assert "a callback of <CastFuture cast #3 finished> raised" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# asyncio


def test_it_can_be_awaited_before_and_after_it_is_done(engine: Engine) -> None:
    async def main() -> None:
        task = asyncio.create_task(_await(engine.future))
        await asyncio.sleep(0)
        thread = threading.Thread(target=engine.future.settle, args=(5,))
        thread.start()
        assert await asyncio.wait_for(task, WAIT_S) == 5
        thread.join()
        assert await engine.future == 5

    asyncio.run(main())
    assert engine.callbacks == [], "awaiting needs no callback thread"


async def _await(future: CastFuture[Any]) -> Any:
    return await future


def test_awaiting_raises_the_error(engine: Engine) -> None:
    async def main() -> None:
        task = asyncio.create_task(_await(engine.future))
        await asyncio.sleep(0)
        engine.future.settle_error(ValueError("why"))
        with pytest.raises(ValueError, match="why"):
            await asyncio.wait_for(task, WAIT_S)

    asyncio.run(main())


def test_a_withdrawn_cast_is_an_error_of_who_awaits_it_and_not_a_cancelled_task(engine: Engine) -> None:
    async def main() -> None:
        task = asyncio.create_task(_await(engine.future))
        await asyncio.sleep(0)
        engine.future.settle_cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            await asyncio.wait_for(task, WAIT_S)

    asyncio.run(main())


def test_cancelling_a_task_that_awaits_leaves_the_future(engine: Engine) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(_await(engine.future)) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert engine.withdrawals == 0
        assert not engine.future.done()
        engine.future.settle(5)
        assert await asyncio.wait_for(tasks[1], WAIT_S) == 5

    asyncio.run(main())


def test_a_time_limit_on_awaiting_leaves_the_future(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(engine.future), 0.001)

    asyncio.run(main())
    assert not engine.future.cancelled()
    engine.future.settle(5)  # its loop is closed by now
    assert engine.future.result(0) == 5
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_asyncio_wrap_future_works(engine: Engine) -> None:
    async def main() -> None:
        wrapped = asyncio.wrap_future(engine.future)
        engine.future.settle(5)
        engine.run_callbacks()
        assert await asyncio.wait_for(wrapped, WAIT_S) == 5

    asyncio.run(main())


def test_its_repr_names_the_cast_and_the_state(engine: Engine) -> None:
    assert repr(engine.future) == "<CastFuture cast #3 pending>"
    engine.future.settle(5)
    assert repr(engine.future) == "<CastFuture cast #3 finished>"


# What asyncio and others do with it


async def _as_completed(future: CastFuture[Any]) -> Any:
    (one,) = asyncio.as_completed([future])
    return await one


async def _wait(future: CastFuture[Any]) -> Any:
    done, pending = await asyncio.wait([asyncio.ensure_future(future)])
    assert not pending
    return done.pop().result()


async def _gather(future: CastFuture[Any]) -> Any:
    return (await asyncio.gather(future))[0]


async def _shield(future: CastFuture[Any]) -> Any:
    return await asyncio.shield(future)


async def _wait_for(future: CastFuture[Any]) -> Any:
    return await asyncio.wait_for(future, WAIT_S)


async def _task(future: CastFuture[Any]) -> Any:
    return await asyncio.create_task(_await(future))


WAYS = {fn.__name__.strip("_"): fn for fn in (_await, _gather, _wait, _wait_for, _as_completed, _shield, _task)}


@pytest.mark.parametrize("when", ["done", "pending"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", WAYS)
def test_asyncio_can_wait_for_it(engine: Engine, way: str, end: str, when: str) -> None:
    async def main() -> Any:
        if when == "done":
            ENDS[end](engine.future)
        task = asyncio.create_task(WAYS[way](engine.future))
        await asyncio.sleep(0)
        if when == "pending":
            thread = threading.Thread(target=ENDS[end], args=(engine.future,))
            thread.start()
            thread.join()
        return await asyncio.wait_for(task, WAIT_S)

    if end == "value":
        assert asyncio.run(main()) == 5
    else:
        kind = ValueError if end == "error" else concurrent.futures.CancelledError
        with pytest.raises(kind):
            asyncio.run(main())


@pytest.mark.skipif(not hasattr(asyncio, "TaskGroup"), reason="came with Python 3.11")
@pytest.mark.parametrize("end", ENDS)
def test_it_can_be_awaited_in_a_group_of_tasks(engine: Engine, end: str) -> None:
    ended: list[Any] = []

    async def one() -> None:
        try:
            ended.append(await engine.future)
        except (ValueError, concurrent.futures.CancelledError) as exc:
            ended.append(type(exc))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
            group.create_task(one())
            await asyncio.sleep(0)
            ENDS[end](engine.future)

    asyncio.run(main())
    assert ended == [{"value": 5, "error": ValueError, "cancelled": concurrent.futures.CancelledError}[end]]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="until then asyncio.wait made tasks of what it was given")
@pytest.mark.parametrize("end", [None, *ENDS])
def test_asyncio_wait_says_that_it_needs_a_task(engine: Engine, end: str | None) -> None:
    if end is not None:
        ENDS[end](engine.future)
    with pytest.raises(TypeError, match=r"<CastFuture cast #3 .*asyncio.ensure_future\(future\)"):
        asyncio.run(asyncio.wait([engine.future], timeout=WAIT_S))


@pytest.mark.parametrize("end", [None, *ENDS])
def test_awaiting_under_another_loop_names_the_way(engine: Engine, end: str | None) -> None:
    if end is not None:
        ENDS[end](engine.future)
    task = _await(engine.future)
    with pytest.raises(RuntimeError, match=r"trio.to_thread.run_sync\(future.result\)"):
        task.send(None)  # as the loop of trio does


def test_who_waits_finds_it_done_though_the_gate_was_left_locked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that waited was interrupted when it had taken the gate, and before it gave it on."""
    monkeypatch.setattr("lazycast.core.future._LOOK_AGAIN_S", 0.02)
    engine.future.settle(5)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr(engine.future, "done", iter([False, False, True, True, True]).__next__)
        engine.future._gate.acquire()
        thread.submit(engine.future._wait, None).result(WAIT_S)

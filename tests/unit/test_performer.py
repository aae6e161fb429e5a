"""Running user code: what it raises comes back as data, and `done` always follows."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazycast.core.performer import Group, Performer, Result, pool_threads
from lazycast.core.workers import role_of
from lazycast.materialize.cores import Cores

WAIT_S = 10.0
GROUP = Group(1, 3, 0, ["a", "b", "a"], [Cores([0])] * 3)
OWNER = object()


class Caller:
    """Hands parts in and waits for their `done`."""

    def __init__(self, executor: concurrent.futures.Executor | None = None) -> None:
        self.performer = Performer(OWNER, GROUP, executor, "unit-perform")
        self.done: queue.Queue[Result] = queue.Queue()

    def run(self, part: Callable[[], Result], *, here: bool = False) -> None:
        self.performer.run(part, self.done.put, here=here)

    def result(self) -> Result:
        return self.done.get(timeout=30.0)

    def assert_no_more(self) -> None:
        assert self.done.empty(), "done was called twice"


@pytest.fixture
def caller() -> Iterator[Caller]:
    one = Caller()
    yield one
    one.performer.stop()


@pytest.fixture
def executor() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_part_runs_on_a_worker_marked_as_user_code_and_done_follows_outside_of_it(caller: Caller) -> None:
    seen: dict[str, Any] = {}
    finished = threading.Event()

    def done(result: Result) -> None:
        seen.update(result=result, done_role=role_of(OWNER), thread=threading.current_thread().name)
        finished.set()

    caller.performer.run(lambda: Result(role_of(OWNER)), done)
    assert finished.wait(WAIT_S)
    assert seen["result"] == Result("materializer")
    assert seen["done_role"] is None
    assert seen["thread"].startswith("unit-perform")


def test_a_small_part_runs_here(caller: Caller) -> None:
    caller.run(lambda: Result((threading.get_ident(), role_of(OWNER))), here=True)
    assert caller.result().value == (threading.get_ident(), "materializer")


def test_a_given_executor_is_used_and_stays_the_users(executor: concurrent.futures.ThreadPoolExecutor) -> None:
    caller = Caller(executor)
    caller.run(lambda: Result((threading.current_thread().name, role_of(OWNER))))
    name, role = caller.result().value
    assert name.startswith("ThreadPoolExecutor")
    assert role == "materializer"
    caller.performer.stop()
    assert executor.submit(lambda: 3).result(WAIT_S) == 3


def test_a_materializer_gives_its_value(caller: Caller) -> None:
    assert caller.performer.materialize(len, [1, 2]) == Result(2)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_a_materializer_raises_comes_back_as_data(caller: Caller, error: type[BaseException]) -> None:
    def decode_image(_: object) -> object:
        raise error("broken image")

    result = caller.performer.materialize(decode_image, None)
    failure = result.failure
    assert result.value is None
    assert isinstance(result.cause, error)
    assert failure is not None
    assert (failure.kind, failure.rank, failure.host) == ("materialize", 1, "b")
    assert "decode_image' raised on rank 1 (b): " + error.__name__ in failure.message
    assert "broken image" in (failure.traceback or "")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.parametrize("here", [True, False])
def test_done_follows_also_if_a_part_itself_raises(
    caller: Caller, here: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def part() -> Result:
        raise error("a part that raises")

    try:
        caller.run(part, here=here)
        result = caller.result()
    except (queue.Empty, error):
        pytest.fail("done was never called")
    assert result.failure is not None
    assert "a part that raises" in result.failure.message


def _refused(caller: Caller) -> Result:
    try:
        result = caller.result()
    except queue.Empty:
        pytest.fail("done was never called")
    assert result.failure is not None
    assert result.failure.kind == "materialize"
    assert "the given executor did not run the materializer on rank 1 (b)" in result.failure.message
    assert result.cause is not None
    return result


def test_an_executor_that_was_shut_down_is_a_failure(executor: concurrent.futures.ThreadPoolExecutor) -> None:
    caller = Caller(executor)
    executor.shutdown()
    caller.run(lambda: pytest.fail("it ran"))
    assert "shutdown" in str(_refused(caller).cause)
    caller.assert_no_more()


def test_a_part_that_the_executor_cancels_is_a_failure_once(executor: concurrent.futures.ThreadPoolExecutor) -> None:
    caller = Caller(executor)
    gate, started = threading.Event(), threading.Event()

    def first() -> Result:
        started.set()
        gate.wait(WAIT_S)
        return Result("first")

    caller.run(first)
    assert started.wait(WAIT_S)
    caller.run(lambda: pytest.fail("it ran"))
    executor.shutdown(wait=False, cancel_futures=True)
    assert "cancelled by the executor" in str(_refused(caller).cause)
    gate.set()
    assert caller.result() == Result("first")
    caller.assert_no_more()


def test_an_executor_whose_threads_cannot_be_initialised_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ValueError("no device")

    with concurrent.futures.ThreadPoolExecutor(1, initializer=broken) as pool:
        caller = Caller(pool)
        caller.run(lambda: pytest.fail("it ran"))
        assert isinstance(_refused(caller).cause, concurrent.futures.thread.BrokenThreadPool)
        caller.assert_no_more()


class Refusing(concurrent.futures.Executor):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [RuntimeError("full"), OSError("full"), ValueError("full")], ids=repr)
def test_an_executor_that_refuses_with_any_error_is_a_failure(error: Exception) -> None:
    caller = Caller(Refusing(error))
    try:
        caller.run(lambda: pytest.fail("it ran"))
    except type(error):
        pytest.fail("the executor's error came through; done was never called")
    assert _refused(caller).cause is error
    caller.assert_no_more()


@pytest.mark.parametrize(
    ("cores", "hosts", "rank", "threads"),
    [
        (8, ["a"], 0, 8),
        (8, ["a", "a", "b"], 0, 4),
        (8, ["a", "a", "b"], 2, 8),
        (8, ["a", "a", "a"], 1, 2),
        (2, ["a"] * 4, 3, 1),
    ],
)
def test_a_rank_uses_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, hosts: list[str], rank: int, threads: int
) -> None:
    mine = [Cores(list(range(cores)))] * len(hosts)
    assert pool_threads(Group(rank, len(hosts), 0, hosts, mine)) == threads

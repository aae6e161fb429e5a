"""The threads that run user code."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from lazycast.core.workers import Workers, inside, role_of

WAIT_S = 10.0


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(3, "unit-work")
    yield pool
    pool.stop()


def test_tasks_run_at_once_up_to_the_limit_and_not_beyond(workers: Workers) -> None:
    inside_now, release = threading.Semaphore(0), threading.Event()
    running, most = set(), 0
    lock = threading.Lock()
    done = threading.Barrier(1 + 1)
    left = [9]

    def task() -> None:
        nonlocal most
        with lock:
            running.add(threading.get_ident())
            most = max(most, len(running))
        inside_now.release()
        assert release.wait(WAIT_S)
        with lock:
            running.discard(threading.get_ident())
            left[0] -= 1
            last = left[0] == 0
        if last:
            done.wait(WAIT_S)

    for _ in range(9):
        workers.submit(task)
    for _ in range(3):
        assert inside_now.acquire(timeout=WAIT_S)
    assert len(running) == 3
    release.set()
    done.wait(WAIT_S)
    assert most == 3
    assert sum(t.name.startswith("unit-work-") for t in threading.enumerate()) == 3


def test_threads_start_on_first_use_only_as_needed_and_are_daemons(workers: Workers) -> None:
    def ours() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("unit-work")]

    assert ours() == []
    for _ in range(5):  # one after the other: one thread does
        done = threading.Event()
        workers.submit(done.set)
        assert done.wait(WAIT_S)
        finished = threading.Event()
        while workers._under_way:  # the task is over, its bookkeeping may take a moment
            finished.wait(0.001)
    assert [t.name for t in ours()] == ["unit-work-0"]
    assert all(t.daemon for t in ours())


def test_one_worker_runs_tasks_in_the_order_of_submission() -> None:
    pool = Workers(1, "unit-one")
    order: list[int] = []
    for number in range(100):
        pool.submit(lambda number=number: order.append(number))  # type: ignore[misc]
    pool.stop(WAIT_S)
    assert order == list(range(100))


def test_stop_runs_what_is_queued_ends_the_threads_and_is_idempotent() -> None:
    pool = Workers(2, "unit-stop")
    gate, ran = threading.Event(), []
    for number in range(6):
        pool.submit(lambda number=number: (gate.wait(WAIT_S), ran.append(number)))  # type: ignore[misc]
    gate.set()
    pool.stop(WAIT_S)
    assert sorted(ran) == list(range(6))
    assert not [t for t in threading.enumerate() if t.name.startswith("unit-stop")]
    pool.stop()


def test_stopping_without_having_started_anything_is_fine() -> None:
    Workers(2, "unit-idle").stop()


def test_what_is_submitted_after_stop_runs_in_the_submitting_thread() -> None:
    pool = Workers(2, "unit-late")
    pool.stop()
    where: list[int] = []
    pool.submit(lambda: where.append(threading.get_ident()))
    assert where == [threading.get_ident()]


def test_where_no_thread_can_be_started_the_submitting_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Workers(2, "unit-exit")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    where: list[int] = []
    pool.submit(lambda: where.append(threading.get_ident()))
    assert where == [threading.get_ident()]


def test_a_worker_can_stop_its_own_pool() -> None:
    pool = Workers(1, "unit-self")
    done = threading.Event()
    pool.submit(lambda: (pool.stop(), done.set()))  # type: ignore[arg-type, return-value]
    assert done.wait(WAIT_S)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_a_task_that_raises_is_logged_and_does_not_kill_its_worker(
    error: type[BaseException], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # pytest's would only add a warning
    pool = Workers(1, "unit-raise")

    def task() -> None:
        raise error("broken task")

    done = threading.Event()
    with caplog.at_level(logging.ERROR, "lazycast"):
        pool.submit(task)
        pool.submit(done.set)
        alive = done.wait(30.0)
        pool.stop()
    assert alive, "the next task did not run"
    assert "a worker's task raised" in caplog.text
    assert "broken task" in caplog.text


def test_a_task_is_let_go_of_when_it_has_run(workers: Workers) -> None:
    class Payload:
        def __init__(self) -> None:
            self.gone = threading.Event()

        def __del__(self) -> None:
            self.gone.set()

    payload = Payload()
    gone = payload.gone
    workers.submit(lambda payload=payload: None)  # type: ignore[misc]
    del payload
    assert gone.wait(WAIT_S), "an idle worker keeps the last task alive"


def test_role_of_knows_what_this_thread_runs_and_for_whom() -> None:
    a, b = object(), object()
    assert role_of(a) is None
    with inside(a, "materializer"):
        assert (role_of(a), role_of(b)) == ("materializer", None)
        with inside(b, "callback"):
            assert (role_of(a), role_of(b)) == ("materializer", "callback")
            with inside(a, "callback"):
                assert role_of(a) == "callback", "the innermost counts"
            assert role_of(a) == "materializer"
        assert role_of(b) is None
    assert role_of(a) is None


def test_role_of_is_per_thread_and_survives_errors(workers: Workers) -> None:
    owner = object()
    with pytest.raises(ValueError, match="x"), inside(owner, "materializer"):
        raise ValueError("x")
    assert role_of(owner) is None
    seen: list[str | None] = []
    done = threading.Event()
    with inside(owner, "materializer"):
        workers.submit(lambda: (seen.append(role_of(owner)), done.set()))  # type: ignore[arg-type, return-value]
        assert done.wait(WAIT_S)
    assert seen == [None]


def test_of_what_waits_the_highest_priority_runs_first_and_then_what_came_first() -> None:
    pool, release, begun = Workers(1, "unit-work"), threading.Event(), []
    pool.submit(lambda: release.wait(WAIT_S))
    for number, priority in enumerate((0, 5, -1, 5, 0)):
        pool.submit(lambda number=number: begun.append(number), priority)  # type: ignore[misc]
    release.set()
    pool.stop(WAIT_S)
    assert begun == [1, 3, 0, 4, 2]

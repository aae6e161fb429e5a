"""The engine thread."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from lazycast.core.engine_thread import EngineThread
from lazycast.core.waits import Stage, Waits

from .test_waits import Call

WAIT_S = 10.0


class Engine:
    """Everything it calls goes into queues that tests read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waits: Waits[Call] = Waits()
        self.due: queue.Queue[tuple[Stage, object]] = queue.Queue()
        self.turns: queue.Queue[float] = queue.Queue()
        self.failures: queue.Queue[Exception] = queue.Queue()
        self.work_error: Exception | None = None
        self.again_after_s: float | None = None
        self.thread = EngineThread(self.lock, name="unit-engine")
        self.thread.serve(self.waits, on_due=self._on_due, work=self._work, on_failure=self.failures.put)

    def _on_due(self, stage: Stage, call: Call) -> None:
        assert not self.lock.locked(), "called with the lock held"
        self.waits.end(call)
        if call.passed < len(call.stages):
            self.waits.add(call)
        self.due.put((stage, call.name))

    def _work(self) -> float | None:
        assert not self.lock.locked(), "called with the lock held"
        if self.work_error is not None:
            raise self.work_error
        now_s = time.monotonic()
        self.turns.put(now_s)
        after_s, self.again_after_s = self.again_after_s, None
        return None if after_s is None else now_s + after_s


@pytest.fixture
def engine() -> Iterator[Engine]:
    one = Engine()
    yield one
    one.thread.stop()


def test_it_works_when_started_and_when_woken(engine: Engine) -> None:
    engine.thread.start()
    engine.turns.get(timeout=WAIT_S)
    engine.thread.wake()
    engine.turns.get(timeout=WAIT_S)


def test_it_comes_back_when_work_says_so(engine: Engine) -> None:
    engine.again_after_s = 0.5
    engine.thread.start()
    first_s, second_s = engine.turns.get(timeout=WAIT_S), engine.turns.get(timeout=WAIT_S)
    assert second_s >= first_s + 0.5


def test_waits_come_due_without_being_asked_for(engine: Engine) -> None:
    engine.thread.start()
    now_s = time.monotonic()
    with engine.lock:
        earlier = engine.waits.add(Call("w", now_s, ((0.01, Stage.WARN), (0.02, Stage.GIVE_UP))))
    assert earlier
    engine.thread.wake()
    assert engine.due.get(timeout=WAIT_S) == (Stage.WARN, "w")
    assert engine.due.get(timeout=WAIT_S) == (Stage.GIVE_UP, "w")


def test_an_error_ends_the_thread_and_is_told_once(engine: Engine) -> None:
    engine.work_error = ArithmeticError("defect")
    engine.thread.start()
    assert engine.failures.get(timeout=WAIT_S) is engine.work_error
    engine.thread.wake()
    engine.thread.stop()
    assert engine.failures.empty()


def test_stopping_is_idempotent_and_fine_before_the_start(engine: Engine) -> None:
    engine.thread.stop()
    other = Engine()
    other.thread.start()
    other.thread.stop()
    other.thread.stop()
    assert not [t for t in threading.enumerate() if t.name == "unit-engine"]


def test_what_has_come_due_is_not_kept_while_it_sleeps(engine: Engine) -> None:
    class Thing(str):  # a plain one cannot be watched
        pass

    thing = Thing("due")
    watch = weakref.ref(thing)
    engine.thread.start()
    with engine.lock:
        now_s = time.monotonic()
        engine.waits.add(Call(thing, now_s, ((0.0, Stage.GIVE_UP),)))
    engine.thread.wake()
    assert engine.due.get(timeout=WAIT_S)[1] is thing
    del thing
    deadline_s = time.monotonic() + WAIT_S / 2
    while watch() is not None and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert watch() is None

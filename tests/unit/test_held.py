"""For how long a call keeps the interpreter from other threads: measured on calls that do, and that do not."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lazycast.materialize.held import Watch, Watching

_DATA = bytes(range(256)) * 12_000
_CPU_S = 0.1


def holds() -> None:
    """Computes in Python."""
    count, until_s = 0, time.thread_time() + _CPU_S
    while time.thread_time() < until_s:
        count += 1


def frees() -> None:
    """Computes as long, outside the interpreter's lock."""
    until_s = time.thread_time() + _CPU_S
    while time.thread_time() < until_s:
        zlib.compress(_DATA, 9)


def held_s(fn: Callable[[], None]) -> float:
    """Return the least of five: what else this machine does, and the one that it may be a guest of, only adds."""
    return min(map(_once, [fn] * 5))


def _once(fn: Callable[[], None]) -> float:
    with Watch() as watch:
        fn()
    assert watch.held_s is not None
    return watch.held_s


def _beyond_queue(fn: Callable[[], None]) -> float:
    """Return what is left of it without the time in which this thread waited for a core."""
    queued_s = _queued_s()
    return _once(fn) - (_queued_s() - queued_s)


def _queued_s() -> float:
    """How long this thread has waited for a core so far, by the kernel's word."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def test_what_computes_in_python_is_told_from_what_does_not() -> None:
    held, free = held_s(holds), held_s(frees)
    assert held > _CPU_S / 4
    assert free < held / 3


def test_what_another_thread_computes_is_not_the_calls() -> None:
    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            sum(range(1000))

    other = threading.Thread(target=count)
    other.start()
    try:
        # A thread that waits for a core may hold the lock meanwhile: on a busy machine nobody can tell.
        waits = min(_beyond_queue(lambda: time.sleep(_CPU_S)) for _ in range(5))
    finally:
        over.set()
        other.join()
    assert waits < _CPU_S / 4


def test_a_watch_leaves_no_thread_also_if_the_call_raises() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyError), Watch() as watch:
        raise KeyError
    assert watch.held_s is not None
    assert set(threading.enumerate()) <= before, "others may end meanwhile"


def test_without_a_thread_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_threads)
    with Watch() as watch:
        done = True
    assert done
    assert watch.held_s is None


def test_without_the_kernels_word_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazycast.materialize.held._RUN_QUEUE", "/nowhere")
    with Watch() as watch:
        time.sleep(0.01)
    assert watch.held_s is None


def test_the_first_calls_are_watched_and_a_few_later() -> None:
    watching = Watching()
    due = [watching.due("decode") for _ in range(40)]
    assert [call for call, watched in enumerate(due) if watched] == [0, 1, 2, 3, 16, 32]
    assert watching.due("other")


def test_of_many_materializers_the_last_are_kept() -> None:
    watching = Watching()
    for _ in range(5):
        watching.due("first")
    for number in range(300):
        watching.due(str(number))
    assert len(watching._calls) == 256
    assert watching.due("first"), "it is new again"

"""Public methods called in the middle of lazycast's own work: by finalizers, at every lock, and by signal handlers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lazycast import CastFuture, ReentrantCallError
from lazycast.here import here
from tests.unit.test_interrupted_calls import WAIT_S, Lazy, two_ranks

PAYLOAD = np.arange(50_000)  # in shared memory


class Dying:
    """Something whose finalizer calls a method."""

    def __init__(self, method: Callable[[], object], results: list[object]) -> None:
        self._method, self._results = method, results

    def __del__(self) -> None:
        try:
            self._results.append(self._method())
        except Exception as exc:
            self._results.append(exc)


METHODS: dict[str, Callable[[Lazy, CastFuture[Any]], object]] = {
    "stats": lambda lazy, pending: lazy.stats().rank,
    "group_stats": lambda lazy, pending: lazy.stats(group=True) if lazy.is_root else None,
    "has_room": lambda lazy, pending: lazy.has_room(),
    "dump": lambda lazy, pending: lazy.dump()[:8],
    "repr": lambda lazy, pending: repr(pending)[:11],
    "discard": lambda lazy, pending: lazy.discard("dropped"),
    "broadcast_async": lambda lazy, pending: lazy.broadcast_async("late", key="late"),
    "broadcast": lambda lazy, pending: lazy.broadcast("refused", key="refused"),
    "result": lambda lazy, pending: pending.result(),
    "cancel": lambda lazy, pending: pending.cancel(),
    "close": lambda lazy, pending: lazy.close(),
}

# Where it happens: what is replaced, of which object.
PLACES: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "the lane's lock": lambda lane: (lane.asks, "make_call"),
    "the books": lambda lane: (lane.admission.calls, "sent") if lane.asks.is_root else (lane.matching, "arrive"),
    "taking a call off": lambda lane: (lane.asks, "take"),
    "a peer's lock": lambda lane: (lane.near.relay._mesh, "_put"),
    "the arena's lock": lambda lane: (lane.near.relay._mesh._arena, "_reclaim"),
    "the relay's locks": lambda lane: (lane.near.relay._mesh, "send_all"),
    "receiving": lambda lane: (lane, "on_message"),
    "the workers' lock": lambda lane: (lane.engine.performer._workers, "_start_one"),
    "waking": lambda lane: (lane.engine.thread, "wake"),
}


@pytest.mark.parametrize("root", [0, 1], ids=["root", "follower"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_a_finalizer_in_the_middle(method: str, place: str, root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_ranks(root, placement="every") as (lazy, other, thread):
        pending = lazy.broadcast_async(1, key="pending")
        results: list[object] = []
        came = threading.Event()
        where, name = PLACES[place](lazy._lane)
        original = getattr(where, name)

        def hooked(*args: Any, **more: Any) -> Any:
            if not came.is_set() and here.depth:
                came.set()
                Dying(lambda: METHODS[method](lazy, pending), results)  # it goes as soon as it has come
            return original(*args, **more)

        monkeypatch.setattr(where, name, hooked)
        theirs = thread.submit(other.broadcast, PAYLOAD, materialize=np.sum)
        assert lazy.broadcast(PAYLOAD, materialize=np.sum) == theirs.result(WAIT_S) == PAYLOAD.sum()
        monkeypatch.undo()
        if came.is_set():
            check(method, lazy, other, thread, results, pending)
        theirs = thread.submit(other.broadcast, 2)
        assert lazy.broadcast(2) == theirs.result(WAIT_S) == 2
        cast_by(lazy, other, thread, 1, "pending")


def cast_by(lazy: Lazy, other: Lazy, thread: Any, value: object, key: str) -> None:
    """Let the other rank make its call, whatever became of this one's."""
    if other.is_root:
        thread.submit(other.broadcast, value, key=key).result(WAIT_S)
    else:
        thread.submit(other.broadcast_async, key=key).result(WAIT_S)


def check(method: str, lazy: Lazy, other: Lazy, thread: Any, results: list[Any], pending: CastFuture[Any]) -> None:
    [result] = results
    expected = {
        "stats": 0,
        "has_room": True,
        "dump": "lazycast",
        "repr": "<CastFuture",
        "discard": None,
        "cancel": False,
    }
    if method in expected:
        assert result == expected[method]
    elif method == "result" and result == 1:
        assert pending.done(), "there was nothing to wait for"
    elif method in ("broadcast", "result", "close"):
        assert isinstance(result, ReentrantCallError), result
        assert "finalizer" in str(result)
    elif method == "group_stats":
        assert result is None or result.root == 0
    else:
        theirs = thread.submit(other.broadcast, "late", key="late")
        assert result.result(WAIT_S) == theirs.result(WAIT_S) == "late"
    if method == "discard" and not lazy.is_root:
        theirs = thread.submit(lambda: [other.broadcast(value, key="dropped") for value in (1, 2)])
        assert lazy.broadcast(key="dropped") == 2
        assert theirs.result(WAIT_S) == [1, 2]
    if method == "broadcast" and not lazy.is_root:
        theirs = thread.submit(lambda: [other.broadcast(value, key="refused") for value in (1, 2)])
        assert lazy.broadcast(key="refused") == 2, "the call that was refused counts"
        assert theirs.result(WAIT_S) == [1, 2]


@pytest.fixture
def on_alarm() -> Iterator[list[Callable[[], object]]]:
    todo: list[Callable[[], object]] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: todo.pop()())
    yield todo
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("root", [0, 1], ids=["root", "follower"])
@pytest.mark.parametrize("place", ["the lane's lock", "a peer's lock", "the arena's lock", "waking"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("broadcast", "result", "close")])
def test_a_signal_handler_in_the_middle(
    on_alarm: list[Callable[[], object]], method: str, place: str, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs at the end of the work, and may do what it likes then; what waits, or closes, does so."""
    with two_ranks(root, placement="every") as (lazy, other, thread):
        pending = lazy.broadcast_async(1, key="pending")
        results: list[Any] = []
        on_alarm.append(lambda: results.append(METHODS[method](lazy, pending)))
        came = threading.Event()
        where, name = PLACES[place](lazy._lane)
        original = getattr(where, name)

        def hooked(*args: Any, **more: Any) -> Any:
            if not came.is_set() and here.main:
                came.set()
                signal.raise_signal(signal.SIGALRM)
            return original(*args, **more)

        monkeypatch.setattr(where, name, hooked)
        theirs = thread.submit(other.broadcast, PAYLOAD)
        np.testing.assert_array_equal(lazy.broadcast(PAYLOAD), PAYLOAD)
        np.testing.assert_array_equal(theirs.result(WAIT_S), PAYLOAD)
        monkeypatch.undo()
        if came.is_set():
            if method == "cancel":
                assert len(results) == 1
            else:
                check(method, lazy, other, thread, results, pending)
        cast_by(lazy, other, thread, 1, "pending")

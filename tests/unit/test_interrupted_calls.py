"""A call is interrupted at each step that it takes, one after another: whichever it is, the ranks stay in step."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from lazycast import LazyBroadcast, RemoteError
from lazycast.backends.local import LocalBackend
from lazycast.here import here
from lazycast.testing.kit import spelled

WAIT_S = 20.0
#: Of the steps at which signals wait, one in so many is tried: what comes at any of them comes at the end.
EVERY = 29

Lazy = LazyBroadcast[Any, Any]


class Alarm(Exception):
    """What the handlers raise."""


def _alarm(number: int, frame: object) -> None:
    raise Alarm


class Stepper:
    """Raises a signal in lazycast's code in this thread, at step number `at`."""

    def __init__(self, number: int, at: int) -> None:
        self._number, self._left, self.done = number, at, False
        self._waiting = 0

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not frame.f_globals.get("__name__", "").startswith("lazycast."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not self.done and not _before_it_begins(frame) and self._counts():
            self._left -= 1
            if self._left < 0:
                self.done = True
                signal.raise_signal(self._number)
        return self._trace

    def _counts(self) -> bool:
        self._waiting += here.defers
        return not here.defers or self._waiting % EVERY == 0


FACE = {fn.__code__ for fn in (LazyBroadcast.broadcast, LazyBroadcast.broadcast_async, LazyBroadcast.discard)}


def _before_it_begins(frame: FrameType) -> bool:
    """Whether a frame is one of the public methods' own, and has not begun to look after its call.

    What comes there may as well have come before the call: whoever makes it cannot know, nor can we.
    """
    if frame.f_code not in FACE or frame.f_lineno is None:  # a step of the compiler's own, between two lines
        return False
    lines = sorted({line for *_, line in frame.f_code.co_lines() if line is not None})
    return frame.f_lineno <= lines[2]  # of the definition, `counted` and `try`


@pytest.fixture
def handlers() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _alarm)
    yield
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def two_ranks(root: int, **options: Any) -> Iterator[tuple[Lazy, Lazy, concurrent.futures.Executor]]:
    """Rank 0, of this thread, and rank 1, whose calls the executor's thread makes."""
    mine, theirs = LocalBackend.threads(2)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        made = thread.submit(LazyBroadcast, backend=theirs, root=root, timeout_s=WAIT_S, **spelled(options))
        lazy: Lazy = LazyBroadcast(backend=mine, root=root, timeout_s=WAIT_S, **spelled(options))
        other: Lazy = made.result()
        try:
            yield lazy, other, thread
        finally:
            closing = thread.submit(other.close)
            lazy.close()
            closing.result()


def ended(call: Callable[[], object]) -> object:
    """Return the value of a call that another rank may have given up."""
    try:
        return call()
    except (RemoteError, concurrent.futures.CancelledError) as exc:
        return exc


CALLS: dict[str, Callable[[Lazy, Any, Any], object]] = {
    "broadcast": lambda lazy, value, key: lazy.broadcast(value, key=key),
    "broadcast_async": lambda lazy, value, key: lazy.broadcast_async(value, key=key),
    "cancel": lambda lazy, value, key: lazy.broadcast_async(value, key=key).cancel(),
    "wait": lambda lazy, value, key: concurrent.futures.wait([lazy.broadcast_async(value, key=key)], timeout=0),
}


KINDS, KEYED, ROOTS = ("broadcast", "broadcast_async", "cancel"), (False, True), (0, 1)
NUMBERS = (signal.SIGINT, signal.SIGALRM)
#: By default one in so many steps of a call is tried.
STRIDE = 6
#: Each value of one with each of another. Which steps are tried depends on the place: together they try all.
PAIRS = [
    ("broadcast", False, 0, signal.SIGINT),
    ("broadcast_async", True, 0, signal.SIGINT),
    ("cancel", False, 1, signal.SIGINT),
    ("broadcast", True, 1, signal.SIGALRM),
    ("broadcast_async", False, 1, signal.SIGALRM),
    ("cancel", True, 0, signal.SIGALRM),
]
#: (the first step, how many to the next)
STEPS = pytest.mark.parametrize(
    ("first", "stride"), [(0, STRIDE), pytest.param(0, 1, marks=pytest.mark.exhaustive)], ids=["some", "all"]
)


def _combinations() -> Iterator[Any]:
    for place, it in enumerate(PAIRS):
        yield pytest.param(*it, place % STRIDE, STRIDE, id=f"{_name_of(*it)}-some")
    for it in itertools.product(KINDS, KEYED, ROOTS, NUMBERS):
        marks = [pytest.mark.exhaustive, *([] if it in PAIRS else [pytest.mark.long])]
        yield pytest.param(*it, 0, 1, id=f"{_name_of(*it)}-all", marks=marks)


def _name_of(kind: str, keyed: bool, root: int, number: signal.Signals) -> str:
    return f"{kind}-{'keyed' if keyed else 'unkeyed'}-{'follower' if root else 'root'}-{number.name}"


@pytest.mark.parametrize(("kind", "keyed", "root", "number", "first", "stride"), [*_combinations()])
def test_a_call_that_is_interrupted_anywhere_counts(
    handlers: None, kind: str, keyed: bool, root: int, number: int, first: int, stride: int
) -> None:
    handler = signal.getsignal(number)
    with two_ranks(root) as (lazy, other, thread):
        for at in range(first, 1_000_000, stride):
            key, stepper = (f"k{at}" if keyed else None), Stepper(number, at)
            theirs = thread.submit(ended, lambda key=key, at=at: other.broadcast(("interrupted", at), key=key))
            try:
                with stepper:
                    ended(lambda key=key, at=at: CALLS[kind](lazy, ("interrupted", at), key))
            except (Alarm, KeyboardInterrupt):
                pass
            value = theirs.result(WAIT_S)
            assert isinstance(value, Exception) or value == ("interrupted", at)
            for again in (None, key):  # in the order of calls, so the first waits for what may still be pending
                theirs = thread.submit(other.broadcast, (again, at), key=again)
                assert lazy.broadcast((again, at), key=again) == (again, at)
                assert theirs.result(WAIT_S) == (again, at)
            assert (here.depth, here.defers, here.roles) == (0, False, [])
            assert signal.getsignal(number) is handler
            if not stepper.done:
                break
        assert at > 20, "it was interrupted at so many steps"
        assert lazy.stats().pending == other.stats().pending == 0
        assert math.isfinite(lazy.stats().qps)


@STEPS
def test_a_call_that_is_interrupted_while_it_is_held_back_counts(
    handlers: None, monkeypatch: pytest.MonkeyPatch, first: int, stride: int
) -> None:
    with two_ranks(0, max_inflight=1) as (lazy, other, thread):
        held, watch = threading.Event(), lazy._lane.asks.gates.watch

        def watched() -> threading.Lock:
            gate = watch()
            held.set()
            return gate

        monkeypatch.setattr(lazy._lane.asks.gates, "watch", watched)

        def read(at: int) -> tuple[object, object, object]:
            assert held.wait(WAIT_S)
            return other.broadcast(), ended(other.broadcast), other.broadcast()

        times = 0
        for at in range(first, 1_000_000, stride):
            held.clear()
            first, stepper = lazy.broadcast_async(("first", at)), Stepper(signal.SIGALRM, at)
            theirs = thread.submit(read, at)
            with contextlib.suppress(Alarm), stepper:
                ended(lambda at=at: lazy.broadcast(("held", at)))
            times += held.is_set()
            held.set()
            assert first.result(WAIT_S) == ("first", at)
            assert lazy.broadcast(("after", at)) == ("after", at)
            values = theirs.result(WAIT_S)
            assert (values[0], values[2]) == (("first", at), ("after", at))
            assert isinstance(values[1], RemoteError) or values[1] == ("held", at)
            assert lazy.stats().blocking == 0
            if not stepper.done:
                break
        assert times > 20 // stride, "it was held back"


@STEPS
def test_a_discard_that_is_interrupted_anywhere_counts(handlers: None, first: int, stride: int) -> None:
    with two_ranks(1) as (lazy, other, thread):
        for at in range(first, 1_000_000, stride):
            key, stepper = f"k{at}", Stepper(signal.SIGALRM, at)
            with contextlib.suppress(Alarm), stepper:
                lazy.discard(key)
            theirs = thread.submit(lambda key=key: [other.broadcast(value, key=key) for value in ("dropped", "asked")])
            assert lazy.broadcast(key=key) == "asked"
            assert theirs.result(WAIT_S) == ["dropped", "asked"]
            if not stepper.done:
                break
        assert at > 20


LOOKS: dict[str, Callable[[Lazy], object]] = {
    "stats": lambda lazy: lazy.stats(),
    "has_room": lambda lazy: lazy.has_room(),
    "dump": lambda lazy: lazy.dump(),
    "stats of the group": lambda lazy: lazy.stats(group=True),
}


@STEPS
@pytest.mark.parametrize("look", LOOKS)
def test_looking_is_interrupted_without_leaving_anything_locked(
    handlers: None, look: str, first: int, stride: int
) -> None:
    with two_ranks(0) as (lazy, _, thread):
        for at in range(first, 1_000_000, stride):
            stepper = Stepper(signal.SIGALRM, at)
            with contextlib.suppress(Alarm), stepper:
                LOOKS[look](lazy)
            assert not thread.submit(lazy._engine.lock._is_owned).result(WAIT_S)
            assert thread.submit(lazy._engine.lock.acquire, timeout=WAIT_S).result(WAIT_S)
            thread.submit(lazy._engine.lock.release).result(WAIT_S)
            assert (here.depth, here.defers, here.holds) == (0, False, False)
            if not stepper.done:
                break
        assert at > 3


@STEPS
def test_a_group_of_one_is_interrupted_anywhere_and_goes_on(handlers: None, first: int, stride: int) -> None:
    [backend] = LocalBackend.threads(1)
    with LazyBroadcast(lambda text: text.upper(), backend=backend) as lazy:
        for at in range(first, 1_000_000, stride):
            stepper = Stepper(signal.SIGALRM, at)
            with contextlib.suppress(Alarm), stepper:
                lazy.broadcast("a", key="k")
            assert lazy.broadcast("b", key="k") == "B"
            assert lazy.stats().pending == 0
            assert (here.depth, here.defers, here.roles) == (0, False, [])
            if not stepper.done:
                break
        assert at > 20

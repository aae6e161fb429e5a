"""What failed calls leave behind, and what odd exceptions, forks and endless materializers do to others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lazycast import CastTimeoutError, LazyBroadcast, LazycastError, MaterializeError, Tuning, launch

pytestmark = pytest.mark.usefixtures("warm_python")
_FREED_WITHIN_S = 20.0


class Payload:
    """Holds memory; one payload can be told from another."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pixels = np.full(1 << 17, number, np.uint8)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


class Unreadable:
    def __reduce__(self) -> Any:
        return fail, (1,)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def fail(payload: object) -> Any:
    raise ValueError("no")


def same(payload: Any) -> Any:
    return payload


def fail_without_words(payload: object) -> Any:
    raise Unspeakable


def fail_after_many(payload: object) -> Any:
    exc: BaseException | None = None
    for number in range(100_000):
        following = ValueError(number)
        following.__context__, exc = exc, following
    assert exc is not None
    raise exc


def fork(payload: object) -> int:
    return os.getpid() if os.fork() else 0


def sleep(payload: float) -> float:
    time.sleep(payload)
    return payload


Call = Callable[..., Any]
FAILURES: dict[str, Callable[[Call], Any]] = {
    "none": lambda call: call(Payload(1), materialize=same),
    "materialize": lambda call: call(Payload(2), materialize=fail),
    "encode": lambda call: call(Unpicklable()),
    "decode": lambda call: call(Unreadable()),
    "time out": lambda call: call(0.5, materialize=sleep, timeout_s=0.1),
    "late": lambda call: call(Payload(3), timeout_s=-1.0),
    "refused": lambda call: call(Payload(4), materialize=3),
    "key": lambda call: call(Payload(5), key=1.5),
}


async def _awaited(future: Any, seen: list[Any]) -> None:
    try:
        try:
            await future
        finally:
            del future  # as an engine does: else this very frame would keep the error's future
    except LazycastError as exc:
        seen.append(weakref.ref(exc))


def _fail_once(lazy: LazyBroadcast[Any, Any], make: Callable[[Call], Any], how: str, seen: list[Any]) -> None:
    try:
        if how == "blocking":
            make(lazy.broadcast)
            return
        future = make(lazy.broadcast_async)
        seen.append(weakref.ref(future))
        try:
            if how == "awaited":
                asyncio.run(_awaited(future, seen))
            else:
                future.result()
        finally:
            del future
    except LazycastError as exc:
        seen.append(weakref.ref(exc))
    except (TypeError, ValueError):  # of the call itself; builtins have no weak references
        return


def _left_over(placement: str) -> list[str]:
    """Fail in each way without the collector; return what was left of it."""
    gc.disable()
    left = []
    with LazyBroadcast[Any, Any](placement=placement) as lazy:
        for name, make in FAILURES.items():
            for how in ("blocking", "async", "awaited"):
                seen: list[Any] = []
                _fail_once(lazy, make, how, seen)
                deadline_s = time.monotonic() + _FREED_WITHIN_S
                while any(ref() is not None for ref in seen) and time.monotonic() < deadline_s:
                    time.sleep(0.01)  # workers and the engine let go of it in their own time
                left += [f"{name}, {how}: {type(thing).__name__}" for ref in seen if (thing := ref()) is not None]
                seen.clear()
        deadline_s = time.monotonic() + _FREED_WITHIN_S
        while lazy.stats().shared_slots and time.monotonic() < deadline_s:
            time.sleep(0.01)
        left += ["slots"] * lazy.stats().shared_slots
        lazy.broadcast(None)
    return left


@pytest.mark.parametrize(
    "placement", ["shard", *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("every", "root"))]
)
def test_a_failed_call_is_freed_without_the_collector(placement: str) -> None:
    assert launch(_left_over, ranks=2, args=(placement,), timeout_s=200) == [[], []]


def _refuse_many() -> list[str]:
    gc.disable()
    errors = []
    # A root that is ahead holds what the other has not read: a few casts have to fit.
    tuning = Tuning(arena_nbytes=32 << 20, max_inflight=2)
    with LazyBroadcast[Any, Any](tuning=tuning, placement="every") as lazy:
        payload = np.zeros(4 << 20, np.uint8) if lazy.is_root else None
        for _ in range(100):
            try:
                lazy.broadcast(payload, materialize=fail)
            except LazycastError as exc:
                errors.append(type(exc).__name__)
    return errors


def test_what_failed_makes_room_for_what_comes() -> None:
    assert launch(_refuse_many, ranks=2, timeout_s=200) == [["MaterializeError"] * 100] * 2


def _odd_errors() -> list[str]:
    texts = []
    with LazyBroadcast[Any, Any](placement="every") as lazy:
        for fn in (fail_without_words, fail_after_many):
            with pytest.raises(MaterializeError) as caught:
                lazy.broadcast(1, materialize=fn)
            texts.append(str(caught.value))
        assert lazy.broadcast(7) == 7
    return texts


def test_exceptions_that_bite_are_told_like_others() -> None:
    for without_words, after_many in launch(_odd_errors, ranks=2, timeout_s=200):
        assert "Unspeakable: <its text cannot be had: SystemExit>" in without_words
        assert "ValueError: 99999" in after_many


def _fork_in_a_materializer() -> tuple[int, list[int]]:
    with LazyBroadcast[Any, Any](placement="every") as lazy:
        mine = lazy.broadcast(1, materialize=fork)
        codes = []
        with contextlib.suppress(ChildProcessError):
            while True:
                codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
        assert lazy.broadcast(2) == 2
    return mine == os.getpid(), codes


def test_a_child_that_comes_back_from_a_materializer_ends(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(_fork_in_a_materializer, ranks=2, timeout_s=200) == [(True, [70])] * 2
    assert len(re.findall("came back from it and is ended here", capfd.readouterr().err)) == 2


def _behind_a_long_one() -> str:
    with LazyBroadcast[Any, Any](placement="every") as lazy:
        long = lazy.broadcast_async(3.0, materialize=sleep, key="long")
        behind = lazy.broadcast_async(0.0, materialize=sleep, key="behind", timeout_s=0.5)
        with pytest.raises(CastTimeoutError) as caught:
            behind.result()
        dump = lazy.dump()
        assert long.result() == 3.0
    assert "casts wait for a worker of rank" in dump or "1 casts" not in dump
    return str(caught.value)


def test_a_time_out_names_the_cast_that_holds_the_worker() -> None:
    told = launch(_behind_a_long_one, ranks=2, timeout_s=200)
    assert any(re.search(r"waits for a worker of rank \d, held by cast #1 for \d", text) for text in told), told

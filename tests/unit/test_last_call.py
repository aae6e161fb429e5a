"""A call that is made when its cast is decided, and the root closes in the same moment."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from lazycast import LazyBroadcast, launch

LIMIT_S = 20.0


def wait_until(is_so: Any) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def _asked_while_the_root_closes(agree: bool, has_met: threading.Event) -> Any:
    with LazyBroadcast(timeout_s=LIMIT_S, agree=agree) as lazy:
        if lazy.is_root:
            value = lazy.broadcast("value")
            assert has_met.wait(LIMIT_S)
            return value
        lane: Any = lazy._lane
        after_match = lane.matching._after_match

        def later(ask: Any, *met: Any) -> None:
            """Between the call's having met its cast and its getting the value: the root has closed."""
            has_met.set()
            wait_until(lambda: lane.casts.end.failure is not None)
            for _ in range(50):
                if ask.taken:
                    break
                time.sleep(0.01)
            after_match(ask, *met)

        lane.matching._after_match = later
        wait_until(lambda: lazy.stats().unasked == 1)
        wait_until(lambda: not lane.casts.agreeing and lane.matching.mailbox.arrivals()[0].final is not None)
        return lazy.broadcast()


@pytest.mark.parametrize("agree", [True, False])
def test_it_gets_the_value(agree: bool) -> None:
    args = agree, threading.Event()
    assert launch(_asked_while_the_root_closes, ranks=2, backend="threads", args=args) == ["value"] * 2

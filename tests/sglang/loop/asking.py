"""What a test asks of schedulers, and how it waits for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sglang.srt.managers import io_struct as messages
from watched import Watch

from lazycast.tools.bench.sglang_loop.fleet import Answer, Fleet
from lazycast.tools.bench.sglang_loop.prompts import Prompts

LIMIT_S = 30.0


def send(fleet: Fleet, prompts: Prompts, *requests: Any) -> list[str]:
    for request in requests:
        assert fleet.answer(request.rid) == Answer(), f"another test of these schedulers has asked for {request.rid}"
        fleet.send(prompts.share(request))
    return [request.rid for request in requests]


def until(fleet: Fleet, condition: Callable[[], bool], what: str) -> None:
    """Let the schedulers work until something is so; what they say beside tokens is dropped."""
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        fleet.receive(0.02)
        fleet.check()
        assert time.monotonic() < end_s, f"not within {LIMIT_S:g} s: {what}\n{fleet.log()}"


def said_of(fleet: Fleet, kind: type) -> Any:
    """Return the next control output of a kind."""
    end_s = time.monotonic() + LIMIT_S
    while not (found := [one for one in fleet.receive(0.02) if isinstance(one, kind)]):
        fleet.check()
        assert time.monotonic() < end_s, f"no {kind.__name__} within {LIMIT_S:g} s\n{fleet.log()}"
    return found[0]


def flush(fleet: Fleet) -> None:
    """Let the schedulers forget the prompts they know, once they have nothing to do."""
    fleet.send(messages.FlushCacheReqInput(timeout_s=LIMIT_S))
    assert said_of(fleet, messages.FlushCacheReqOutput).success, f"they have something to do\n{fleet.log()}"


def put_aside(fleet: Fleet, watch: Watch, prompts: Prompts, *rids: str, side: int = 40) -> None:
    """Send requests with an image each, and wait until all ranks have put them aside."""
    for n, rid in enumerate(rids):
        send(fleet, prompts, prompts.images(rid, [1000 + n], side=side))
    until(fleet, lambda: all(set(rids) <= watch.aside(rank) for rank in range(2)), f"{rids} aside")


def works(fleet: Fleet, prompts: Prompts, rid: str, seed: int) -> None:
    """A request with an image is answered."""
    send(fleet, prompts, prompts.images(rid, [seed]))
    assert fleet.wait([rid], LIMIT_S)[rid].reason == {"type": "length", "length": 8}

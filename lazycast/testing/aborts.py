"""Aborts: a root takes back what it has sent, nobody makes what nobody wants, and urgent casts are made first."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import lazycast
from lazycast.errors import RemoteError
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same, this_rank

#: What materializers were called with, by rank: ranks may be threads of one process. Payloads are unique.
_made: dict[int, list[str]] = {}
_told: set[tuple[int, str]] = set()  # who has learned that nobody wants what it makes


def noted(payload: str) -> str:
    """Make a payload's value, and note that."""
    _made.setdefault(this_rank(), []).append(payload)
    return payload


def until_cancelled(payload: str) -> str:
    """Go on until nobody wants it."""
    noted(payload)
    wait_until(lazycast.cancelled, f"{payload} has begun and was not cancelled")
    _told.add((this_rank(), payload))
    return payload


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until something is so."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        check(time.monotonic() < deadline_s, what)
        time.sleep(0.002)


def made(rank: Rank) -> list[str]:
    return _made.get(rank.rank, [])


@behaviour()
def a_cast_that_was_sent_is_withdrawn_everywhere(rank: Rank) -> None:
    """What has not begun never begins, on any rank and with every placement, with and without agreement."""
    for placement, agree in (("every", True), ("every", False), ("shard", True), ("shard", False), ("demand", True)):
        gate, unwanted = threading.Event(), f"{rank.size} ranks, {placement}, agree={agree}"
        options: dict[str, Any] = {"placement": placement, "agree": agree}
        with rank.executor(1) as executor, rank.lazy(noted, executor=executor, **options) as lazy:
            held = executor.submit(gate.wait, TIMEOUT_S)  # no materializer can begin
            rank.meet()
            future = lazy.broadcast_async(unwanted, key="k")
            if lazy.is_root:
                wait_until(lambda: lazy.stats().casts == 1, f"{unwanted}: it was not sent")
            rank.meet()
            if lazy.is_root:
                check(future.cancel(), f"{unwanted}: cancel() said no")
                check(future.cancel(), f"{unwanted}: a second cancel() said no")
            concurrent.futures.wait([future], timeout=TIMEOUT_S)
            check(future.cancelled(), f"{unwanted}: {future!r} was not cancelled")
            rank.meet()
            gate.set()
            held.result()
            same(lazy.broadcast("wanted", key="k"), "wanted")
            rank.meet()
            check(unwanted not in made(rank), f"{unwanted}: it was made")
            same(lazy.stats().cancelled, 1, f"{unwanted}: cancelled")


@behaviour()
def of_slow_casts_that_are_cancelled_only_those_that_run_are_made(rank: Rank) -> None:
    for placement in ("every", "shard", "root", "demand"):
        gate, tag = threading.Event(), f"{rank.size} ranks, {placement}"
        with rank.executor(1) as executor, rank.lazy(noted, executor=executor, placement=placement) as lazy:
            held = executor.submit(gate.wait, TIMEOUT_S)
            rank.meet()
            futures = [lazy.broadcast_async(f"{tag}, {n}", key=n) for n in range(12)]
            rank.meet()
            for future in futures[4:] if lazy.is_root else []:
                check(future.cancel(), f"{tag}: cancel() said no")
            concurrent.futures.wait(futures[4:], timeout=TIMEOUT_S)
            gate.set()
            held.result()
            for n, future in enumerate(futures[:4]):
                same(future.result(TIMEOUT_S), f"{tag}, {n}")
            check(all(future.cancelled() for future in futures[4:]), f"{tag}: not all were cancelled")
            same(lazy.broadcast("next", key=12), "next")
            rank.meet()
            mine = [payload for payload in made(rank) if payload.startswith(f"{tag}, ")]
            check(set(mine) <= {f"{tag}, {n}" for n in range(4)}, f"made: {mine}")


@behaviour()
def a_materializer_learns_that_nobody_wants_its_value(rank: Rank) -> None:
    check(not lazycast.cancelled(), "outside of a materializer")
    for agree in (True, False):
        unwanted = f"{rank.size} ranks, agree={agree}"
        with rank.executor(1) as executor, rank.lazy(executor=executor, placement="every", agree=agree) as lazy:
            future = lazy.broadcast_async(unwanted, materialize=until_cancelled, key="k")
            wait_until(lambda: unwanted in made(rank), "it has not begun")  # noqa: B023
            rank.meet()
            if lazy.is_root:
                check(future.cancel(), "cancel() said no")
            wait_until(lambda: (rank.rank, unwanted) in _told, "it was not told")  # noqa: B023
            concurrent.futures.wait([future], timeout=TIMEOUT_S)
            check(future.cancelled(), f"{future!r} was not cancelled")
            same(lazy.broadcast("next", key="k"), "next")


@behaviour(min_size=2)
def a_rank_that_gives_up_stops_its_own_work_alone(rank: Rank) -> None:
    with rank.executor(1) as executor, rank.lazy(executor=executor, placement="every", agree=False) as lazy:
        mine = f"{rank.size} ranks, given up"
        future = lazy.broadcast_async(mine, materialize=until_cancelled, key="k")
        wait_until(lambda: mine in made(rank), "it has not begun")
        if not lazy.is_root:
            check(future.cancel(), "a rank that is not the root may always give up")
            wait_until(lambda: (rank.rank, mine) in _told, "it was not told")
        rank.meet()
        if lazy.is_root:
            check((rank.rank, mine) not in _told, "the root was told that others have given up")
            check(future.cancel(), "cancel() said no")
        rank.meet()
        same(lazy.broadcast("next", key="k"), "next")


@behaviour(min_size=2)
def a_cast_that_has_its_verdict_is_not_withdrawn(rank: Rank) -> None:
    with rank.lazy() as lazy:
        future = lazy.broadcast_async("x", key="k")
        same(future.result(TIMEOUT_S), "x")
        check(not future.cancel(), "a cast that everybody has was withdrawn")
        same(future.result(), "x")


@behaviour(min_size=2)
def what_is_withdrawn_holds_no_bytes(rank: Rank) -> None:
    """Ranks that never ask for what was withdrawn hold the root back by its count alone."""
    nbytes, gate = 1 << 20, threading.Event()
    options: dict[str, Any] = {"max_inflight_nbytes": 2 * nbytes, "placement": "every"}
    with rank.executor(1) as executor, rank.lazy(len, executor=executor, **options) as lazy:
        held = executor.submit(gate.wait, TIMEOUT_S)
        rank.meet()
        if lazy.is_root:
            for n in range(8):
                future = lazy.broadcast_async(bytearray(nbytes), key=n, block=False)
                wait_until(lambda: lazy.stats().casts == n + 1, "it was not sent")  # noqa: B023
                check(future.cancel(), "cancel() said no")
        rank.meet()
        gate.set()
        held.result()
        same(lazy.broadcast(b"next", key=8), 4)
        if not lazy.is_root:
            for n in range(8):
                lazy.discard(n)


_gates: dict[str, threading.Event] = {}
_order: dict[str, list[str]] = {}


def in_turn(payload: tuple[str, str]) -> str:
    """Note when it began; the first ones keep the workers busy until all others are there."""
    tag, name = payload
    _order.setdefault(tag, []).append(name)
    if name == "first":
        check(_gates.setdefault(tag, threading.Event()).wait(TIMEOUT_S), "the gate stayed shut")
    return name


@behaviour()
def urgent_casts_are_made_first(rank: Rank) -> None:
    """On the root, and on an owner: one rank makes them all, on as many workers as it has, at most one a core."""
    workers = os.cpu_count() or 1
    names = ["first"] * workers + [f"ordinary {n}" for n in range(4 * workers)] + ["urgent 0", "urgent 1"]
    for placement in ("root", "shard"):
        tag, maker = f"{rank.size} ranks, {placement}", 0 if placement == "root" else rank.last
        gate = _gates.setdefault(tag, threading.Event())
        owners = None if placement == "root" else [maker]
        with rank.lazy(in_turn, placement=placement, owners=owners, agree=False, max_inflight=1000) as lazy:
            if len(lazy.stats().hosts) > 1 and placement == "shard":  # each host makes its own
                gate.set()
            futures = [
                lazy.broadcast_async((tag, name), key=key, priority={"f": 9, "u": 5, "o": 0}[name[0]])
                for key, name in enumerate(names)
            ]
            if rank.rank == maker:
                queued = placement == "root" and rank.size > 1  # else it is sent, and waits where it is made
                wait_until(
                    lambda: (lazy.stats().queue.count if queued else lazy.stats().casts) == len(names),  # noqa: B023
                    "not all have come",
                )
            rank.meet()
            shut = not gate.is_set()
            rank.meet()
            gate.set()
            for name, future in zip(names, futures, strict=True):
                same(future.result(TIMEOUT_S), name)
            if rank.rank == maker and shut:
                begun = [name for name in _order[tag] if name != "first"]
                last = max(begun.index("urgent 0"), begun.index("urgent 1"))
                check(last < 2 + workers, f"made as {begun}")
        rank.meet()


@behaviour()
def a_priority_that_is_none_is_refused_and_counts(rank: Rank) -> None:
    with rank.lazy() as lazy:
        wrong: dict[Any, tuple[type[Exception], str]] = {
            "high": (TypeError, "priority is an int, got str"),
            1 << 40: (ValueError, "priority has 32 bits"),
        }
        for priority, (kind, text) in wrong.items():
            error = kind if lazy.is_root else RemoteError
            raises(error, text, lambda: lazy.broadcast("x", priority=priority))  # noqa: B023
        same(lazy.broadcast("y", priority=-3), "y")

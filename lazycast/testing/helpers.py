"""Processes that are no ranks make the values: on each host those of its leader."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np

from lazycast.errors import MaterializeError
from lazycast.materialize.each import Each
from lazycast.materialize.staged import Staged
from lazycast.net.host.hosts import leader
from lazycast.options import Helpers
from lazycast.testing.kit import Rank, behaviour, check, raises, same


def made(payload: Any) -> dict[str, Any]:
    """A value that says who made it, with an array of its own."""
    return {"pid": os.getpid(), "leader": os.getppid(), "large": np.zeros(100_000), "payload": payload}


def dies(payload: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    return payload


def prepared(payload: Any) -> int:
    return os.getpid()


def finished(payload: Any, hint: int) -> tuple[int, int, Any]:
    return os.getpid(), hint, payload


@behaviour()
def helpers_of_its_leader_make_what_a_host_gets(rank: Rank) -> None:
    for agree in (True, False):
        with rank.lazy(made, placement=Helpers(1), agree=agree, root=rank.last) as lazy:
            host = next(host for host in lazy.stats().hosts if rank.rank in host)
            first = leader(host, rank.last) == rank.rank
            for payload in ("small", np.arange(60_000)):
                value = lazy.broadcast(payload if lazy.is_root else None)
                same(value["payload"], payload)
                check(value["pid"] != os.getpid(), "a rank has made it")
                check(not first or value["leader"] == os.getpid(), "another rank's helper has made it")
                value["large"] += rank.rank
                check(bool((value["large"] == rank.rank).all()), "another rank's write is seen")
            rank.meet()
            check((lazy.stats().helpers == 1) == first, "others than leaders have helpers")


def tripled(item: int) -> dict[str, Any]:
    """An item's result that says who made it, with an array of its own."""
    if item < 0:
        raise ValueError("bad item")
    return {"pid": os.getpid(), "leader": os.getppid(), "large": np.full(20_000, 3 * item)}


@behaviour()
def the_helpers_of_a_host_share_the_items_of_one_request(rank: Rank) -> None:
    for agree in (True, False):
        with rank.lazy(Each(tripled), placement=Helpers(2), agree=agree, root=rank.last) as lazy:
            host = next(host for host in lazy.stats().hosts if rank.rank in host)
            first = leader(host, rank.last) == rank.rank
            for items in ([], [5], list(range(11))):
                values = lazy.broadcast(items if lazy.is_root else None)
                same([int(value["large"][-1]) for value in values], [3 * item for item in items], "in order")
                check(all(value["pid"] != os.getpid() for value in values), "a rank has made one")
                check(
                    not first or all(v["leader"] == os.getpid() for v in values), "another rank's helper has made one"
                )
                for value in values:
                    value["large"] += rank.rank
                kept = [int(value["large"][0]) - rank.rank for value in values]
                same(kept, [3 * item for item in items], "another rank's write is seen")
            wrong = "raised .*at item 2 .*bad item"
            raises(MaterializeError, wrong, lambda: lazy.broadcast([1, 2, -3, 4] if lazy.is_root else None))
            same(len(lazy.broadcast([1, 2] if lazy.is_root else None)), 2, "the next cast")


@behaviour()
def a_payload_that_kills_its_helpers_fails_everybody_and_the_next_cast_works(rank: Rank) -> None:
    with rank.lazy(Staged(prepared, finished), placement=Helpers(1)) as lazy:
        told = "materializer 'dies' was not done: helper 0 .* was killed by SIGKILL, and then helper 0"
        raises(MaterializeError, told, lambda: lazy.broadcast(1, materialize=dies))
        pid, hint, payload = lazy.broadcast("next")
        same(payload, "next")
        same(pid, os.getpid(), "who has run the second stage")
        check(hint != os.getpid(), "a rank has run the first stage")


def filled(payload: int) -> np.ndarray[Any, Any]:
    return np.full(800_000, payload, np.uint8)


@behaviour()
def values_that_the_arena_has_no_room_for_are_each_casts_own(rank: Rank) -> None:
    """They lie in memory of their own, on the leader too."""
    with rank.lazy(filled, placement=Helpers(1), arena_nbytes=1 << 20) as lazy:
        held = []
        for payload in (1, 2):  # the first fills the arena
            held.append(lazy.broadcast(payload if lazy.is_root else None))
            same(held[-1], filled(payload), f"value {payload}")
        for payload, value in enumerate(held, 1):
            same(value, filled(payload), f"value {payload}, which was held")
        rank.meet()

"""Back-pressure: a root that is ahead of a rank waits, says for whom, and keeps the order of calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from functools import partial
from typing import Any

import numpy as np

from lazycast.errors import CastTimeoutError, KeyInUseError, RemoteError, WouldBlockError
from lazycast.testing.aborts import wait_until
from lazycast.testing.kit import TIMEOUT_S, TOLD_S, Rank, behaviour, check, raises, same


@behaviour(min_size=2)
def back_pressure_holds_the_root_and_names_who_does_not_read(rank: Rank) -> None:
    by_count: dict[str, Any] = {"max_inflight": 4}
    by_nbytes: dict[str, Any] = {"max_inflight_nbytes": 4 * 80_000}
    for options in (by_count, by_nbytes):
        with rank.lazy(agree=False, **options) as lazy:
            if lazy.is_root:
                futures = []
                for n in range(4):
                    check(lazy.has_room(), f"the call of k{n} would not wait")
                    futures.append(lazy.broadcast_async(np.full(10_000, n), key=f"k{n}"))
                for future in futures:
                    future.result()
                check(not lazy.has_room(), "the next call would wait")
                never = partial(lazy.broadcast_async, "never cast", key="k4", block=False)
                exc: Exception = raises(WouldBlockError, "max_inflight.*rank 1 has not asked for 4 casts", never)
                check(isinstance(exc, BlockingIOError), "it is no BlockingIOError")
                exc = raises(
                    CastTimeoutError,
                    r"max_inflight.*rank 1 has not asked for 4 casts: #1 key 'k0', #2 key 'k1'",
                    partial(lazy.broadcast_async, np.full(10_000, 4), key="k4", timeout_s=0.5),
                )
                check(isinstance(exc, TimeoutError), "it is no TimeoutError")
                same(lazy.stats().blocked.count, 1, "waits")
                check(lazy.stats().blocked.max_s >= 0.5, "the wait was not counted whole")
                same(lazy.stats().blocking, 0, "waits that go on")
                rank.meet()
            else:
                rank.meet()
                for n in range(4):
                    same(lazy.broadcast(key=f"k{n}"), np.full(10_000, n))
                raises(CastTimeoutError, "max_inflight", partial(lazy.broadcast, key="k4"))
            same(lazy.broadcast("next", timeout_s=math.inf), "next")
            deadline_s = time.monotonic() + TIMEOUT_S
            while not lazy.has_room():  # reads are told a little later
                check(time.monotonic() < deadline_s, "all is read, and there is no room")
                time.sleep(0.01)


@behaviour(min_size=2)
def blocking_asks_too_far_apart_time_out_with_names(rank: Rank) -> None:
    """The others ask first for what the root can only send after they have asked for something else."""
    with rank.lazy(agree=False, max_inflight=2) as lazy:
        if lazy.is_root:
            for n in range(2):
                lazy.broadcast(n, key=n)
            raises(
                CastTimeoutError, "rank 1.*#1 key 0, #2 key 1", lambda: lazy.broadcast(2, key=2, timeout_s=2 * TOLD_S)
            )
        else:
            raises(
                CastTimeoutError,
                "max_inflight=2.*rank 1.*#1 key 0, #2 key 1.*missing: rank 0",
                lambda: lazy.broadcast(key=2, timeout_s=TOLD_S),
            )
        rank.meet()
        if not lazy.is_root:
            for n in range(2):
                same(lazy.broadcast(key=n), n)
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def a_time_out_under_back_pressure_with_long_keys_is_only_a_time_out(rank: Rank) -> None:
    """What the root says of it must fit into a message, however many keys and ranks there are."""
    keys = [bytes([255, n]) * 512 for n in range(8)]
    with rank.lazy(agree=False, max_inflight=8) as lazy:
        if lazy.is_root:
            for key in keys:
                lazy.broadcast(key, key=key)
        rank.meet()
        if not lazy.is_root:
            raises(CastTimeoutError, "max_inflight=8", lambda: lazy.broadcast(key="none", timeout_s=TOLD_S))
        rank.meet()
        for key in [] if lazy.is_root else keys:
            same(lazy.broadcast(key=key), key)
        if lazy.is_root:
            lazy.broadcast("consumed by the ask that timed out", key="none")
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def held_calls_that_end_are_told_at_once(rank: Rank) -> None:
    """A call that waits for room and is cancelled or times out frees those who wait for it."""
    with rank.lazy(agree=False, max_inflight_nbytes=1000, max_inflight=8) as lazy:
        rank.meet()
        if lazy.is_root:
            ready = threading.Event()

            def blocked() -> None:
                ready.set()
                raises(CastTimeoutError, "max_inflight_nbytes", lambda: lazy.broadcast_async(2, key=2, timeout_s=0.5))

            lazy.broadcast(np.zeros(5000), key=1)
            thread = threading.Thread(target=blocked)
            thread.start()
            thread.join(TIMEOUT_S)
            check(ready.is_set() and not thread.is_alive(), "the call was not held or did not end")
            rank.meet()
        else:
            began_s = time.monotonic()
            raises(CastTimeoutError, "max_inflight_nbytes", lambda: lazy.broadcast(key=2))
            check(time.monotonic() - began_s < TIMEOUT_S / 2, "it was told late")
            rank.meet()
            same(lazy.broadcast(key=1), np.zeros(5000))
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def a_key_in_use_does_not_overtake_the_call_it_collides_with(rank: Rank) -> None:
    with rank.lazy(agree=False, max_inflight=1) as lazy:
        if lazy.is_root:
            lazy.broadcast("fills the window", key="w")
            first = threading.Thread(target=lambda: lazy.broadcast("first", key="k"))
            first.start()
            while "waiting for room" not in lazy.dump():
                time.sleep(0.002)
            raises(KeyInUseError, "'k'", lambda: lazy.broadcast("second", key="k"))
            rank.meet()
            first.join(TIMEOUT_S)
        else:
            rank.meet()
            same(lazy.broadcast(key="w"), "fills the window")
            same(lazy.broadcast(key="k"), "first")
            raises(RemoteError, "KeyInUseError", lambda: lazy.broadcast(key="k"))
        same(lazy.broadcast("third", key="k"), "third")


@behaviour(min_size=2)
def beyond_the_limit_a_call_is_refused_if_that_is_wanted(rank: Rank) -> None:
    with rank.lazy(max_inflight=2, beyond="refuse") as lazy:
        rank.meet()
        if lazy.is_root:
            for key in (1, 2):
                lazy.broadcast(key, key=key)
            for call in (lazy.broadcast, lazy.broadcast_async, lambda n: asyncio.run(lazy.cast(n))):
                raises(WouldBlockError, "max_inflight=2", lambda call=call: call(3))  # type: ignore[misc]
            check(not lazy.has_room(), "there is no room")
        rank.meet()
        if not lazy.is_root:
            same([lazy.broadcast(key=key) for key in (1, 2)], [1, 2])
        rank.meet()
        if lazy.is_root:
            wait_until(lazy.has_room, "there is room")
        same(lazy.broadcast("what was refused did not count"), "what was refused did not count")


@behaviour(min_size=2)
def beyond_the_limit_the_oldest_that_nobody_wants_is_dropped(rank: Rank) -> None:
    """Every rank gets the newest ones, in order; whoever asks for an older one is told; memory is free again."""
    options: tuple[dict[str, Any], ...] = (
        {"placement": "every"},
        {"placement": "every", "agree": False},
        {"placement": "shard"},
        {"placement": "demand"},
    )
    for option in options:
        with rank.lazy(max_inflight=4, beyond="drop", **option) as lazy:
            rank.meet()
            if lazy.is_root:
                for n in range(20):
                    lazy.broadcast_async(np.full(20_000, n), key=f"k{n}").exception()
                    check(lazy.has_room(), "what nobody has asked for makes room")
                same(lazy.stats().aborted, 16, f"{option}: casts that were dropped")
            rank.meet()
            if not lazy.is_root:
                wait_until(lambda: lazy.stats().aborted == 16, f"{option}: it was not told")
                raises(concurrent.futures.CancelledError, "", lambda: lazy.broadcast(key="k3"))
                taken = [lazy.next(timeout_s=TIMEOUT_S) for _ in range(4)]
                same([came and came[0] for came in taken], [f"k{n}" for n in range(16, 20)], f"{option}: what is left")
                for n, came in enumerate(taken, 16):
                    assert came is not None
                    same(came[1].result(), np.full(20_000, n))
                same(lazy.next(timeout_s=0), None, "nothing more has come")
                del taken, came
            rank.meet()
            if lazy.is_root:
                wait_until(lambda: lazy.stats().shared_slots == 0, f"{option}: memory is held")
            same(lazy.broadcast("next", key="k4"), "next", "the place in line of what was dropped was used up")


@behaviour(min_size=2)
def a_burst_beyond_the_limit_waits_for_no_rank(rank: Rank) -> None:
    """Also where the first calls are not sent yet when there is no room for the next one."""
    with rank.lazy(max_inflight=2, beyond="drop") as lazy:
        rank.meet()
        if lazy.is_root:
            for n in range(10):
                lazy.broadcast_async(np.full(200_000, n), key=n, timeout_s=TIMEOUT_S / 4)
        rank.meet()
        if not lazy.is_root:
            # That they are withdrawn is told first, and then that nobody is to ask for them.
            wait_until(lambda: (seen := lazy.stats()).unasked == 2 and seen.aborted == 8, "it was not told")
            taken = [lazy.next(timeout_s=TIMEOUT_S) for _ in range(2)]
            same([came and came[0] for came in taken], [8, 9], "what is left")
            del taken
        rank.meet()


@behaviour(min_size=2)
def what_somebody_has_asked_for_is_not_dropped(rank: Rank) -> None:
    with rank.lazy(max_inflight=2, beyond="drop", agree=False) as lazy:
        futures = []
        if rank.rank == rank.last:
            futures = [lazy.broadcast_async(key=key) for key in ("a", "b")]
        rank.meet()
        if lazy.is_root:
            for key in ("a", "b"):
                lazy.broadcast(key, key=key)
        rank.meet()
        same([future.result() for future in futures], ["a", "b"] if futures else [])
        rank.meet()
        if lazy.is_root and rank.size > 2:  # the others have not asked
            wait_until(lambda: not lazy.has_room(), "what one rank has asked for is not to be dropped")
            raises(WouldBlockError, "max_inflight=2", lambda: lazy.broadcast_async("c", key="c", block=False))
        rank.meet()
        if not lazy.is_root and rank.rank != rank.last:
            same([lazy.broadcast(key=key) for key in ("a", "b")], ["a", "b"])
        same(lazy.broadcast("c", key="c"), "c")

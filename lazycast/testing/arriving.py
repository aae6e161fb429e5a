"""Taking what has come: a rank that does not know the root's keys gets every cast, once, in the root's order."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

import numpy as np

from lazycast.errors import ClosedError, MaterializeError
from lazycast.testing.aborts import wait_until
from lazycast.testing.failures import identity
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same, this_rank


def refuse(payload: object) -> object:
    raise ValueError(f"{payload!r} is refused")


@behaviour(min_size=2)
def what_comes_is_taken_in_the_roots_order(rank: Rank) -> None:
    names: list[str | None] = ["a", None, "b", "a", None, "c"]
    for agree in (True, False):
        with rank.lazy(agree=agree) as lazy:
            if lazy.is_root:
                for n, key in enumerate(names):
                    lazy.broadcast_async(n, key=key, materialize=refuse if n == 4 else None).exception()
                raises(ValueError, "next.. is for the other ranks", lambda: lazy.next())
            else:
                got = [lazy.next(timeout_s=TIMEOUT_S) for _ in names]
                same([came and came[0] for came in got], names, "keys")
                for n, came in enumerate(got):
                    assert came is not None
                    if n == 4:
                        raises(MaterializeError, "4 is refused", came[1].result)
                    else:
                        same(came[1].result(), n)
                same(lazy.next(timeout_s=0), None, "nothing has come")
                same(lazy.next(timeout_s=0.01), None, "nothing came")
            rank.meet()
            same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def what_is_asked_for_is_not_taken(rank: Rank) -> None:
    with rank.lazy() as lazy:
        asked = None if lazy.is_root else lazy.broadcast_async(key="asked")
        rank.meet()
        if lazy.is_root:
            futures = [lazy.broadcast_async(n, key=key) for n, key in enumerate(("x", "asked", None, "y"))]
            same([future.result() for future in futures], [0, 1, 2, 3])
        else:
            assert asked is not None
            keys = []
            for _ in range(2):
                came = lazy.next(keyed=True)
                assert came is not None
                keys.append((came[0], came[1].result()))
            same(keys, [("x", 0), ("y", 3)])
            same(asked.result(), 1)
            same(lazy.next(timeout_s=0, keyed=True), None)
            same(lazy.broadcast(), 2, "a call without a key")
        rank.meet()


@behaviour(min_size=2)
def several_threads_take_each_cast_once(rank: Rank) -> None:
    count, got, lock = 60, [], threading.Lock()
    with rank.lazy(max_inflight=200) as lazy:

        def take() -> None:
            while (came := lazy.next()) is not None and came[0] != "end":
                with lock:
                    got.append((came[0], came[1].result()))

        if lazy.is_root:
            futures = [lazy.broadcast_async(n, key=n) for n in range(count)]
            same([future.result() for future in futures], list(range(count)))
            for _ in range(3):
                same(lazy.broadcast("end", key="end"), "end")
        else:
            threads = [threading.Thread(target=take) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(TIMEOUT_S)
            same(sorted(got), [(n, n) for n in range(count)])
        rank.meet()


@behaviour(min_size=2)
def what_comes_can_be_taken_by_a_loop_until_the_root_closes(rank: Rank) -> None:
    async def take(lazy: Any) -> list[Any]:
        return [(key, await future) async for key, future in lazy]

    lazy = rank.lazy()
    if lazy.is_root:
        for n in range(5):
            same(lazy.broadcast(n, key=n or None), n)
        lazy.close()
    else:
        same(asyncio.run(take(lazy)), [(n or None, n) for n in range(5)])
        raises(ClosedError, "rank 0 .* has closed", lambda: lazy.next())
        same(lazy.next(timeout_s=0), None, "it only looks")
        lazy.close()
        raises(ClosedError, "is closed on this rank", lambda: lazy.next())
    rank.meet()


@behaviour()
def what_every_rank_has_can_be_taken_up_in_the_same_step(rank: Rank) -> None:
    """A loop: requests come when they come, and the root says in which step all take them up."""
    count = 12
    with rank.lazy(max_inflight=200) as lazy:
        mine: dict[Any, Any] = {}
        steps: list[list[Any]] = []
        if lazy.is_root:
            same(lazy.ready(), [])
            mine = {n: lazy.broadcast_async([n] * 1000, key=n) for n in range(count)}
            failing = lazy.broadcast_async("x", key="failing", materialize=refuse)
        else:
            raises(ValueError, "only the root, rank 0, knows", lambda: lazy.ready())
        taken = 0
        while taken < count:
            step = lazy.broadcast(lazy.ready() if lazy.is_root else None)
            while not lazy.is_root and (came := lazy.next(timeout_s=0, keyed=True)) is not None:
                mine[came[0]] = came[1]
            for key in step:
                check(mine[key].done() or lazy.is_root, f"{key} is not there, though every rank has it")
                same(mine[key].result(), [key] * 1000)
            taken += len(step)
            steps.append(step)
        same(sorted(key for step in steps for key in step), list(range(count)))
        failed = failing if lazy.is_root else mine.get("failing") or lazy.broadcast_async(key="failing")
        raises(MaterializeError, "'x' is refused", failed.result)
        rank.meet()
    with rank.lazy(agree=False) as lazy:
        if lazy.is_root and rank.size > 1:
            raises(ValueError, "needs agree=True", lambda: lazy.ready())


@behaviour(min_size=2)
def what_is_taken_after_the_end_of_the_root_fails_at_once(rank: Rank) -> None:
    """It had come, and needs a verdict that nobody gives any more."""
    gate = threading.Event()
    with rank.executor(1) as executor:
        lazy = rank.lazy(identity, executor=executor, placement="every")
        held = executor.submit(gate.wait, TIMEOUT_S)
        rank.meet()
        if lazy.is_root:
            lazy.broadcast_async("x", key="k")
            wait_until(lambda: lazy.stats().casts == 1, "it was not sent")
            lazy.close(timeout_s=0)
        else:
            wait_until(lambda: lazy.stats().casts == 1, "it has not come")
            raises(ClosedError, "rank 0 .* has closed", lambda: lazy.broadcast(key="never"))
            came = lazy.next(timeout_s=TIMEOUT_S)
            assert came is not None
            same(came[0], "k")
            raises(ClosedError, "rank 0 .* has closed", came[1].result)
        gate.set()
        held.result()
        rank.meet()
        lazy.close()


@behaviour(min_size=2)
def what_an_interrupted_call_had_taken_is_the_next_ones(rank: Rank) -> None:
    """Whoever asks for its key, or takes what comes; or nobody, where that is said."""
    with rank.lazy() as lazy:
        if lazy.is_root:
            for n, key in enumerate(("asked", "taken", "discarded", None, "asked")):
                same(lazy.broadcast(n, key=key), n)
        else:
            for _ in range(4):
                came = lazy.next()
                assert came is not None
                lazy._engine.given_back.append(came)  # as an interrupt between two lines does
            same(lazy.broadcast(key="asked"), 0)
            lazy.discard("discarded")
            taken = lazy.next(keyed=True)
            assert taken is not None
            same((taken[0], taken[1].result()), ("taken", 1))
            same(lazy.broadcast(), 3)
            same(lazy.broadcast(key="asked"), 4)
            same(lazy.next(timeout_s=0), None)
        rank.meet()


@behaviour(min_size=2)
def a_loop_that_gives_up_waiting_leaves_nothing_behind(rank: Rank) -> None:
    async def impatient(lazy: Any) -> None:
        for _ in range(5):
            try:
                await asyncio.wait_for(anext_of(lazy), 0.01)
            except asyncio.TimeoutError:
                continue
            raise AssertionError("something has come")

    async def anext_of(lazy: Any) -> Any:
        async for came in lazy:
            return came
        raise AssertionError("it has ended")

    with rank.lazy() as lazy:
        if not lazy.is_root:
            asyncio.run(impatient(lazy))
            same(lazy._lane.asks.gates.closed, [], "who is to be woken")
        rank.meet()
    with rank.lazy(replicated=True) as lazy:
        if not lazy.is_root:
            raises(ValueError, "replicated=True", lambda: lazy.next())


@behaviour()
def what_is_withdrawn_while_it_is_made_is_not_kept(rank: Rank) -> None:
    """Nobody but the root has asked for it, and nobody need."""
    _made_by.clear()
    _gates.clear()
    rank.meet()
    gate = _gates.setdefault(rank.size, threading.Event())
    with rank.executor(1) as executor, rank.lazy(held_back, executor=executor, placement="every") as lazy:
        future = lazy.broadcast_async(rank.size, key="k") if lazy.is_root else None
        wait_until(lambda: rank.rank in _made_by, "it has not begun")
        rank.meet()
        if future is not None:
            check(future.cancel(), "cancel() said no")
        rank.meet()
        gate.set()
        same(lazy.broadcast(0, key="next", materialize=identity), 0)
        rank.meet()
        wait_until(lambda: _made_by[rank.rank]() is None, "the value is kept")
        if not lazy.is_root:
            lazy.discard("k")
        rank.meet()


_gates: dict[int, threading.Event] = {}
_made_by: dict[int, Any] = {}


def held_back(payload: int) -> Any:
    """Begin at once, and be done when the gate opens."""
    value = np.zeros(1000)
    _made_by[this_rank()] = weakref.ref(value)
    check(_gates.setdefault(payload, threading.Event()).wait(TIMEOUT_S), "the gate stayed shut")
    return value

"""Beginning and end: closing, cancelling, awaiting, leaving nothing behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
import weakref

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.errors import ClosedError
from lazycast.testing.failures import identity
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same


@behaviour()
def fifty_objects_in_a_row(rank: Rank) -> None:
    for n in range(50):
        with rank.lazy() as lazy:
            same(lazy.broadcast(n), n)


@behaviour()
def close_is_idempotent_and_values_outlive_it(rank: Rank) -> None:
    lazy = rank.lazy()
    value = lazy.broadcast(np.arange(100_000))
    lazy.close()
    lazy.close()
    same(value, np.arange(100_000))
    raises(ClosedError, "closed on this rank", lambda: lazy.broadcast(1))
    raises(ClosedError, "closed on this rank", lambda: lazy.broadcast_async(1))
    check("closed" in lazy.dump(), "dump() does not say closed")
    same(lazy.stats().resolved, 1)


@behaviour()
def close_waits_for_pending_casts(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor:
        lazy = rank.lazy(identity, executor=executor, placement="every")
        executor.submit(gate.wait, TIMEOUT_S)
        future = lazy.broadcast_async("pending")
        threading.Timer(0.2, gate.set).start()
        lazy.close()
        same(future.result(0), "pending")


@behaviour(min_size=2)
def close_waits_for_what_can_still_be_done_although_another_rank_has_closed(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor:
        lazy = rank.lazy(identity, executor=executor, agree=False, placement="every")
        last = rank.rank == rank.last
        executor.submit(lambda: last or gate.wait(TIMEOUT_S))
        rank.meet()
        future = lazy.broadcast_async("pending")
        if last:
            same(future.result(TIMEOUT_S), "pending")
            lazy.close()
        rank.meet()
        if not last:
            deadline_s = time.monotonic() + TIMEOUT_S
            while lazy.is_root and "ended: " not in lazy.dump():  # the news that the last rank has closed
                check(time.monotonic() < deadline_s, "the root was not told")
                time.sleep(0.005)
            threading.Timer(0.2, gate.set).start()
            lazy.close()
            same(future.result(0), "pending")


@behaviour()
def close_fails_what_does_not_finish(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor:
        lazy = rank.lazy(identity, executor=executor, placement="every")
        executor.submit(gate.wait, TIMEOUT_S)
        future = lazy.broadcast_async("pending", key="k")
        rank.meet()
        lazy.close(timeout_s=0.3)
        raises(ClosedError, "closed", lambda: future.result(0))
        gate.set()


@behaviour(min_size=2)
def a_rank_that_closes_is_named_by_later_casts(rank: Rank) -> None:
    lazy = rank.lazy()
    same(lazy.broadcast("before"), "before")
    if rank.rank == rank.last:
        lazy.close()
    rank.meet()
    if rank.rank != rank.last:
        # The news may still be on its way: then the cast fails by the verdict.
        exc = raises(ClosedError, rf"rank {rank.last} \(.*has closed", lambda: lazy.broadcast("after"))
        same(exc.rank, rank.last)
    rank.meet()
    lazy.close()


@behaviour(min_size=5)
def a_rank_that_passes_casts_on_and_closes_ends_them_for_all(rank: Rank) -> None:
    """Without shared memory rank 1 passes on to rank 4. It has reported and leaves; rank 4 still works."""
    gate = threading.Event()
    with rank.executor(1) as executor:
        lazy = rank.lazy(identity, executor=executor, shared_memory=False, placement="every")
        if rank.rank == 4:
            executor.submit(gate.wait, TIMEOUT_S)
        rank.meet()
        future = lazy.broadcast_async("x", key="k")
        if rank.rank == 1:
            while lazy.stats().materialize.count == 0:
                time.sleep(0.002)
            future.cancel()
            rank.meet()
            lazy.close()
        else:
            rank.meet()
            exc = raises(ClosedError, r"rank 1 \(.*has closed", lambda: future.result(TIMEOUT_S / 2))
            same(exc.rank, 1)
            raises(ClosedError, r"rank 1 \(.*has closed", lambda: lazy.broadcast("later", timeout_s=TIMEOUT_S / 2))
        gate.set()
        rank.meet()
        lazy.close()


@behaviour(min_size=2)
def closing_while_the_root_closes_waits_for_nothing(rank: Rank) -> None:
    lazy = rank.lazy()
    if not lazy.is_root:
        lazy.broadcast_async(key="never")
        threading.Thread(target=rank_closes_later, args=(lazy,)).start()
    rank.meet()
    if lazy.is_root:
        time.sleep(0.3)  # the others are in close() by now; if not, they learn of it a moment later
        lazy.close()
    began_s = time.monotonic()
    lazy.close()
    check(time.monotonic() - began_s < TIMEOUT_S / 4, "close() waited for an ask that nobody can answer")
    rank.meet()


def rank_closes_later(lazy: LazyBroadcast[object, object]) -> None:
    lazy.close(timeout_s=TIMEOUT_S)


@behaviour(min_size=2)
def when_the_root_closes_pending_asks_fail_and_what_arrived_stays(rank: Rank) -> None:
    lazy = rank.lazy()
    if lazy.is_root:
        lazy.broadcast("kept", key="kept")
        lazy.close()
    else:
        pending = lazy.broadcast_async(key="never")
        raises(ClosedError, r"rank 0 \(.*has closed", lambda: pending.result(TIMEOUT_S))
        raises(ClosedError, r"rank 0 \(.*has closed", lambda: lazy.broadcast(key="never again"))
        same(lazy.broadcast(key="kept"), "kept")
    rank.meet()
    lazy.close()


@behaviour(min_size=2)
def a_cast_withdrawn_before_sending_is_cancelled_everywhere(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor, rank.lazy(identity, placement="root", executor=executor) as lazy:
        held = executor.submit(gate.wait, TIMEOUT_S)  # the root's materializer cannot start, so nothing is sent
        future = lazy.broadcast_async("x", key="k")
        if lazy.is_root:
            check(future.cancel(), "cancel() said no before sending")
            check(future.cancel(), "a second cancel() said no")
        gate.set()
        held.result()
        done, _ = concurrent.futures.wait([future], timeout=TIMEOUT_S)
        check(future in done and future.cancelled(), f"{future!r} was not cancelled")
        same(lazy.broadcast("next", key="k"), "next")
        same(lazy.stats().cancelled, 1, "cancelled")


@behaviour()
def discard_consumes_the_next_cast_of_its_key(rank: Rank) -> None:
    with rank.lazy() as lazy:
        if lazy.is_root:
            same(lazy.broadcast("unwanted", key="k"), "unwanted")
        else:
            lazy.discard("k")
        same(lazy.broadcast("wanted", key="k"), "wanted")
        if lazy.is_root:
            same(lazy.broadcast("unwanted again", key="k"), "unwanted again")
        rank.meet()  # this time after it has arrived
        if not lazy.is_root:
            lazy.discard("k")
        same(lazy.broadcast("wanted", key="k"), "wanted")
        raises(TypeError, "needs a key", lambda: lazy.discard(None))  # type: ignore[arg-type]


@behaviour()
def futures_are_awaitable_and_a_cancelled_task_withdraws_nothing(rank: Rank) -> None:
    gate = threading.Event()

    async def main() -> None:
        values = await asyncio.gather(*(lazy.broadcast_async(n, key=n) for n in range(20)))
        same(values, list(range(20)))
        executor.submit(gate.wait, TIMEOUT_S)
        rank.meet()
        future = lazy.broadcast_async(b"kept", materialize=bytes)

        async def wait() -> object:
            return await future

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            raise AssertionError("the task was not cancelled")
        check(not future.cancelled(), "the cast was cancelled with the task")
        gate.set()
        same(await future, b"kept")
        same(await asyncio.wrap_future(lazy.broadcast_async("wrapped")), "wrapped")

    with rank.executor(1) as executor, rank.lazy(executor=executor, placement="every") as lazy:
        asyncio.run(main())


@behaviour()
def a_value_lives_as_long_as_its_holder_and_no_longer(rank: Rank) -> None:
    with rank.lazy(np.copy) as lazy:
        gc.disable()  # what only the collector frees would keep a slot of memory for seconds
        try:
            for agree_size in (10, 200_000):
                future = lazy.broadcast_async(np.zeros(agree_size))
                watch = weakref.ref(future.result())
                del future
                deadline_s = time.monotonic() + 20.0
                while watch() is not None and time.monotonic() < deadline_s:
                    time.sleep(0.01)
                check(watch() is None, "something still holds a value that its user has dropped")
        finally:
            gc.enable()


@behaviour(min_size=2)
def nobody_hangs_when_all_close_at_once_without_agreement(rank: Rank) -> None:
    for _ in range(10):
        with rank.lazy(agree=False) as lazy:
            futures = [lazy.broadcast_async(np.full(50_000, n), key=n) for n in range(5)]
            for n, future in enumerate(futures):
                same(future.result(), np.full(50_000, n))

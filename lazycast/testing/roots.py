"""Several roots: every rank casts, each with keys, an order and a window of its own, on one object's threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import numpy as np

from lazycast.errors import CastTimeoutError, ClosedError, MaterializeError, RemoteError, WouldBlockError
from lazycast.materialize.staged import Staged
from lazycast.options import Helpers, Memo
from lazycast.testing.aborts import wait_until
from lazycast.testing.failures import identity
from lazycast.testing.kit import TIMEOUT_S, TOLD_S, Rank, behaviour, check, raises, same


def refuse(payload: object) -> object:
    raise ValueError(f"{payload!r} is refused")


def pixels(root: int, number: int) -> np.ndarray[Any, Any]:
    """Return an array that is another one for each root and number; large enough to travel in shared memory."""
    return np.full((64, 1000), 100 * root + number, np.int64)


def doubled(payload: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return payload * 2


def total(payload: np.ndarray[Any, Any]) -> int:
    return int(payload.sum())


def paired(payload: np.ndarray[Any, Any], hint: int) -> tuple[int, int]:
    return hint, len(payload)


@behaviour()
def every_rank_casts_with_keys_of_its_own(rank: Rank) -> None:
    """The same key of different roots means different casts, and so do calls without one."""
    for placement in ("every", "shard", "root", "auto", "demand", Helpers(1)):
        with rank.lazy(doubled, roots="any", placement=placement) as lazy:
            check(lazy.is_root and lazy.root == rank.rank, "every rank is a root, of its own casts")
            mine = [lazy.broadcast_async(pixels(rank.rank, n), key=key) for n, key in enumerate(("a", None, "b", "c"))]
            for root in range(rank.size):
                if root != rank.rank:
                    for key, number in (("b", 2), ("a", 0), ("c", 3)):
                        same(lazy.broadcast(key=key, root=root), 2 * pixels(root, number), f"{placement}, {key}")
                    same(lazy.broadcast(root=root), 2 * pixels(root, 1), f"{placement}, without a key")
            for number, future in enumerate(mine):
                same(future.result(), 2 * pixels(rank.rank, number), f"{placement}, this rank's own")
                same(future.root, rank.rank, "whose cast a future is")
            rank.meet()


@behaviour(min_size=2)
def they_cast_at_the_same_time_and_wait_for_each_other(rank: Rank) -> None:
    """Each rank blocks in its own call while the others block in theirs: no rank has to ask for a value to be made."""
    with rank.lazy(Staged(total, paired), roots="any") as lazy:
        for number in range(20):
            wanted = 64_000 * (100 * rank.rank + number), 64
            same(lazy.broadcast(pixels(rank.rank, number), key=number), wanted)
            for root in range(rank.size):
                if root != rank.rank:
                    wanted = 64_000 * (100 * root + number), 64
                    same(lazy.broadcast(key=number, root=root), wanted, f"of rank {root}")


@behaviour(min_size=2)
def who_closes_after_its_last_value_leaves_nobody_without_one(rank: Rank) -> None:
    """The news that a rank has closed overtakes nothing of what it has sent, in no root's tree."""
    for _ in range(10):
        with rank.lazy(roots="any") as lazy:
            for root in range(rank.size):
                same(lazy.broadcast(root, key="k", root=root), root)


@behaviour(min_size=2)
def what_comes_of_all_roots_is_taken_once_and_in_each_roots_order(rank: Rank) -> None:
    count = 30
    with rank.lazy(roots="any") as lazy:
        asked = [lazy.broadcast_async(key="asked", root=root) for root in range(rank.size) if root != rank.rank]
        rank.meet()
        mine = [lazy.broadcast_async(n, key=None if n % 3 else f"k{n}") for n in range(count)]
        mine.append(lazy.broadcast_async(-1, key="asked"))
        got: dict[int, list[int]] = {root: [] for root in range(rank.size) if root != rank.rank}
        for _ in range(count * len(got)):
            came = lazy.next(timeout_s=TIMEOUT_S)
            assert came is not None
            key, future = came
            value = future.result()
            same(key, None if value % 3 else f"k{value}", "the key")
            got[future.root].append(value)
        for root, values in got.items():
            same(values, list(range(count)), f"what came of rank {root}, in order")
        same(lazy.next(timeout_s=0), None, "nothing has come")
        same([future.result() for future in asked], [-1] * len(asked), "what was asked for is not taken")
        same([future.result() for future in mine], [*range(count), -1], "this rank's own")
        rank.meet()
        lazy.broadcast_async("of one", key=rank.rank).result()
        for root in got:
            came = lazy.next(timeout_s=TIMEOUT_S, root=root)
            assert came is not None
            same((came[0], came[1].root, came[1].result()), (root, root, "of one"), "of the root that was named")
        rank.meet()
    raises(ClosedError, "closed on this rank", lambda: lazy.next(timeout_s=0))


@behaviour(min_size=2)
def who_takes_one_after_the_other_waits_and_ends_with_the_last(rank: Rank) -> None:
    """A blocked `next` wakes at the first cast of anybody; an iteration ends when all other ranks have closed."""
    with rank.lazy(roots="any") as lazy:
        others = [root for root in range(rank.size) if root != rank.rank]
        for caster in range(rank.size):  # one after the other, while all others wait
            if caster == rank.rank:
                lazy.broadcast_async(f"from {caster}").result()
            else:
                came = lazy.next(timeout_s=TIMEOUT_S)
                assert came is not None
                same((came[1].root, came[1].result()), (caster, f"from {caster}"))
            rank.meet()

        async def take() -> list[int]:
            return [(await future) async for _, future in lazy]

        if rank.rank == rank.last:
            rank.meet()
            same(asyncio.run(take()), sorted(others), "what came until all others had closed")
        else:
            # In the ranks' order, so that each comes to all before the next. All take all: who passes a verdict on, and
            # closes before it has come, ends what those behind it wait for.
            for caster in range(rank.last):
                mine = caster == rank.rank
                same(lazy.broadcast(caster, key="x") if mine else lazy.broadcast(key="x", root=caster), caster)
            rank.meet()


@behaviour(min_size=2)
def tasks_that_ask_do_not_stand_behind_tasks_that_cast(rank: Rank) -> None:
    """On each rank casts wait for room until the others have asked, in one loop with what this rank asks for."""
    others = [root for root in range(rank.size) if root != rank.rank]

    async def both(lazy: Any) -> list[Any]:
        mine = [lazy.cast(n, key=n) for n in range(6)]
        theirs = [lazy.cast(key=n, root=root) for n in range(6) for root in others]
        return list(await asyncio.gather(*mine, *theirs))

    with rank.lazy(roots="any", max_inflight=1) as lazy:
        same(asyncio.run(both(lazy)), [*range(6), *(n for n in range(6) for _ in others)])
        rank.meet()


@behaviour(min_size=2)
def an_interrupted_call_of_another_roots_cast_counts(rank: Rank) -> None:
    with rank.lazy(roots="any") as lazy:
        mine = [lazy.broadcast_async(n, key=key) for n, key in enumerate(("a", "b", None, "c"))]
        mine += [lazy.broadcast_async(n) for n in (4, 5)]
        rank.meet()
        root = (rank.rank + 1) % rank.size
        for missed in ((None, KeyboardInterrupt(), root), ("a", KeyboardInterrupt(), root)):
            lazy._engine.handed.waiting.append((lazy._engine.count_missed, missed))  # as an interrupt in a call does
        lazy._engine.handed.waiting.append((lazy._engine.discard_of, (root, "b")))
        same(lazy.broadcast(root=root), 4, "the first without a key was the interrupted call's")
        came = lazy.next(timeout_s=TIMEOUT_S, root=root)
        assert came is not None
        same((came[0], came[1].result()), ("c", 3), "what comes next")
        same(lazy.broadcast(root=root), 5)
        same([future.result() for future in mine], list(range(6)))
        rank.meet()


@behaviour(min_size=2)
def what_is_given_back_wakes_who_waits_for_another_root(rank: Rank) -> None:
    """And who waits for several roots, one after the other, leaves nothing behind in any of them."""
    with rank.lazy(roots="any") as lazy:
        if rank.rank == 0:
            future = lazy.broadcast_async("late")
            rank.meet()
            future.result()
        else:
            rank.meet()
            came = lazy.next(timeout_s=TIMEOUT_S)
            assert came is not None
            got: list[Any] = []
            waits = threading.Thread(target=lambda: got.append(lazy.next(timeout_s=TIMEOUT_S, root=0)))
            waits.start()
            lane: Any = lazy._engine.of(0)
            wait_until(lambda: bool(lane.asks.gates.closed), "the other thread waits")
            lazy._engine.given_back.append(came)  # as an interrupt does
            lazy._engine.tell_changed()
            waits.join(TIMEOUT_S / 2)
            check(not waits.is_alive(), "nobody has told the other thread")
            same([one and one[1].result() for one in got], ["late"])
        rank.meet()

        async def take(count: int) -> None:
            async for _, future in lazy:
                await future
                count -= 1
                if not count:
                    return

        if rank.rank == 0:
            for n in range(50):
                lazy.broadcast(n)
        else:
            asyncio.run(take(50))
            lanes: Any = lazy._engine.lanes
            same([len(one.asks.gates.closed) for one in lanes], [0] * rank.size, "who is to be woken, by root")
        rank.meet()


@behaviour(min_size=2)
def an_error_ends_the_cast_of_its_root_alone(rank: Rank) -> None:
    with rank.lazy(identity, roots="any") as lazy:
        bad = lazy.broadcast_async(rank.rank, key="k", materialize=refuse)
        good = lazy.broadcast_async(rank.rank, key="k2")
        raises(MaterializeError, f"{rank.rank} is refused", bad.result)
        same(good.result(), rank.rank)
        for root in range(rank.size):
            if root != rank.rank:
                error = raises(MaterializeError, f"root {root}: .*{root} is refused", _asking(lazy, "k", root))
                check(error.key == "k", f"{error.key!r}")
                same(lazy.broadcast(key="k2", root=root), root)
        rank.meet()


def _asking(lazy: Any, key: str, root: int) -> Any:
    return lambda: lazy.broadcast(key=key, root=root)


@behaviour(min_size=2)
def each_root_has_a_window_of_its_own(rank: Rank) -> None:
    """One that is held back holds nobody else back."""
    with rank.lazy(roots="any", max_inflight=2) as lazy:
        if rank.rank == 0:
            held = [lazy.broadcast_async(n, block=False) for n in range(2)]
            raises(WouldBlockError, "nothing was cast", lambda: lazy.broadcast_async(2, block=False))
            check(not lazy.has_room(), "there is no room at rank 0")
        rank.meet()
        if rank.rank == 1:
            check(lazy.has_room(), "there is room at rank 1")
            for n in range(20):
                same(lazy.broadcast(n), n)
        else:
            for n in range(20):
                same(lazy.broadcast(root=1), n)
        if rank.rank == 0:
            same([future.result() for future in held], [0, 1])
        else:
            same([lazy.broadcast(root=0) for _ in range(2)], [0, 1])
        rank.meet()


@behaviour(min_size=2)
def a_root_withdraws_its_own_cast_alone(rank: Rank) -> None:
    """And a rank that discards a key gives up that root's cast, and no other's."""
    gate = threading.Event()
    with rank.executor(1) as executor, rank.lazy(identity, roots="any", executor=executor, placement="every") as lazy:
        executor.submit(gate.wait, TIMEOUT_S)  # no materializer can begin
        rank.meet()
        mine = lazy.broadcast_async(rank.rank, key="k")
        others = {root: lazy.broadcast_async(key="k", root=root) for root in range(rank.size) if root != rank.rank}
        rank.meet()
        if rank.rank == 0:
            check(mine.cancel(), "nobody has it")
        rank.meet()
        gate.set()
        for root, future in {**others, rank.rank: mine}.items():
            if root == 0:
                raises(concurrent.futures.CancelledError, "", future.result)
            else:
                same(future.result(), root)
        same(lazy.stats().cancelled, 1)
        rank.meet()
        if rank.rank == 0:
            lazy.discard("d", root=1)
        else:
            for root in (0, 1):
                same(lazy.broadcast(f"d{root}", key="d", root=root), f"d{root}")
        if rank.rank == 0:
            same(lazy.broadcast("d0", key="d"), "d0")
        rank.meet()


@behaviour()
def a_root_that_is_none_is_refused_and_counts_for_nothing(rank: Rank) -> None:
    with rank.lazy() as lazy:
        if rank.size > 1:
            raises(ValueError, "root is rank 0.*roots='any'", lambda: lazy.broadcast("x", root=1))
            raises(ValueError, "root is rank 0", lambda: lazy.discard("k", root=1))
        same(lazy.broadcast("y", root=0), "y", "the one root may be named")
    with rank.lazy(roots="any") as lazy:
        for wrong in (-1, rank.size, "0", True, 0.0):
            raises(ValueError, "is no rank", lambda wrong=wrong: lazy.broadcast("x", root=wrong))  # type: ignore[misc]
        raises(ValueError, "has its futures", lambda: lazy.next(root=rank.rank))
        if rank.size > 1:
            raises(TypeError, "payload on the root.*name it: root=", lazy.broadcast)
            for root in range(rank.size):
                if root != rank.rank:
                    raises(RemoteError, "was refused on rank", lambda root=root: lazy.broadcast(root=root))  # type: ignore[misc]
        same(lazy.broadcast("z", key="z", root=rank.rank), "z")
        for root in range(rank.size):
            if root != rank.rank:
                same(lazy.broadcast(key="z", root=root), "z")
        rank.meet()
    if rank.size > 1:
        raises(ValueError, "every rank is a root", lambda: rank.lazy(roots="any", root=1))
    raises(ValueError, "use 'one' or 'any'", lambda: rank.lazy(roots="some"))


@behaviour(min_size=2)
def several_roots_share_threads(rank: Rank) -> None:
    """The threads of an object are as many as those of one with one root."""
    names: list[set[str]] = []
    for roots in ("one", "any"):
        with rank.lazy(identity, roots=roots, placement="every") as lazy:
            for root in range(rank.size if roots == "any" else 1):
                if root == rank.rank:
                    lazy.broadcast(root)
                else:
                    lazy.broadcast(root=root)
            rank.meet()
            prefix = f"lazycast-{lazy.dump().partition(': rank')[0].split(chr(39))[1]}-"
            mine = [one.name for one in threading.enumerate() if one.name.startswith(prefix)]
            names.append({name.removeprefix(prefix) for name in mine})
            rank.meet()
    check(names[0] == names[1] and len(names[0]) > 1, f"{sorted(names[0])}, and with any root {sorted(names[1])}")


@behaviour(min_size=2)
def who_is_waited_for_is_said_of_each_root(rank: Rank) -> None:
    with rank.lazy(roots="any") as lazy:
        if rank.rank == 0:
            error = raises(
                CastTimeoutError,
                "root 1: no value after",
                lambda: lazy.broadcast(key="never", root=1, timeout_s=TOLD_S),
            )
            check("root 1" in str(error) and "rank 1" in str(error), str(error))
            dump = lazy.dump()
            check("every rank a root" in dump, dump)
        rank.meet()
        stats = lazy.stats()
        same((stats.rank, stats.root, stats.size), (rank.rank, rank.rank, rank.size))
        if rank.rank == 1:  # a time-out is everybody's
            raises(CastTimeoutError, "rank 0 .* had waited", lambda: lazy.broadcast("late", key="never"))
        elif rank.rank > 1:
            raises(CastTimeoutError, "rank 0 .* had waited", lambda: lazy.broadcast(key="never", root=1))
        rank.meet()
        for root in range(rank.size):
            same(lazy.broadcast("x" if root == rank.rank else None, key="x", root=root), "x")
        rank.meet()
    counts = lazy.stats()
    same((counts.pending, counts.unasked), (0, 0), "nothing is left")


@behaviour(min_size=2)
def replicated_payloads_have_several_roots(rank: Rank) -> None:
    """Each root's casts are compared with what the others have themselves for it."""
    for placement in ("shard", "root"):
        with rank.lazy(doubled, roots="any", replicated=True, placement=placement) as lazy:
            for root in range(rank.size):
                value = lazy.broadcast(pixels(root, 1), key="p", root=root)
                same(value, 2 * pixels(root, 1), f"{placement}, root {root}")
            rank.meet()


@behaviour(min_size=2)
def each_root_remembers_its_own(rank: Rank) -> None:
    with rank.lazy(doubled, roots="any", memo=Memo(16 << 20)) as lazy:
        for turn in range(3):
            for root in range(rank.size):
                value = lazy.broadcast(pixels(0, 7) if root == rank.rank else None, key="m", root=root)
                same(value, 2 * pixels(0, 7), f"of root {root}, time {turn}")
                value[:] = -1
        rank.meet()
        same(lazy.stats().memo_hits, 2 * rank.size, "what was had again, of all roots")


@behaviour(min_size=2)
def keys_that_every_rank_has_are_told_by_each_root(rank: Rank) -> None:
    with rank.lazy(roots="any") as lazy:
        same(lazy.ready(), [])
        mine = [lazy.broadcast_async(n, key=f"{rank.rank}.{n}") for n in range(5)]
        found: list[Any] = []

        def all_are() -> bool:
            found.extend(lazy.ready())
            return len(found) == len(mine)

        wait_until(all_are, "every rank has all of them")
        same(sorted(found), [f"{rank.rank}.{n}" for n in range(5)], "this rank's own, and no other's")
        for _ in range(5 * (rank.size - 1)):
            came = lazy.next(timeout_s=TIMEOUT_S)
            assert came is not None
            came[1].result()
        rank.meet()

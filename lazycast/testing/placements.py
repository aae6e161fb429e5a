"""Who materializes: one rank per host in turn, in two stages, from payloads that every rank has."""

from __future__ import annotations

import contextvars
import decimal
import threading
import time
from functools import partial
from typing import Any

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.core.succession import heir, succession
from lazycast.errors import CastTimeoutError, DecodeError, MaterializeError, PayloadMismatchError
from lazycast.materialize.each import Each
from lazycast.materialize.materializers import register_materializer
from lazycast.materialize.staged import Staged
from lazycast.missing import MISSING
from lazycast.testing.kit import TIMEOUT_S, TOLD_S, Rank, behaviour, check, raises, same, this_rank

PLACEMENTS = ("every", "demand", "root", "shard", "auto")


def host_of(lazy: LazyBroadcast[Any, Any], rank: int) -> tuple[int, ...]:
    return next(host for host in lazy.stats().hosts if rank in host)


def who(payload: Any) -> tuple[int, Any]:
    return this_rank(), payload


def grown(payload: Any) -> dict[str, Any]:
    """A value with arrays large and small, which starts as zeros."""
    return {"by": this_rank(), "large": np.zeros(300_000), "small": np.zeros(3), "sum": float(np.sum(payload))}


def fails(payload: Any) -> None:
    raise ValueError(f"bad payload, found by rank {this_rank()}")


def unpicklable(payload: Any) -> Any:
    return this_rank(), payload, threading.Lock()


class NotRebuilt:
    """A value that pickles and does not come back."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __reduce__(self) -> Any:
        return refuse, (self.by,)


def refuse(by: int) -> Any:
    raise RuntimeError(f"not rebuilt from {by}")


def not_rebuilt(payload: Any) -> NotRebuilt:
    return NotRebuilt(this_rank())


@behaviour()
def a_shard_is_materialized_by_one_rank_of_each_host_in_turn(rank: Rank) -> None:
    some = [rank.last] if rank.size < 3 else [rank.last, 1]
    for owners in (None, some):
        with rank.executor() as pool, rank.lazy(who, placement="shard", owners=owners, executor=pool) as lazy:
            array = np.arange(50_000)
            for turn in range(2 * rank.size + 1):
                by, value = lazy.broadcast(array)
                same(by, succession(host_of(lazy, rank.rank), owners, turn)[0], f"the owner of cast {turn}")
                same(value, array)
            same(lazy.stats().unshared, 0, "values not shared")


@behaviour(min_size=2)
def a_shard_is_private_to_each_rank_its_owner_included(rank: Rank) -> None:
    for values in ("private", "copy"):
        with rank.executor() as pool, rank.lazy(grown, placement="shard", executor=pool, values=values) as lazy:
            held = [lazy.broadcast(np.ones(1000)) for _ in range(2 * rank.size)]
            for value in held:
                same(value["sum"], 1000.0)
                value["large"] += 1 + rank.rank
                value["small"] -= rank.rank
            rank.meet()
            for value in held:
                check(bool((value["large"] == 1 + rank.rank).all()), "another rank's write is seen")
                check(bool((value["small"] == -rank.rank).all()), "another rank's write is seen in a small array")


def fails_at_four(item: int) -> int:
    if item == 4:
        raise ValueError(f"bad item, found by rank {this_rank()}")
    return item


@behaviour()
def the_ranks_of_a_host_share_the_items_of_one_request(rank: Rank) -> None:
    items = list(range(3 * rank.size))
    for agree in (True, False):
        with rank.executor() as pool, rank.lazy(placement="shard", executor=pool, agree=agree) as lazy:
            made = lazy.broadcast(items, materialize=Each(who))
            same([item for _, item in made], items)
            same({by for by, _ in made}, set(host_of(lazy, rank.rank)), "who has made some")
            exc = raises(
                MaterializeError,
                "raised at item 4 .*bad item",
                lambda: lazy.broadcast([0, 1, 2, 3, 4], materialize=Each(fails_at_four)),
            )
            check(agree or exc.rank in host_of(lazy, rank.rank), "another host's item failed this rank")
            arrays = lazy.broadcast(items, materialize=Each(grown))
            for value in arrays:
                value["large"] += 1 + rank.rank
            rank.meet()
            check(all(bool((value["large"] == 1 + rank.rank).all()) for value in arrays), "another's write is seen")
            same([value["sum"] for value in arrays], [float(item) for item in items])


@behaviour()
def an_owner_that_fails_fails_everybody_and_the_next_cast_works(rank: Rank) -> None:
    for agree in (True, False):
        with rank.executor() as pool, rank.lazy(placement="shard", executor=pool, agree=agree) as lazy:
            for turn in range(rank.size + 1):
                exc = raises(
                    MaterializeError,
                    "materializer 'fails' raised.*bad payload",
                    lambda: lazy.broadcast(1, materialize=fails),
                )
                check(exc.rank is not None, "the error names no rank")
                assert exc.rank is not None
                owner = heir(host_of(lazy, exc.rank), None, 2 * turn, ())
                same(exc.rank, owner, "the rank that is named")
                if not agree:
                    check(exc.rank in host_of(lazy, rank.rank), "another host's owner failed this rank")
                same(lazy.broadcast("next", materialize=who)[1], "next")


@behaviour()
def a_value_that_cannot_be_shared_is_made_by_every_rank(rank: Rank) -> None:
    with rank.executor() as pool, rank.lazy(unpicklable, placement="shard", executor=pool) as lazy:
        array = np.arange(30_000)
        for _ in range(rank.size):
            by, value, _lock = lazy.broadcast(array)
            same(by, rank.rank)
            same(value, array)
        stats = lazy.stats()
        rank.meet()  # before the next cast arrives anywhere
        if len(host_of(lazy, rank.rank)) > 1:
            check(stats.unshared > 0, "nobody counted it")
            check("could not share" in str(stats.unshared_reason), f"no reason: {stats.unshared_reason}")
        for _ in range(rank.size):
            same(lazy.broadcast(array, materialize=not_rebuilt).by, rank.rank)
        check(
            rank.size == 1 or len(host_of(lazy, rank.rank)) == 1 or lazy.stats().unshared > stats.unshared,
            "not counted",
        )


def measure(payload: dict[str, Any]) -> dict[str, Any]:
    return {"by": this_rank(), "sum": float(payload["x"].sum())}


def attach(payload: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
    payload["x"][:] = this_rank()  # each rank has a payload of its own
    return {"finished_by": this_rank(), **payload, **hint}


def huge(payload: dict[str, Any]) -> np.ndarray:
    return np.full(1 << 21, payload["x"].sum())


def first_of(payload: dict[str, Any], hint: np.ndarray) -> float:
    return float(hint[-1])


@behaviour()
def two_stages_work_with_every_placement(rank: Rank) -> None:
    registered = register_materializer("testing.staged", Staged(measure, attach))
    factor = 2.0
    local: Staged[Any, Any, Any] = Staged(
        lambda p: p["x"].sum() * factor, lambda p, hint: {"finished_by": this_rank(), "sum": hint, **p}
    )
    for placement in PLACEMENTS:
        with rank.executor() as pool, rank.lazy(Staged(measure, attach), placement=placement, executor=pool) as lazy:
            for staged in (None, registered, local):
                for n in (10, 100_000):
                    payload = {"x": np.full(n, 2.0), "name": "n"}
                    value = lazy.broadcast(payload if lazy.is_root else None, materialize=staged)
                    rank.meet()
                    same(value["finished_by"], rank.rank, placement)
                    same(float(value["sum"]), 2.0 * n * (factor if staged is local else 1.0), placement)
                    expected = 2.0 if staged is local else float(rank.rank)
                    check(bool((value["x"] == expected).all()), f"{placement}: the payload is not this rank's own")
            same(lazy.broadcast({"x": np.ones(8)}, materialize=Staged(huge, first_of)), 8.0)


def pair(payload: Any, hint: Any) -> Any:
    return payload, hint[1]


class FinishFailsOn:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, payload: Any, hint: Any) -> Any:
        if this_rank() == self.rank:
            raise ValueError("only here")
        return hint


@behaviour()
def a_stage_that_fails_anywhere_fails_everybody(rank: Rank) -> None:
    works: Staged[Any, Any, Any] = Staged(who, pair)
    bad: Staged[Any, Any, Any] = Staged(fails, attach)
    for placement in ("every", "root", "shard"):
        with rank.executor() as pool, rank.lazy(placement=placement, executor=pool) as lazy:
            for victim in range(rank.size):
                staged: Staged[Any, Any, Any] = Staged(who, FinishFailsOn(victim))
                exc = raises(MaterializeError, "only here", partial(lazy.broadcast, 0, materialize=staged))
                same(exc.rank, victim)
            raises(MaterializeError, "bad payload", partial(lazy.broadcast, 0, materialize=bad))
            same(lazy.broadcast(5, materialize=works), (5, 5))


def total(payload: dict[str, Any]) -> tuple[int, float]:
    return this_rank(), float(payload["x"].sum())


def keep(payload: dict[str, Any], hint: tuple[int, float]) -> tuple[dict[str, Any], tuple[int, float]]:
    return payload, hint


@behaviour()
def replicated_payloads_are_never_sent(rank: Rank) -> None:
    nbytes = 8 * 200_000
    staged: Staged[Any, Any, Any] = Staged(total, keep)
    for placement in PLACEMENTS:
        with rank.executor() as pool, rank.lazy(placement=placement, executor=pool, replicated=True) as lazy:
            for turn in range(rank.size + 1):
                payload = {"x": np.full(200_000, float(turn))}
                same(lazy.broadcast(payload, materialize=total)[1], 200_000.0 * turn, placement)
                mine, hint = lazy.broadcast(payload, materialize=staged)
                check(mine is payload, f"{placement}: finish did not get this rank's own payload")
                same(hint[1], 200_000.0 * turn, placement)
                if placement != "root":  # there it is the value
                    check(lazy.broadcast(payload) is payload, "without a materializer the value is the own payload")
            received = lazy.stats().nbytes_received
            check(placement == "root" or received < nbytes, f"{placement}: {received} bytes were received")


@behaviour(min_size=2)
def a_replicated_payload_that_differs_fails_that_cast_on_every_rank(rank: Rank) -> None:
    for placement in ("every", "shard", "root"):
        with rank.executor() as pool, rank.lazy(total, placement=placement, executor=pool, replicated=True) as lazy:
            for odd in range(1, rank.size):
                good, other = {"n": 1, "x": np.ones(50_000)}, {"n": 1, "x": np.ones(50_001)}
                exc = raises(
                    PayloadMismatchError,
                    r"not the root's.*: the first part that differs is \['x'\]",
                    partial(lazy.broadcast, other if rank.rank == odd else good),
                )
                same(exc.rank, odd)
                exc = raises(
                    PayloadMismatchError,
                    "has passed no payload",
                    partial(lazy.broadcast, MISSING if rank.rank == odd else good),
                )
                same(exc.rank, odd)
                same(lazy.broadcast(good)[1], 50_000.0)


@behaviour(min_size=3)
def a_replicated_payload_that_differs_is_told_before_its_owner_asks(rank: Rank) -> None:
    good, other = {"x": np.ones(5000)}, {"x": np.ones(5001)}
    with rank.executor() as pool, rank.lazy(total, placement="shard", executor=pool, replicated=True) as lazy:
        host = host_of(lazy, lazy.root)
        for turn in range(rank.size):
            owner = succession(host, None, turn)[0]
            takers = [peer for peer in host if peer not in (owner, lazy.root)]
            if owner == lazy.root or not takers:
                same(lazy.broadcast(good, key=turn)[1], 5000.0)
                continue
            if rank.rank == owner:
                rank.meet()  # all others have failed by then
            odd, text = (other, "not the root's") if turn % 2 else (MISSING, "has passed no payload")
            payload = odd if rank.rank == takers[0] else good
            exc = raises(PayloadMismatchError, text, partial(lazy.broadcast, payload, key=turn))
            same(exc.rank, takers[0])
            if rank.rank != owner:
                rank.meet()


@behaviour(min_size=2)
def an_owner_that_gives_up_a_replicated_cast_passes_it_on(rank: Rank) -> None:
    for agree in (True, False):
        with (
            rank.executor() as pool,
            rank.lazy(total, placement="shard", executor=pool, replicated=True, agree=agree) as lazy,
        ):
            host = host_of(lazy, rank.rank)
            for turn in range(2 * rank.size):
                key, payload = f"{turn}", {"x": np.full(1000, float(turn))}
                order = succession(host, None, turn)
                # All but the root's rank and the last of each other host give up, one half before the cast, one after.
                wanted = lazy.root if lazy.root in host else order[-1]
                future = None
                if rank.rank != wanted and turn % 2:
                    lazy.discard(key)
                if rank.rank == wanted:
                    future = lazy.broadcast_async(payload, key=key)
                rank.meet()
                if rank.rank != wanted and not turn % 2:
                    lazy.discard(key)
                if future is not None:
                    same(future.result(TIMEOUT_S), (wanted, 1000.0 * turn))
            rank.meet()
            same(lazy.broadcast({"x": np.ones(7)})[1], 7.0)


@behaviour(min_size=2)
def an_owner_that_never_asks_is_named(rank: Rank) -> None:
    with rank.executor() as pool, rank.lazy(total, placement="shard", executor=pool, replicated=True) as lazy:
        payload = {"x": np.ones(1000)}
        for turn in range(rank.size):
            owners = {succession(host, None, turn)[0]: host for host in lazy.stats().hosts if len(host) > 1}
            late = [owner for owner in owners if owner != lazy.root]
            if rank.rank in late:
                rank.meet()
                lazy.discard(turn)
            else:
                if late:  # whose time is over first says whom it lacks, for all
                    text = rf"missing: ranks? .*\b({'|'.join(map(str, late))})\b"
                    raises(CastTimeoutError, text, partial(lazy.broadcast, payload, key=turn, timeout_s=TOLD_S))
                else:
                    same(lazy.broadcast(payload, key=turn)[1], 1000.0)
                rank.meet()
            rank.meet()
        same(lazy.broadcast(payload)[1], 1000.0)


class FailsOrSleeps:
    """Fails at once on some ranks, and takes its time on the others."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks

    def __call__(self, payload: Any) -> Any:
        if this_rank() in self.ranks:
            raise ValueError("on these ranks")
        time.sleep(0.02)
        return payload


def check_books(lazy: LazyBroadcast[Any, Any]) -> None:
    """On the root: nothing is left of casts that have ended."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while lazy.is_root and " 0 on the books; the slowest rank has 0 casts, 0 bytes unread" not in lazy.dump():
        check(time.monotonic() < deadline_s, f"something is left on the books: {lazy.dump()}")
        time.sleep(0.005)


@behaviour(min_size=2)
def failures_of_one_host_leave_nothing_behind_on_another(rank: Rank) -> None:
    with rank.executor() as pool, rank.lazy(placement="shard", executor=pool, max_inflight=4) as lazy:
        fn = FailsOrSleeps(host_of(lazy, lazy.root))
        for number in range(12):
            raises(MaterializeError, "on these ranks", partial(lazy.broadcast, number, materialize=fn))
        check_books(lazy)


@behaviour(min_size=2)
def a_rank_that_asks_after_the_failure_leaves_nothing_behind(rank: Rank) -> None:
    with rank.executor() as pool, rank.lazy(total, placement="every", executor=pool, replicated=True) as lazy:
        for number in range(8):
            payload = {"x": np.ones(10 + (rank.rank == rank.last))}
            early = rank.rank in (lazy.root, rank.last)
            for asks in (True, False):
                if asks == early:
                    raises(PayloadMismatchError, "not the root's", partial(lazy.broadcast, payload, key=number))
                rank.meet()
        check_books(lazy)


@behaviour()
def the_choice_of_a_placement_never_fails_a_value_that_does_not_pickle(rank: Rank) -> None:
    for replicated in (False, True):
        with rank.executor() as pool, rank.lazy(unpicklable, executor=pool, replicated=replicated) as lazy:
            array = np.arange(1000)
            for number in range(60):
                by, value, _lock = lazy.broadcast(array, key=number)
                same(by, rank.rank)
                same(value, array)
            staged: Staged[Any, Any, Any] = Staged(unpicklable, lambda payload, hint: (payload, hint[0]))
            for _ in range(30):
                value, by = lazy.broadcast(array, materialize=staged)
                same(by, rank.rank)
                same(value, array)


class Slow:
    """A materializer that takes until the gate opens."""

    gate = threading.Event()

    def __call__(self, payload: Any) -> Any:
        check(Slow.gate.wait(TIMEOUT_S), "the gate did not open")
        return payload


@behaviour()
def a_slow_materializer_delays_no_other_key(rank: Rank) -> None:
    Slow.gate.clear()
    rank.meet()
    with rank.executor(4) as pool, rank.lazy(placement="shard", executor=pool) as lazy:
        slowly = [lazy.broadcast_async(n, key=f"slow {n}", materialize=Slow()) for n in range(2)]
        for n in range(20):
            same(lazy.broadcast(n, key=n, materialize=who)[1], n)
        check(not slowly[0].done(), "it is done, and its gate is shut")
        rank.meet()
        Slow.gate.set()
        same([future.result(TIMEOUT_S) for future in slowly], [0, 1])


@behaviour(min_size=2)
def a_payload_that_an_owner_cannot_decode_fails_everybody(rank: Rank) -> None:
    with rank.lazy(placement="shard") as lazy:
        for turn in range(rank.size):
            owners = [succession(host, None, 2 * turn)[0] for host in lazy.stats().hosts]
            if owners == [lazy.root]:  # it has the payload, and need not decode it
                same(lazy.broadcast(NotRebuilt(0), materialize=type_name), "NotRebuilt")
            else:
                raises(DecodeError, "not rebuilt", lambda: lazy.broadcast(NotRebuilt(0), materialize=type_name))
            same(lazy.broadcast("next", materialize=type_name), "str")


def type_name(payload: Any) -> str:
    return type(payload).__name__


_VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("lazycast_testing", default="nothing")


def context(payload: Any) -> tuple[Any, ...]:
    """What a materializer sees of its context, which it then changes."""
    seen = payload, decimal.getcontext().prec, np.geterr()["divide"], _VARIABLE.get()
    decimal.getcontext().prec = 11
    _VARIABLE.set("left behind")
    return seen


@behaviour()
def what_a_caller_has_set_in_its_context_is_the_same_for_every_materializer(rank: Rank) -> None:
    """None of it is seen, with one rank and with many; nor what another materializer has set."""
    for placement in PLACEMENTS:
        with rank.lazy(context, placement=placement) as lazy:
            _VARIABLE.set("the caller's")
            with decimal.localcontext() as mine, np.errstate(divide="raise"):
                mine.prec = 5
                for number in range(4):
                    ask = lazy.broadcast if number % 2 else lambda *args: lazy.broadcast_async(*args).result(TIMEOUT_S)
                    same(ask(number), (number, 28, "warn", "nothing"))
                same((decimal.getcontext().prec, _VARIABLE.get()), (5, "the caller's"), "what the caller has set")

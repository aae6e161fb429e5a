"""What goes wrong is told to every rank that should know, and the next cast works."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np

from lazycast.errors import (
    CastTimeoutError,
    ConfigMismatchError,
    DecodeError,
    EncodeError,
    KeyInUseError,
    LazycastError,
    MaterializeError,
    ReentrantCallError,
    RemoteError,
)
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same, this_rank


class UnpicklableError(Exception):
    """An exception that neither pickles nor prints."""

    def __init__(self, first: int, second: int) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no text")


def fails_everywhere(payload: object) -> None:
    raise ValueError(f"bad payload {payload!r}")


def fails_oddly(payload: object) -> None:
    raise UnpicklableError(1, 2)


def exits(payload: object) -> None:
    raise SystemExit(3)


class FailsOn:
    """A materializer that fails on one rank only; needs `Rank.executor`."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, payload: Any) -> Any:
        if this_rank() == self.rank:
            raise ValueError("only here")
        return payload


class DecodesNotOn:
    """A payload that one rank cannot rebuild."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __setstate__(self, state: dict[str, int]) -> None:
        if this_rank() == state["rank"]:
            raise ImportError("no such module here")
        self.__dict__.update(state)


def identity(payload: Any) -> Any:
    return payload


def _at_root(rank: Rank, kind: type[LazycastError], other: type[LazycastError], pattern: str, call: Any) -> None:
    """The root raises `kind`, the others `other` with the root's traceback."""
    exc = raises(kind if rank.rank == 0 else other, pattern, call)
    if rank.rank != 0:
        check(exc.rank == 0 and bool(exc.remote_traceback), f"{exc.rank=} {exc.remote_traceback=}")


@behaviour()
def a_materializer_that_raises_everywhere(rank: Rank) -> None:
    for placement in ("every", "root", "demand"):
        for agree in (True, False):
            with rank.lazy(placement=placement, agree=agree) as lazy:
                for fn in (fails_everywhere, fails_oddly, exits):
                    name = fn.__name__
                    exc = raises(MaterializeError, name, partial(lazy.broadcast, 1, materialize=fn))
                    check(exc.host is not None and exc.rank is not None, "rank and host are not named")
                    if exc.rank == rank.rank:
                        check(exc.__cause__ is not None, "the original is not the cause")
                    else:
                        check(bool(exc.remote_traceback), "there is no traceback")
                    same(lazy.broadcast("next", materialize=identity), "next", f"after {name}")


@behaviour()
def a_materializer_that_raises_on_one_rank_fails_everywhere_with_agreement(rank: Rank) -> None:
    for culprit in range(rank.size):
        with rank.executor() as executor, rank.lazy(executor=executor) as lazy:
            exc = raises(
                MaterializeError,
                rf"on rank {culprit} .*ValueError: only here",
                partial(lazy.broadcast, 1, materialize=FailsOn(culprit)),
            )
            same(exc.rank, culprit)
            if culprit == rank.rank:
                check(isinstance(exc.__cause__, ValueError), f"cause is {exc.__cause__!r}")
            same(lazy.broadcast("next", materialize=FailsOn(-1)), "next")


@behaviour(min_size=2)
def without_agreement_the_other_ranks_get_their_value(rank: Rank) -> None:
    with rank.executor() as executor, rank.lazy(executor=executor, agree=False) as lazy:
        if rank.rank == rank.last:
            raises(MaterializeError, "only here", lambda: lazy.broadcast(materialize=FailsOn(rank.last)))
        else:
            same(lazy.broadcast(1, materialize=FailsOn(rank.last)), 1)
        same(lazy.broadcast(2, materialize=FailsOn(-1)), 2)


@behaviour(min_size=2)
def a_payload_that_one_rank_cannot_decode(rank: Rank) -> None:
    with rank.executor() as executor, rank.lazy(identity, executor=executor) as lazy:
        payload = DecodesNotOn(rank.last)
        exc = raises(DecodeError, rf"on rank {rank.last} .*no such module", lambda: lazy.broadcast(payload))
        same(exc.rank, rank.last)
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def what_does_not_pickle_is_named(rank: Rank) -> None:
    lock = threading.Lock()
    with rank.lazy() as lazy:
        bad = {"request": [1, {"guard": lock}]}
        _at_root(rank, EncodeError, RemoteError, r"\['request'\]\[1\]\['guard'\].*lock", lambda: lazy.broadcast(bad))
        _at_root(
            rank,
            EncodeError,
            RemoteError,
            "materializer .*captured variable 'lock'",
            lambda: lazy.broadcast(1, materialize=lambda p: (p, lock)),
        )
        same(lazy.broadcast("next"), "next")
    with rank.lazy(lambda p: threading.Lock(), placement="root") as lazy:
        _at_root(rank, EncodeError, RemoteError, "lock", lambda: lazy.broadcast(1))
        same(lazy.broadcast(1, materialize=identity), 1)


@behaviour()
def refused_root_calls_consume_their_cast(rank: Rank) -> None:
    with rank.lazy() as lazy:
        refusals: list[tuple[str, Any]] = [
            ("needs a payload", lazy.broadcast),
            ("must be callable", lambda: lazy.broadcast(1, materialize=5)),  # type: ignore[arg-type]
        ]
        for pattern, call in refusals:
            if rank.rank == 0:
                raises(TypeError, pattern, call)
            else:
                exc = raises(RemoteError, pattern, call)
                check("TypeError" in str(exc), "the root's traceback is missing")
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def a_time_out_names_the_root_that_did_not_call(rank: Rank) -> None:
    with rank.lazy() as lazy:
        if not lazy.is_root:
            exc = raises(
                CastTimeoutError,
                rf"key 'k' on rank {rank.rank} of .*root 0.*0.5 s.*root has not made this call.*missing: rank 0",
                lambda: lazy.broadcast(key="k", timeout_s=0.5),
            )
            check(isinstance(exc, TimeoutError), "it is no TimeoutError")
        rank.meet()
        # The call that timed out has consumed the root's next cast of this key.
        if lazy.is_root:
            same(lazy.broadcast("late", key="k"), "late")
        same(lazy.broadcast("next", key="k"), "next")


@behaviour(min_size=2)
def a_time_out_while_agreeing_names_the_slow_rank(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor, rank.lazy(identity, executor=executor) as lazy:
        slow = rank.rank == rank.last
        held = executor.submit(lambda: slow and gate.wait(TIMEOUT_S))
        rank.meet()
        raises(CastTimeoutError, rf"missing: rank {rank.last}\b", lambda: lazy.broadcast("x", timeout_s=1.0))
        rank.meet()
        gate.set()
        held.result()
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def a_late_rank_finds_its_casts(rank: Rank) -> None:
    with rank.lazy(agree=False) as lazy:
        if rank.rank == rank.last:
            rank.meet()
        values = [lazy.broadcast(np.full(1000, n)) for n in range(20)]
        if rank.rank != rank.last:
            rank.meet()
        for n, value in enumerate(values):
            same(value, np.full(1000, n))


@behaviour(min_size=2)
def back_pressure_holds_the_root_and_names_who_does_not_read(rank: Rank) -> None:
    by_count: dict[str, Any] = {"max_inflight": 4}
    by_nbytes: dict[str, Any] = {"max_inflight_nbytes": 4 * 80_000}
    for options in (by_count, by_nbytes):
        with rank.lazy(agree=False, **options) as lazy:
            if lazy.is_root:
                futures = [lazy.broadcast_async(np.full(10_000, n), key=f"k{n}") for n in range(4)]
                for future in futures:
                    future.result()
                exc = raises(
                    CastTimeoutError,
                    r"max_inflight.*rank 1 has not asked for 4 casts: #1 key 'k0', #2 key 'k1'",
                    partial(lazy.broadcast_async, np.full(10_000, 4), key="k4", timeout_s=0.5),
                )
                check(isinstance(exc, TimeoutError), "it is no TimeoutError")
                same(lazy.stats().blocked.count, 0, "finished waits")
                rank.meet()
            else:
                rank.meet()
                for n in range(4):
                    same(lazy.broadcast(key=f"k{n}"), np.full(10_000, n))
                raises(RemoteError, "max_inflight", partial(lazy.broadcast, key="k4"))
            same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def blocking_asks_too_far_apart_time_out_with_names(rank: Rank) -> None:
    """The others ask first for what the root can only send after they have asked for something else."""
    with rank.lazy(agree=False, max_inflight=2) as lazy:
        if lazy.is_root:
            for n in range(2):
                lazy.broadcast(n, key=n)
            raises(CastTimeoutError, "rank 1.*#1 key 0, #2 key 1", lambda: lazy.broadcast(2, key=2, timeout_s=1.0))
        else:
            raises(
                CastTimeoutError,
                "max_inflight=2.*rank 1.*#1 key 0, #2 key 1.*missing: rank 0",
                lambda: lazy.broadcast(key=2, timeout_s=0.6),
            )
        rank.meet()
        if not lazy.is_root:
            for n in range(2):
                same(lazy.broadcast(key=n), n)
        same(lazy.broadcast("next"), "next")


@behaviour()
def blocking_calls_from_materializers_and_callbacks_are_refused(rank: Rank) -> None:
    gate, done = threading.Event(), threading.Event()
    with rank.executor(1) as executor, rank.lazy(executor=executor) as lazy:
        seen: list[BaseException] = []

        def callback(_: Any) -> None:
            for call in (lambda: lazy.broadcast(1), lambda: lazy.close(), lambda: first.result()):
                try:
                    call()
                except ReentrantCallError as exc:
                    seen.append(exc)
            done.set()

        executor.submit(gate.wait, TIMEOUT_S)
        rank.meet()
        first = lazy.broadcast_async("x", materialize=identity)
        first.add_done_callback(callback)  # the gate sees to it that it is not done yet
        gate.set()
        check(done.wait(TIMEOUT_S), "the callback did not run")
        same([type(exc) for exc in seen], [ReentrantCallError] * 2, "refusals (result() of a done future is fine)")
        rank.meet()
        same(lazy.broadcast("next"), "next")


@behaviour()
def calls_that_are_refused_count(rank: Rank) -> None:
    """Were one of them not counted, the calls after it would meet the wrong casts."""
    with rank.lazy() as lazy:
        same(lazy.broadcast(0), 0)
        odd = rank.rank == rank.last
        if odd:
            raises(CastTimeoutError, "time was over before the call", lambda: lazy.broadcast(1, timeout_s=-0.01))
        elif lazy.is_root:
            same(lazy.broadcast(1), 1)
        else:
            lazy.broadcast_async(1)  # fails if the odd one is the root
        kind = ValueError if odd else None
        if kind is not None:
            raises(kind, "timeout_s must be a finite number", lambda: lazy.broadcast(2, timeout_s=float("nan")))
        else:
            lazy.broadcast_async(2)
        same(lazy.broadcast(3), 3)


class Slow:
    """A payload whose unpickling takes as long as it is told to, on all ranks but the root."""

    gate = threading.Event()

    def __setstate__(self, state: dict[str, str]) -> None:
        self.gate.wait(TIMEOUT_S)
        self.__dict__.update(state)


@behaviour(min_size=2)
def slow_unpickling_delays_nobody_else(rank: Rank) -> None:
    Slow.gate.clear()
    rank.meet()
    payload = Slow()
    payload.__dict__["text"] = "slow"
    with rank.lazy(agree=False) as lazy:
        slow = lazy.broadcast_async(payload, key="slow")
        same(lazy.broadcast({"plain": 1}, key="plain"), {"plain": 1})
        rank.meet()
        Slow.gate.set()
        same(slow.result(TIMEOUT_S).text, "slow")


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
            raises(CastTimeoutError, "max_inflight=8", lambda: lazy.broadcast(key="none", timeout_s=0.5))
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
            raises(RemoteError, "max_inflight_nbytes", lambda: lazy.broadcast(key=2))
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


@behaviour()
def options_that_differ_are_refused_on_every_rank(rank: Rank) -> None:
    mine: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"agree": False}, "agree"),
        ({}, {"placement": "root"}, "placement"),
        ({}, {"values": "copy"}, "values"),
        ({"name": "a"}, {"name": "b"}, "name.*same order"),
    ]
    if rank.size > 1:
        for others, last, pattern in mine:
            options = last if rank.rank == rank.last else others
            exc = raises(ConfigMismatchError, f"disagree on {pattern}", partial(rank.lazy, **options))
            check(all(f"\n  {r} " in str(exc) for r in range(rank.size)), f"the table lacks a rank:\n{exc}")
        kind: type[Exception] = ValueError if rank.rank == rank.last else ConfigMismatchError
        root = 99 if rank.rank == rank.last else 0
        raises(kind, "root=99 is not a rank|construction failed on rank", lambda: rank.lazy(root=root))
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"root": rank.size}, ValueError, "not a rank of this group"),
        ({"root": -1}, ValueError, "not a rank"),
        ({"placement": "nowhere"}, ValueError, "unknown placement 'nowhere'; use one of 'every'"),
        ({"placement": "shard"}, ValueError, "unknown placement 'shard'"),
        ({"values": "shared"}, ValueError, "unknown values 'shared'; use one of 'private'"),
        ({"trust": "data"}, ValueError, "not supported in this version"),
        ({"owners": [0]}, ValueError, "not supported in this version"),
        ({"replicated": True}, ValueError, "not supported in this version"),
        ({"shared_memory": True}, ValueError, "shared_memory must be 'auto' or False"),
        ({"arena_nbytes": 0}, ValueError, "arena_nbytes must be a positive int"),
        ({"max_inflight": 0}, ValueError, "max_inflight must be a positive int"),
        ({"materialize": 3}, TypeError, "materialize must be callable"),
    ]
    for options, kind, pattern in bad:
        raises(kind, pattern, partial(rank.lazy, **options))
    with rank.lazy() as lazy:
        same(lazy.broadcast("works"), "works")

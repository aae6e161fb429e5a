"""What goes wrong is told to every rank that should know, and the next cast works."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import numpy as np

from lazycast.errors import (
    CastTimeoutError,
    ConfigMismatchError,
    DecodeError,
    EncodeError,
    LazycastError,
    MaterializeError,
    ReentrantCallError,
    RemoteError,
)
from lazycast.options import Shard
from lazycast.testing.kit import TIMEOUT_S, TOLD_S, Rank, behaviour, check, raises, same, this_rank


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


_RAISES = {
    "fails_everywhere": "builtins.ValueError",
    "fails_oddly": f"{UnpicklableError.__module__}.{UnpicklableError.__qualname__}",
    "exits": "builtins.SystemExit",
}


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
                    same(exc.remote_type, _RAISES[name], "what was raised")
                    check(exc.host is not None and exc.rank is not None, "rank and host are not named")
                    if exc.rank == rank.rank:
                        check(exc.__cause__ is not None, "the original is not the cause")
                    else:
                        check(bool(exc.remote_traceback), "there is no traceback")
                    same(lazy.broadcast("next", materialize=identity), "next", f"after {name}")


@behaviour()
def a_materializer_that_raises_on_one_rank_fails_everywhere_with_agreement(rank: Rank) -> None:
    for culprit in range(rank.size):
        with rank.executor() as executor, rank.lazy(executor=executor, placement="every") as lazy:
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
    with rank.executor() as executor, rank.lazy(executor=executor, agree=False, placement="every") as lazy:
        if rank.rank == rank.last:
            raises(MaterializeError, "only here", lambda: lazy.broadcast(materialize=FailsOn(rank.last)))
        else:
            same(lazy.broadcast(1, materialize=FailsOn(rank.last)), 1)
        same(lazy.broadcast(2, materialize=FailsOn(-1)), 2)


@behaviour(min_size=2)
def a_payload_that_one_rank_cannot_decode(rank: Rank) -> None:
    with rank.executor() as executor, rank.lazy(identity, executor=executor, placement="every") as lazy:
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
                rf"key 'k' on rank {rank.rank} of .*root 0.*{TOLD_S:g} s.*root has not made this call.*missing: rank 0",
                lambda: lazy.broadcast(key="k", timeout_s=TOLD_S),
            )
            check(isinstance(exc, TimeoutError), "it is no TimeoutError")
        rank.meet()
        # The call that timed out has consumed the root's next cast of this key, which is to be everybody's or nobody's.
        if lazy.is_root:
            said = rf"rank \d+ \(.*had waited {TOLD_S:g} s"
            exc = raises(CastTimeoutError, said, lambda: lazy.broadcast("late", key="k"))
            check(exc.rank != 0, f"{exc.rank=}")
        same(lazy.broadcast("next", key="k"), "next")


@behaviour(min_size=2)
def without_agreement_a_time_out_is_its_ranks_alone(rank: Rank) -> None:
    with rank.lazy(agree=False) as lazy:
        if not lazy.is_root:
            raises(CastTimeoutError, "missing: rank 0", lambda: lazy.broadcast(key="k", timeout_s=0.3))
        rank.meet()
        if lazy.is_root:
            same(lazy.broadcast("late", key="k"), "late")
        same(lazy.broadcast("next", key="k"), "next")


@behaviour(min_size=2)
def a_rank_that_is_too_late_for_the_root_gets_no_value_either(rank: Rank) -> None:
    payload = [1, 2, 3]
    with rank.lazy(replicated=True) as lazy:
        if rank.rank != rank.last:
            limit_s = 0.5 if lazy.is_root else TIMEOUT_S
            exc = raises(
                CastTimeoutError, rf"missing: rank {rank.last}\b", lambda: lazy.broadcast(payload, timeout_s=limit_s)
            )
            same((exc.rank, exc.missing), (0, (rank.last,)))
        rank.meet()
        if rank.rank == rank.last:
            exc = raises(CastTimeoutError, r"rank 0 \(.*had waited 0.5 s", lambda: lazy.broadcast(payload))
            same((exc.rank, exc.missing), (0, (rank.last,)))
        same(lazy.broadcast(payload), payload)


@behaviour(min_size=2)
def whose_time_is_over_while_agreeing_fails_the_cast_for_all(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor, rank.lazy(identity, executor=executor, placement="every") as lazy:
        held = executor.submit(lambda: lazy.is_root and gate.wait(TIMEOUT_S))
        rank.meet()
        limit_s = 0.5 if rank.rank == rank.last else TIMEOUT_S
        exc = raises(CastTimeoutError, "missing: rank 0", lambda: lazy.broadcast("x", timeout_s=limit_s))
        same((exc.rank, exc.missing), (rank.last, (0,)))
        rank.meet()
        gate.set()
        held.result()
        same(lazy.broadcast("next"), "next")


@behaviour(min_size=2)
def a_time_out_while_agreeing_names_the_slow_rank(rank: Rank) -> None:
    gate = threading.Event()
    with rank.executor(1) as executor, rank.lazy(identity, executor=executor, placement="every") as lazy:
        slow = rank.rank == rank.last
        held = executor.submit(lambda: slow and gate.wait(TIMEOUT_S))
        rank.meet()
        raises(CastTimeoutError, rf"missing: rank {rank.last}\b", lambda: lazy.broadcast("x", timeout_s=TOLD_S))
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


@behaviour()
def blocking_calls_from_materializers_and_callbacks_are_refused(rank: Rank) -> None:
    gate, done = threading.Event(), threading.Event()
    with rank.executor(1) as executor, rank.lazy(executor=executor, placement="every") as lazy:
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
            raises(kind, "timeout_s must be a number of seconds", lambda: lazy.broadcast(2, timeout_s=float("nan")))
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
        ({"values": "shared"}, ValueError, "unknown values 'shared'; use one of 'private'"),
        ({"trust": "nobody"}, ValueError, "trust"),
        ({"trust": ["os.system"]}, ValueError, "trust: 'os.system'"),
        ({"owners": []}, ValueError, "at least one rank"),
        ({"owners": [0, rank.size]}, ValueError, "no ranks of this group"),
        ({"tuning": {"max_inflight": 3}}, TypeError, "tuning must be a Tuning"),
        ({"placement": Shard}, ValueError, "unknown placement"),
        ({"replicated": 1}, ValueError, "replicated must be True or False"),
        ({"shared_memory": True}, ValueError, "shared_memory must be 'auto' or False"),
        ({"arena_nbytes": 0}, ValueError, "arena_nbytes must be a positive int"),
        ({"max_inflight": 0}, ValueError, "max_inflight must be a positive int"),
        ({"materialize": 3}, TypeError, "materialize must be callable"),
    ]
    for options, kind, pattern in bad:
        raises(kind, pattern, partial(rank.lazy, **options))
    with rank.lazy() as lazy:
        same(lazy.broadcast("works"), "works")

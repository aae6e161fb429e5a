"""Who waits in vain is told for whom, since when and why; a rank that is out of step is told so in debug mode."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.errors import CastTimeoutError, ClosedError, DivergenceError, EncodeError, RemoteError
from lazycast.options import DEBUG
from lazycast.testing.failures import identity
from lazycast.testing.kit import TIMEOUT_S, TOLD_S, Rank, behaviour, check, raises, same, this_rank


@contextlib.contextmanager
def debug_mode(rank: Rank) -> Iterator[None]:
    """Construct in debug mode. Collective: ranks may be threads of one process, which have one environment."""
    rank.meet()
    os.environ[DEBUG] = "1"
    try:
        yield
        rank.meet()
    finally:
        os.environ.pop(DEBUG, None)


class Held:
    """A materializer that one rank is held up in, until the gate opens; needs `Rank.executor`."""

    gate = threading.Event()

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, payload: Any) -> Any:
        if this_rank() == self.rank:
            Held.gate.wait(TIMEOUT_S)
        return payload


@behaviour(min_size=2)
def a_time_out_tells_operation_phase_and_who_has_answered(rank: Rank) -> None:
    Held.gate.clear()
    rank.meet()
    held = Held(rank.last)
    with rank.executor() as executor, rank.lazy(executor=executor, placement="every") as lazy:
        payload = np.zeros(1000)
        future = lazy.broadcast_async(payload, key="k", materialize=held, timeout_s=1.0)
        exc = raises(CastTimeoutError, rf"broadcast_async #\d+ key 'k' .*missing: rank {rank.last}\b", future.result)
        same((exc.operation, exc.key), ("broadcast_async", "k"))
        same(exc.missing, (rank.last,), "missing")
        check(isinstance(exc.seq, int) and exc.age_s is not None and exc.age_s >= 0.5, f"{exc.seq=} {exc.age_s=}")
        check(exc.nbytes is not None and exc.nbytes >= 8000, f"{exc.nbytes=}")
        if exc.rank != rank.last:  # whose time was over first says it for all
            same(exc.phase, "agreeing")
            same(exc.answered, tuple(range(rank.last)), "answered")
            check("answered: rank" in exc.message, exc.message)
        else:
            same(exc.phase, "decoding or materializing here")
        same(exc.silent, (), "a rank that is busy in a materializer answers when it is asked")
        rank.meet()
        Held.gate.set()
        same(lazy.broadcast("next", materialize=identity), "next")


@behaviour(min_size=2)
def a_time_out_compares_the_numbers_of_calls(rank: Rank) -> None:
    with rank.lazy() as lazy:
        same(lazy.broadcast(1), 1)
        if not lazy.is_root:
            pattern = "the root has made 1 calls without a key, this is number 2 here"
            exc = raises(CastTimeoutError, pattern, lambda: lazy.broadcast(timeout_s=TOLD_S))
            same((exc.operation, exc.key, exc.seq, exc.missing), ("broadcast", None, None, (0,)))
        rank.meet()
        if lazy.is_root:
            # That is what the others have waited for.
            raises(CastTimeoutError, f"had waited {TOLD_S:g} s", lambda: lazy.broadcast(2))
        same(lazy.broadcast(3), 3)


class Records(logging.Handler):
    """Keeps what is logged about one object and one rank, its own or another."""

    def __init__(self, about: LazyBroadcast[Any, Any], rank: int | None = None) -> None:
        super().__init__()
        self._prefix = repr(about).split()[1].rstrip("'")
        self._rank = about.rank if rank is None else rank
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self._prefix in text and f"rank {self._rank} " in text:
            self.texts.append(text)

    def __enter__(self) -> Records:
        logging.getLogger("lazycast").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("lazycast").removeHandler(self)


@behaviour(min_size=2)
def a_long_wait_is_logged_once_with_whom_it_waits_for(rank: Rank) -> None:
    Held.gate.clear()
    rank.meet()
    with (
        rank.executor() as executor,
        rank.lazy(executor=executor, placement="every", warn_after_s=TOLD_S) as lazy,
        Records(lazy) as records,
    ):
        raises(CastTimeoutError, "", lambda: lazy.broadcast("x", materialize=Held(rank.last), timeout_s=TOLD_S + 1))
        waits = [text for text in records.texts if "still waiting after" in text]
        same(len(waits), 1, "warnings")
        check(f"missing: rank {rank.last}" in waits[0], waits[0])
        rank.meet()
        Held.gate.set()
        same(lazy.broadcast("next", materialize=identity), "next")


@behaviour(min_size=2)
def a_time_out_says_what_is_here_and_was_not_asked_for(rank: Rank) -> None:
    with rank.lazy() as lazy:
        if lazy.is_root:
            for key in ("request 1", None):
                same(lazy.broadcast("x", key=key), "x")
        rank.meet()
        if not lazy.is_root:
            pattern = r"2 casts here that nobody has asked for: #1 key 'request 1', #2$"
            raises(CastTimeoutError, pattern, lambda: lazy.broadcast(key="request-1", timeout_s=TOLD_S))
            same(lazy.broadcast(key="request 1"), "x")
            same(lazy.broadcast(), "x")
        rank.meet()


@behaviour(min_size=3)
def a_rank_that_stops_asking_while_others_go_on_is_named(rank: Rank) -> None:
    with rank.lazy(warn_after_s=0.3) as lazy, Records(lazy, rank.last) as records:
        if rank.rank != rank.last:
            for n in range(3):
                same(lazy.broadcast(n, key=n), n)
        if lazy.is_root:
            deadline_s = time.monotonic() + TIMEOUT_S
            named = rf"rank {rank.last} .* has not asked for \d casts?.*, the oldest #1 key 0 for \d+\.\d s"
            while not [text for text in records.texts if re.search(named, text)]:
                check(time.monotonic() < deadline_s, f"nobody was named: {records.texts}")
                time.sleep(0.02)
        rank.meet()
        if rank.rank == rank.last:
            for n in range(3):
                same(lazy.broadcast(key=n), n)


@behaviour(min_size=2)
def in_debug_mode_a_payload_that_changes_after_its_call_is_found(rank: Rank) -> None:
    gate = threading.Event()
    with debug_mode(rank):
        lazy = rank.lazy(executor=(executor := rank.executor(1)), placement="root")
    with executor, lazy:
        if lazy.is_root:
            held = executor.submit(gate.wait, TIMEOUT_S)
            first = lazy.broadcast_async("first", materialize=identity)
            payload = np.zeros(100_000)
            second = lazy.broadcast_async({"pixels": payload})  # it waits for the one before
            payload[77_777] = 1
            gate.set()
            held.result()
            same(first.result(), "first")
            pattern = r"the payload has changed since the call, made at testing/diagnosis.py:\d+"
            raises(EncodeError, pattern, second.result)
            same(lazy.broadcast({"pixels": payload})["pixels"], payload)
        else:
            same(lazy.broadcast(), "first")
            raises(RemoteError, "the payload has changed since the call", lambda: lazy.broadcast())
            same(lazy.broadcast()["pixels"].sum(), np.float64(1))
        rank.meet()


@behaviour(min_size=2)
def a_call_that_ends_with_another_ranks_object_tells_how_far_it_was(rank: Rank) -> None:
    lazy = rank.lazy(identity)
    same(lazy.broadcast(1), 1)
    future = lazy.broadcast_async(key="never", timeout_s=TIMEOUT_S) if not lazy.is_root else None
    rank.meet()
    if lazy.is_root:
        lazy.close()
    if future is not None:
        pattern = "rank 0 .*has closed.*this call had waited [0-9.]* s$"
        exc = raises(ClosedError, pattern, future.result)
        same((exc.operation, exc.key, exc.phase, exc.missing), ("broadcast_async", "never", "not arrived", (0,)))
    rank.meet()
    lazy.close()


@behaviour(min_size=2)
def a_dump_shows_what_waits(rank: Rank) -> None:
    Held.gate.clear()
    rank.meet()
    with rank.executor() as executor, rank.lazy(executor=executor, placement="every") as lazy:
        future = lazy.broadcast_async("x", key="dumped", materialize=Held(rank.last))
        rank.meet()
        text = lazy.dump()
        check("calls that wait: broadcast_async" in text and "key 'dumped': waiting" in text, text)
        for section in ("state", "queue", "books", "mailbox", "under way", "shared memory", "links", "threads"):
            check(f"\n  {section}: " in text, f"{section} is missing:\n{text}")
        rank.meet()
        Held.gate.set()
        same(future.result(TIMEOUT_S), "x")
        rank.meet()
        text = lazy.dump()
        check("calls that wait: none" in text and "resolved 1" in text, text)


# Debug mode


def program(lazy: LazyBroadcast[Any, Any], *, odd: bool) -> None:
    """Some rounds of two calls each, of which an odd rank leaves one out in the last round."""
    for n in range(6):
        if not (odd and n == 5):
            same(first(lazy, n), n)
        if lazy.is_root:
            lazy.broadcast((n, "second"))
        else:
            same(lazy.broadcast(), (n, "second"))


def first(lazy: LazyBroadcast[Any, Any], n: int) -> Any:
    return lazy.broadcast(n)


def until_told(run: Callable[[], None], lazy: LazyBroadcast[Any, Any]) -> None:
    """Go on after a program: the others' casts may be whole before a busy rank makes its next call, and sees."""
    run()
    for n in range(6, 50):
        same(first(lazy, n), n)
        time.sleep(0.1)


@behaviour(min_size=2)
def a_rank_that_leaves_a_call_out_is_told_and_with_agreement_everybody(rank: Rank) -> None:
    odd = rank.rank == rank.last
    pattern = (
        rf"rank {rank.last} .* is out of step with the root: its call number 11 .*diagnosis.py:\d+ \(program\), "
        r"met the root's call number 11 .*, at \S*diagnosis.py:\d+ \(first\); until now"
    )
    for agree in (True, False):
        with debug_mode(rank):
            lazy = rank.lazy(agree=agree)
        run = partial(program, lazy, odd=odd)
        with lazy:
            if odd:
                same(raises(DivergenceError, pattern, run).rank, rank.last)
            elif agree:  # as soon as the odd rank has noticed
                same(raises(DivergenceError, pattern, partial(until_told, run, lazy)).rank, rank.last)
            else:
                run()
            rank.meet()


@behaviour(min_size=2)
def programs_in_step_are_left_alone_in_debug_mode(rank: Rank) -> None:
    with debug_mode(rank):
        lazy = rank.lazy()
    with lazy:
        same(lazy.broadcast("config"), "config")
        for n in range(40):
            if lazy.is_root:
                if n % 7 == 3:
                    lazy.broadcast("control")
                else:
                    lazy.broadcast(n)
            else:
                same(lazy.broadcast(), "control" if n % 7 == 3 else n)
        keys = list(range(20))
        if rank.rank % 2:
            keys.reverse()
        futures = {key: lazy.broadcast_async(key, key=key) for key in keys}
        for key, future in futures.items():
            same(future.result(TIMEOUT_S), key)


@behaviour(min_size=2)
def a_key_that_the_root_never_casts_shows_what_it_casts_in_debug_mode(rank: Rank) -> None:
    with debug_mode(rank):
        lazy = rank.lazy()
    with lazy:
        same(lazy.broadcast("x", key="request-1"), "x")
        if not lazy.is_root:
            pattern = (
                r"key 'request-2' .*made at \S*diagnosis.py.*the root's last calls: #1 key 'request-1' at \S*diagn"
            )
            raises(CastTimeoutError, pattern, lambda: lazy.broadcast(key="request-2", timeout_s=TOLD_S))
        rank.meet()


@behaviour(min_size=2)
def casts_left_behind_are_told_at_close_in_debug_mode(rank: Rank) -> None:
    with debug_mode(rank):
        lazy = rank.lazy(agree=False)
    with Records(lazy) as records:
        same(lazy.broadcast(1), 1)
        rank.meet()
        if lazy.is_root:
            lazy.broadcast(2)
        rank.meet()
        deadline_s = time.monotonic() + TIMEOUT_S
        while not lazy.is_root and not lazy.stats().unasked:
            check(time.monotonic() < deadline_s, "the second cast has not come")
            time.sleep(0.002)
        rank.meet()
        lazy.close()
        left = [text for text in records.texts if "has not asked for" in text]
        same(len(left), 0 if rank.rank == 0 else 1, "warnings")
        if left:
            check("closes with 1 casts" in left[0] and "#2 (number 2 without a key) at" in left[0], left[0])

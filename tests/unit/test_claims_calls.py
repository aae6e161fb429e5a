"""What the pages say about calls: matching, failures, back-pressure, the end."""

from __future__ import annotations

import concurrent.futures
import enum
import inspect
import logging
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

import lazycast
from lazycast import (
    CastTimeoutError,
    ClosedError,
    ConfigMismatchError,
    EncodeError,
    LazyBroadcast,
    MaterializeError,
    ReentrantCallError,
    RemoteError,
    Shard,
    Tuning,
    WouldBlockError,
    launch,
)

from .claims import ROOT, Check, Claims, caught, judge, ranks, rooted

claim = Claims()
GUARANTEES, CONCEPTS = "docs/guarantees.md", "docs/concepts.md"


def fails(_: Any) -> None:
    raise ValueError("no")


class Gated:
    """What `gated` waits for."""

    begun, gate = threading.Event(), threading.Event()

    @classmethod
    def close(cls) -> None:
        cls.begun.clear()
        cls.gate.clear()


def gated(value: int) -> int:
    Gated.begun.set()
    assert Gated.gate.wait(20)
    return value


@claim(GUARANTEES, "Ranks may ask for keys in any order.")
def any_order() -> None:
    def body(lazy: Any) -> list[int]:
        keys = [(n + lazy.rank) % 4 for n in range(4)]
        futures = {key: lazy.broadcast_async(rooted(lazy, 10 * key), key=key) for key in keys}
        return [futures[key].result() for key in range(4)]

    assert ranks(body) == [[0, 10, 20, 30]] * 3


@claim(
    GUARANTEES,
    "Per key, a rank's n-th call gets the root's n-th cast; calls without a key are a sequence of their own.",
)
def per_key() -> None:
    def body(lazy: Any) -> list[int]:
        return [
            lazy.broadcast(rooted(lazy, 1), key="k"),
            lazy.broadcast(rooted(lazy, 2)),
            lazy.broadcast(rooted(lazy, 3), key="k"),
            lazy.broadcast(rooted(lazy, 4)),
        ]

    assert ranks(body) == [[1, 2, 3, 4]] * 3


@claim(GUARANTEES, "also one that is refused, cancelled, discarded or timed out.")
def every_call_counts() -> None:
    def body(lazy: Any) -> Any:
        first: Any = None
        if lazy.rank == 1:
            first = caught(lambda: lazy.broadcast(timeout_s=0))
        else:
            lazy.broadcast(rooted(lazy, "first"))
        return type(first).__name__, lazy.broadcast(rooted(lazy, "second"))

    assert ranks(body, agree=False)[1] == ("CastTimeoutError", "second")


@claim(GUARANTEES, "each cast once, in the order in which the root sent it, the same on every rank.")
def next_in_order() -> None:
    def body(lazy: Any) -> list[Any]:
        if lazy.is_root:
            return [lazy.broadcast_async(n, key=n).result() for n in (3, 1, 2)]
        return [key for key, _ in (lazy.next(timeout_s=20) for _ in range(3))]

    assert ranks(body) == [[3, 1, 2]] * 3


@claim(GUARANTEES, "`ConfigMismatchError` on every rank, at construction, with a table of who said what.")
def other_options() -> None:
    def rank() -> Any:
        with LazyBroadcast() as first:
            number = first.rank
            return caught(lambda: LazyBroadcast(placement="every" if number == 1 else "shard", timeout_s=20))

    said = launch(rank, ranks=3, backend="threads", timeout_s=200)
    assert [type(exc) for exc in said] == [ConfigMismatchError] * 3
    assert all("every" in str(exc) and "shard" in str(exc) for exc in said)


@claim("README.md", "If it fails on one rank, it fails on every rank, and the next request works.")
def agreement() -> None:
    def body(lazy: Any) -> Any:
        failed = caught(lambda: lazy.broadcast(rooted(lazy, "x"), materialize=fails))
        assert isinstance(failed, MaterializeError)
        return failed.rank, failed.remote_type, lazy.broadcast(rooted(lazy, "next"))

    assert ranks(body, placement=Shard(owners={1})) == [(1, "builtins.ValueError", "next")] * 3


@claim(GUARANTEES, "**The next cast works**, in step, on every rank: after a payload that does not pickle,")
def after_a_bad_payload() -> None:
    def body(lazy: Any) -> Any:
        failed = caught(lambda: lazy.broadcast(rooted(lazy, threading.Lock())))
        return type(failed), lazy.broadcast(rooted(lazy, 42))

    assert ranks(body) == [(EncodeError, 42), (RemoteError, 42), (RemoteError, 42)]


@claim(GUARANTEES, "every rank's future is cancelled, or every rank gets the value.")
def withdrawn() -> None:
    Gated.close()

    def body(lazy: Any) -> Any:
        late, early = (lazy.broadcast_async(rooted(lazy, n), key=n) for n in (1, 2))
        if lazy.is_root:
            assert Gated.begun.wait(20)
            assert late.cancel()
            Gated.gate.set()
        assert not concurrent.futures.wait([late, early], 20).not_done
        return late.cancelled(), early.cancelled() or early.result(), lazy.is_root and early.cancel()

    assert ranks(body, gated, placement="every") == [(True, 2, False)] * 3


@claim(GUARANTEES, "**A rank that closes**: later casts fail with `ClosedError` naming it")
def closed() -> None:
    gone = threading.Event()

    def body(lazy: Any) -> Any:
        lazy.broadcast(rooted(lazy, 1))
        if lazy.rank == 2:
            lazy.close()
            gone.set()
            return 2
        gone.wait(20)
        return getattr(caught(lambda: lazy.broadcast(rooted(lazy, 2))), "rank", None)

    assert ranks(body) == [2, 2, 2]


@claim(CONCEPTS, "So close after this rank's last cast.")
def closed_here() -> None:
    def body(lazy: Any) -> Any:
        lazy.close()
        lazy.close()  # twice is fine
        return type(caught(lambda: lazy.broadcast(1)))

    assert ranks(body) == [ClosedError] * 3


@claim(
    GUARANTEES, "With `block=False`, or on the thread of a running asyncio loop, it raises `WouldBlockError` instead,"
)
def no_room() -> None:
    tried = threading.Event()

    def body(lazy: Any) -> Any:
        if not lazy.is_root:
            tried.wait(20)
            return [lazy.broadcast() for _ in range(3)]
        futures = [lazy.broadcast_async(n) for n in range(2)]
        assert not lazy.has_room()
        assert isinstance(caught(lambda: lazy.broadcast_async("refused", block=False)), WouldBlockError)
        tried.set()
        return [future.result() for future in [*futures, lazy.broadcast_async(2)]]  # that call did not count

    assert ranks(body, tuning=Tuning(max_inflight=2)) == [[0, 1, 2]] * 3


@claim("docs/how-to/tuning.md", "asking for it gives a `CancelledError`; `next()` leaves it out.")
def dropped() -> None:
    def body(lazy: Any) -> Any:
        if lazy.is_root:
            futures = [lazy.broadcast_async(n, key=n) for n in range(3)]
            return len(concurrent.futures.wait(futures, 20).done)
        limit_s = time.monotonic() + 20
        while (stats := lazy.stats()).casts < 3 or stats.unasked > 2:  # until all have come, and the word on the first
            assert time.monotonic() < limit_s
            time.sleep(0.001)
        if lazy.rank == 1:
            return [key for key, _ in (lazy.next(timeout_s=20) for _ in range(2))]
        first = lazy.broadcast_async(key=0)
        concurrent.futures.wait([first, *(lazy.broadcast_async(key=n) for n in (1, 2))], 20)
        return first.cancelled()

    options = Tuning(max_inflight=2, beyond="drop")
    assert ranks(body, tuning=options) == [3, [1, 2], True]


@claim(GUARANTEES, "A blocking call on the object that runs them raises `ReentrantCallError`; it never deadlocks.")
def reentrant() -> None:
    seen: list[BaseException | None] = []
    added = threading.Barrier(3, action=Gated.gate.set)
    Gated.close()

    def body(lazy: Any) -> None:
        future = lazy.broadcast_async(rooted(lazy, 1))
        done = threading.Event()

        def callback(_: Any) -> None:
            seen.append(caught(lambda: lazy.broadcast(2)))
            done.set()

        future.add_done_callback(callback)
        added.wait(20)  # it would run here if the future were done
        assert done.wait(20)

    ranks(body, gated, placement="every")
    assert [type(exc) for exc in seen] == [ReentrantCallError] * 3


@claim(CONCEPTS, '`1`, `"1"` and `b"1"` are three keys.')
def three_keys() -> None:
    def body(lazy: Any) -> list[str]:
        sent = {1: "int", "1": "str", b"1": "bytes"}
        order = list(sent) if lazy.rank % 2 else list(reversed(sent))
        futures = {key: lazy.broadcast_async(rooted(lazy, sent[key]), key=key) for key in order}
        return [futures[key].result() for key in sent]

    assert ranks(body) == [["int", "str", "bytes"]] * 3


class Number(enum.IntEnum):
    ONE = 1


@claim(GUARANTEES, "a subclass (`numpy.str_`, an `IntEnum`) counts as the plain value")
def keys_of_subclasses() -> None:
    def body(lazy: Any) -> list[Any]:
        keys: list[Any] = [Number.ONE, np.str_("a")] if lazy.rank == 1 else [1, "a"]
        return [lazy.broadcast(rooted(lazy, str(n)), key=key) for n, key in enumerate(keys)]

    assert ranks(body) == [["0", "1"]] * 3


@claim(
    GUARANTEES, "a `bool`, a `numpy.int64` and text with half a surrogate pair are refused, and the call does not count"
)
def keys_refused() -> None:
    def body(lazy: Any) -> Any:
        keys: list[Any] = [True, np.int64(1), "\ud800", 2**64, "x" * 1025] if lazy.rank == 1 else []
        refused = [caught(lambda key=key: lazy.broadcast(key=key)) for key in keys]
        assert all(isinstance(exc, (TypeError, ValueError)) for exc in refused), refused
        return lazy.broadcast(rooted(lazy, "in step")), lazy.broadcast(rooted(lazy, "k"), key=1)

    assert ranks(body) == [("in step", "k")] * 3


@claim(CONCEPTS, "A rank that will not ask for a cast says `lazy.discard(key)`")
def discarded() -> None:
    def body(lazy: Any) -> Any:
        if lazy.rank == 1:
            lazy.discard("k")
        else:
            lazy.broadcast(rooted(lazy, 1), key="k")
        return lazy.broadcast(rooted(lazy, 2), key="k")

    assert ranks(body) == [2, 2, 2]


HERE = threading.local()


def bad_here(value: int) -> int:
    if HERE.bad:
        raise ValueError
    return value


@claim(CONCEPTS, 'only where it happened: on a rank under `"every"`')
def without_agreement() -> None:
    def body(lazy: Any) -> Any:
        def prepare() -> None:
            HERE.bad = lazy.rank == 1

        with concurrent.futures.ThreadPoolExecutor(1, initializer=prepare) as pool:
            options: dict[str, Any] = {"placement": "every", "agree": False, "tuning": Tuning(executor=pool)}
            with LazyBroadcast(bad_here, timeout_s=20, **options) as own:
                return type(caught(lambda: own.broadcast(rooted(own, 7))))

    assert ranks(body) == [type(None), MaterializeError, type(None)]


@claim("docs/errors.md", "All errors are `LazycastError`. Each is also a standard class")
def errors_as_told() -> None:
    rows = re.findall(r"^\| `(\w+Error)`(?:, `(\w+)`)? \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(rows) >= 15
    for name, other in rows:
        kind = getattr(lazycast, name)
        assert issubclass(kind, lazycast.LazycastError)
        bases = {base.__name__ for base in kind.__mro__}
        assert not other or other in bases, (name, other)
    public = {name for name in lazycast.__all__ if name.endswith("Error")} - {"LazycastError"}
    assert public == {name for name, _ in rows}


@claim("docs/how-to/tuning.md", "| `timeout_s` | 300 s |")
@claim("docs/how-to/tuning.md", "| `warn_after_s` | 30 s |")
@claim(CONCEPTS, "by `max_inflight` casts (64) or `max_inflight_nbytes` of encoded payload (1 GiB,")
@claim(CONCEPTS, "`arena_nbytes` (1 GiB) bounds a rank's shared memory")
def defaults() -> None:
    own = Tuning()
    assert (own.max_inflight, own.warn_after_s) == (64, 30.0)
    assert own.max_inflight_nbytes == own.arena_nbytes == 1 << 30
    assert inspect.signature(LazyBroadcast).parameters["timeout_s"].default == 300.0


class Kept(logging.Handler):
    """Keeps the records of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, kind: str) -> list[logging.LogRecord]:
        return [record for record in self.records if vars(record).get("lazycast_kind") == kind]


@claim("docs/operations.md", "At most five of a class in ten seconds")
@claim("docs/operations.md", "how many (`lazycast_count`), after the ten seconds or at `close()`")
@claim(
    "docs/operations.md", "ranks, hosts, root, backend, placement, who shares memory with this rank, or why nobody does"
)
def the_log() -> None:
    logger, kept = logging.getLogger("lazycast"), Kept()
    level = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)

    def body(lazy: Any) -> None:
        for _ in range(12):
            assert caught(lambda: lazy.broadcast(rooted(lazy, 1)))

    try:
        ranks(body, fails, size=2, name="claims")
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
    assert len(kept.of("constructed")) == 2  # one line for each rank
    for word in ("2 ranks", "root", "placement"):
        assert word in kept.of("constructed")[0].getMessage()
    for number in range(2):
        assert len([r for r in kept.of("failed") if r.lazycast_rank == number]) == 5  # type: ignore[attr-defined]
        assert [r.lazycast_count for r in kept.of("left out") if r.lazycast_rank == number] == [7]  # type: ignore[attr-defined]


@claim("docs/operations.md", "and sets up no handler")
def no_handler() -> None:
    assert not [h for h in logging.getLogger("lazycast").handlers if not isinstance(h, logging.NullHandler)]


@claim("docs/errors.md", "A `CastTimeoutError` ends the call.")
@claim("docs/errors.md", "raises `concurrent.futures.TimeoutError` when *its* time is up: call `result()` again.")
def two_kinds_of_time() -> None:
    late = threading.Event()

    def body(lazy: Any) -> Any:
        if lazy.is_root:
            late.wait(20)
            return lazy.broadcast(5)
        future = lazy.broadcast_async()
        if lazy.rank == 1:
            exc = caught(lambda: future.result(timeout=0.05))
            assert isinstance(exc, concurrent.futures.TimeoutError)
            assert not isinstance(exc, CastTimeoutError)
            late.set()
        return future.result()

    assert ranks(body) == [5, 5, 5]


@pytest.mark.parametrize(("page", "words", "check"), claim)
def test_a_page_says_what_is_so(page: str, words: str, check: Check) -> None:
    judge(page, words, check)

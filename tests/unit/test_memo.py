"""What is remembered: hits on every rank, private values, what is never remembered, and which goes when room ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import os
import random
import re
import sys
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import (
    DecodeError,
    Each,
    EncodeError,
    Helpers,
    LazyBroadcast,
    MaterializeError,
    Memo,
    RemoteError,
    Staged,
    Tuning,
    launch,
    register_materializer,
)
from lazycast.codec.pickling import allocate, encode
from lazycast.core import making
from lazycast.core.memo.book import Book
from lazycast.core.memo.store import Store
from lazycast.net.host.memory import pages
from lazycast.net.wire import Failure

LIMIT_S = 60.0
MIB = 1 << 20
_made: list[Any] = []  # by all ranks, which are threads of this process


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    _made.clear()


def make(payload: Any) -> dict[str, Any]:
    _made.append(payload)
    n = payload if isinstance(payload, int) else 10
    return {"of": payload, "large": np.full(n, n % 251, np.uint8)}


def other(payload: Any) -> str:
    _made.append(payload)
    return f"other {payload}"


def fails_first(payload: Any) -> Any:
    _made.append(payload)
    if len(_made) == 1:
        raise ValueError("the first time")
    return payload


def with_a_lock(payload: Any) -> Any:
    _made.append(payload)
    return payload, threading.Lock()


def on_threads(fn: Callable[..., Any], *args: Any, ranks: int = 3) -> list[Any]:
    return launch(fn, ranks=ranks, backend="threads", args=args, timeout_s=200)


def lazy_of(fn: Any = make, *, memo: Memo = Memo(64 * MIB), **options: Any) -> LazyBroadcast[Any, Any]:  # noqa: B008
    return LazyBroadcast(fn, memo=memo, timeout_s=LIMIT_S, **options)


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


def _again(placement: Any, values: str, tuning: Tuning) -> tuple[int, int, int]:
    with lazy_of(placement=placement, values=values, tuning=tuning, root=lazy_root()) as lazy:
        for n in (3, 1000, 70_000, 3_000_001):
            held = [value_of(lazy, n)]
            for _ in range(3):
                value = value_of(lazy, n)
                assert value["of"] == n
                assert (value["large"] == n % 251).all()
                assert value["large"].flags.writeable == (values != "readonly") or placement == "every"
                if value["large"].flags.writeable:
                    value["large"][:] = 255 - lazy.rank  # its own
                held.append(value)
            del held, value
        stats = lazy.stats()
        return stats.memo_hits, stats.memo_values, stats.placements.get("every", 0)


def _rested(payload: Any) -> Any:
    time.sleep(0.05)
    return payload


def _saved(fn: Any, payload: Any) -> list[float]:
    with lazy_of(fn, placement="shard") as lazy:
        found = []
        for _ in range(3):
            value_of(lazy, payload)
            found.append(lazy.stats().memo_saved_s)
        assert ("saved" in str(lazy.stats())) == (found[2] > 0)
        return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_hit_saves_is_what_its_value_took_when_it_was_new(ranks: int) -> None:
    for fn, payload, least_s in ((_rested, 5, 0.05), (Each(_rested), [5, 6, 7, 5], 4 * 0.05 / ranks)):
        (new, once, twice), *elsewhere = on_threads(_saved, fn, payload, ranks=ranks)
        assert new == 0
        assert once >= least_s, "from before a rank began to make it"
        assert twice == pytest.approx(2 * once)
        for *_, on_another in elsewhere:  # where the next may have come before this is asked
            assert on_another > 0


def lazy_root() -> int:
    from lazycast.start.discovery import resolve

    return resolve("auto").size - 1


@pytest.mark.parametrize("placement", ["every", "shard", "auto"])
@pytest.mark.parametrize("values", ["private", "readonly", "copy"])
def test_what_was_cast_before_is_there_again_and_private(placement: str, values: str) -> None:
    for shared in ("auto", False):
        for ranks in (1, 3):
            _made.clear()
            for hits, kept, _ in on_threads(_again, placement, values, Tuning(shared_memory=shared), ranks=ranks):
                assert (hits, kept) == (12, 4)
            makers = 1 if placement == "shard" and shared == "auto" else ranks
            assert len(_made) == 4 * makers or placement == "auto"


def _helped() -> tuple[int, int]:
    with lazy_of(placement=Helpers(1)) as lazy:
        for n in (1000, 200_000):
            values = [value_of(lazy, n) for _ in range(3)]
            assert all((value["large"] == n % 251).all() for value in values)
        return lazy.stats().memo_hits, lazy.stats().memo_values


def test_what_helpers_made_is_not_made_again() -> None:
    assert on_threads(_helped, ranks=2) == [(4, 2), (4, 2)]
    assert on_threads(_helped, ranks=1) == [(4, 2)]
    assert _made == []


def _sent() -> int:
    with lazy_of(None, placement="every", tuning=Tuning(shared_memory=False)) as lazy:
        array = np.arange(MIB)
        for _ in range(5):
            assert (value_of(lazy, array) == np.arange(MIB)).all()
        return lazy.stats().nbytes_sent


def test_what_is_remembered_is_not_sent() -> None:
    root, *others = on_threads(_sent, ranks=2)
    assert 8 * MIB < root < 9 * MIB
    assert max(others) < 10_000


def _kinds() -> list[Any]:
    with lazy_of(placement="shard") as lazy:
        offset = 1
        first = value_of(lazy, 5, materialize=lambda payload: payload + offset)
        offset = 2  # what it captures has changed: it is another one
        second = value_of(lazy, 5, materialize=lambda payload: payload + offset)
        staged = Staged(other, lambda payload, hint: (payload, hint))
        found = [value_of(lazy, 5, materialize=fn) for fn in (make, other, other, staged, staged)]
        return [first, second, found[0]["of"], *found[1:], lazy.stats().memo_hits]


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_same_payload_with_another_materializer_is_another_value(ranks: int) -> None:
    for seen in on_threads(_kinds, ranks=ranks):
        assert seen == [6, 7, 5, "other 5", "other 5", (5, "other 5"), (5, "other 5"), 2]


def _by_key(key: Callable[[Any], Any]) -> list[Any]:
    with lazy_of(placement="shard", memo=Memo(MIB, key=key)) as lazy:
        return [value_of(lazy, payload)["of"] for payload in (("a", 1), ("a", 2), ("b", 3), ("b", 4))]


def test_a_key_of_the_user_names_a_payload() -> None:
    for ranks in (1, 3):
        for seen in on_threads(_by_key, lambda payload: payload[0], ranks=ranks):
            assert seen == [("a", 1), ("a", 1), ("b", 3), ("b", 3)]


def _bad_key(key: Callable[[Any], Any]) -> tuple[str, Any]:
    with lazy_of(placement="shard", memo=Memo(MIB, key=key)) as lazy:
        with pytest.raises(EncodeError if lazy.is_root else RemoteError) as caught:
            value_of(lazy, "bad")
        return str(caught.value), value_of(lazy, "good")["of"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_key_that_is_none_or_raises_fails_its_call_alone(ranks: int) -> None:
    for text, after in on_threads(_bad_key, lambda payload: 1.5 if payload == "bad" else payload, ranks=ranks):
        assert "key must return a str, int or bytes, got 1.5" in text
        assert after == "good"
    for text, after in on_threads(_bad_key, lambda payload: {"good": "good"}[payload], ranks=ranks):
        assert "KeyError: 'bad'" in text
        assert after == "good"


def _key_exits(payload: Any) -> Any:
    if payload == "bad":
        raise SystemExit("no key")
    return payload


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_key_may_raise_what_is_no_exception(ranks: int) -> None:
    for text, after in on_threads(_bad_key, _key_exits, ranks=ranks):
        assert "no key" in text
        assert after == "good"


def _long_keys() -> list[int]:
    with lazy_of(_rested, placement="shard", memo=Memo(MIB, key=lambda payload: payload)) as lazy:
        for key in (10**5000, -(10**5000), 16, "16", "10", b"10", 10**5000):
            value_of(lazy, key)
        return [lazy.stats().memo_hits, lazy.stats().memo_values]


@pytest.mark.parametrize("ranks", [1, 3])
def test_keys_of_any_length_and_type_are_apart(ranks: int) -> None:
    assert on_threads(_long_keys, ranks=ranks) == [[1, 6]] * ranks


def _bound_anew(of: Callable[[Any], Any]) -> tuple[list[Any], int]:
    module = types.ModuleType("bound_anew")
    sys.modules[module.__name__] = module
    found = []
    with lazy_of(None, placement="shard") as lazy:
        for version in (1, 2, 2):
            if version == 1 or found[-1] == [1]:
                exec(compile(f"def fn(item): return {version}", module.__name__, "exec"), vars(module))
            found.append(lazy.broadcast([0], materialize=of(module.fn)))
        return found, lazy.stats().memo_hits


@pytest.mark.parametrize(
    "of",
    [Each, lambda fn: Each(functools.partial(fn)), lambda fn: functools.partial(Each(fn))],
    ids=["each", "inner", "outer"],
)
def test_what_holds_a_function_that_is_bound_anew_is_another_materializer(of: Callable[[Any], Any]) -> None:
    try:
        (told,) = on_threads(_bound_anew, of, ranks=1)
        assert told == ([[1], [2], [2]], 1)
    finally:
        del sys.modules["bound_anew"]


# What is never remembered


def _failed() -> tuple[Any, int]:
    with lazy_of(fails_first, placement="shard") as lazy:
        with pytest.raises(MaterializeError, match="the first time"):
            value_of(lazy, 7)
        values = [value_of(lazy, 7) for _ in range(3)]
        return values, lazy.stats().memo_hits


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_failure_is_not_remembered(ranks: int) -> None:
    for seen in on_threads(_failed, ranks=ranks):
        assert seen == ([7, 7, 7], 2)
    assert _made == [7, 7]


def _unpicklable() -> tuple[int, int]:
    with lazy_of(with_a_lock, placement="every") as lazy:
        for _ in range(3):
            assert value_of(lazy, 7)[0] == 7
        if lazy.is_root:
            assert "could not be kept" in lazy.dump()
        return lazy.stats().memo_hits, lazy.stats().memo_values


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_value_that_does_not_pickle_is_made_each_time(ranks: int) -> None:
    assert on_threads(_unpicklable, ranks=ranks) == [(0, 0)] * ranks
    assert len(_made) == 3 * ranks


class Unreadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return _unreadable, ()


def _unreadable() -> Any:
    raise RuntimeError("it cannot be rebuilt")


class Panics:
    """Its own code raises no Exception, as of an extension that panics."""

    def __reduce__(self) -> Any:
        raise SystemExit("panic")


def unreadable(payload: Any) -> Any:
    return Unreadable()


def panics(payload: Any) -> Any:
    return Panics()


def _kept_by_each(fn: Any, placement: str, each: bool) -> tuple[list[str], int]:
    with lazy_of(Each(fn) if each else fn, placement=placement, tuning=Tuning(shared_memory=False)) as lazy:
        found = []
        for _ in range(4):
            value = value_of(lazy, [1, 2] if each else 1)
            found.append(type(value[0] if each else value).__name__)
        assert not sum(lazy.stats().failed.values())
        assert not lazy.stats().memo_values
        return found, lazy.stats().memo_hits


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("placement", ["every", "shard"])
@pytest.mark.parametrize("each", [False, True], ids=["whole", "items"])
@pytest.mark.parametrize("fn", [unreadable, panics])
def test_a_value_that_cannot_be_read_or_written_again_costs_time_only(
    fn: Any, each: bool, placement: str, ranks: int
) -> None:
    assert on_threads(_kept_by_each, fn, placement, each, ranks=ranks) == [([fn(1).__class__.__name__] * 4, 0)] * ranks


def _many_roots(all_did: threading.Barrier) -> int:
    with lazy_of(placement="shard", memo=Memo(MIB), roots="any") as lazy:
        for n in [*(100_000 + turn for turn in range(20)), 1]:  # with the last one each says what goes
            values = [lazy.broadcast(n if root == lazy.rank else None, key=n, root=root) for root in range(lazy.size)]
            assert [len(value["large"]) for value in values] == [n] * lazy.size
        all_did.wait(LIMIT_S)
        return lazy.stats().memo_nbytes


def test_all_roots_together_keep_as_much_as_one_would() -> None:
    for nbytes in on_threads(_many_roots, threading.Barrier(3)):
        assert MIB // 2 < nbytes <= MIB


def _discarded(met: threading.Barrier) -> tuple[int, int]:
    with lazy_of(placement="shard") as lazy:
        if lazy.rank == 1:
            lazy.discard("first")
        met.wait(20)  # or it would have been remembered before
        if lazy.rank != 1:
            value_of(lazy, 70_000, key="first")
        for n in range(3):
            value_of(lazy, 70_000, key=f"later {n}")
        return lazy.stats().memo_hits, lazy.stats().memo_values


def test_what_some_rank_did_not_want_is_not_remembered() -> None:
    assert on_threads(_discarded, threading.Barrier(3)) == [(2, 1)] * 3


def _lost(all_did: threading.Barrier, key: str | None, shared: str | bool, nbytes: int) -> tuple[list[Any], int, int]:
    """Two ranks of three lose a value."""
    with lazy_of(placement="shard", tuning=Tuning(shared_memory=shared)) as lazy:
        value_of(lazy, nbytes)
        lane: Any = lazy._lane
        sent: list[Any] = []
        if lazy.is_root:
            again = lane.sending.encoder.again
            lane.sending.encoder.again = lambda *args: (sent.append(args), again(*args))[1]
        else:
            lane.casts.keeping.store.drop(1)
        all_did.wait(LIMIT_S)  # a cast waits for no rank's calls
        value_of(lazy, 1)
        payloads = [nbytes, 1, nbytes, 1, nbytes]
        if key is not None:
            values = [value_of(lazy, payload, key=key) for payload in payloads]
        else:
            futures = [lazy.broadcast_async(payload if lazy.is_root else None) for payload in payloads]
            values = [future.result(LIMIT_S) for future in futures]
        values[0]["large"][:] = 255  # this rank's own
        assert (values[2]["large"] == nbytes % 251).all()
        assert (values[4]["large"] == nbytes % 251).all()
        assert [value["of"] for value in values] == payloads
        assert not sum(lazy.stats().failed.values())
        return sent, lazy.stats().memo_hits, lazy.stats().memo_values


@pytest.mark.parametrize(("nbytes", "shared"), [(70_000, "auto"), (6_000_000, False)], ids=["one host", "three"])
def test_what_ranks_have_lost_the_root_sends_them_once_and_then_it_is_made_anew(
    nbytes: int, shared: str | bool
) -> None:
    told = on_threads(_lost, threading.Barrier(3), "same", shared, nbytes)
    assert [len(sent) for sent, _, _ in told] == [1, 0, 0], "once for both"
    assert [(hits, values) for _, hits, values in told] == [(4, 2)] * 3
    assert _made.count(nbytes) == (2 if shared else 6)


@pytest.mark.parametrize(("nbytes", "shared"), [(70_000, "auto"), (6_000_000, False)], ids=["one host", "three"])
def test_what_ranks_have_lost_the_root_sends_with_each_cast_that_has_begun(nbytes: int, shared: str | bool) -> None:
    told = on_threads(_lost, threading.Barrier(3), None, shared, nbytes)
    assert 1 <= len(told[0][0]) <= 3
    made = 3 if shared else 9  # at most: once at first, and once for each that begins while it is made anew
    assert _made.count(nbytes) <= made


def _no_memory(all_did: threading.Barrier) -> list[Any]:
    """A rank can neither have a value again nor take it: it fails on every rank, and the next cast works."""
    with lazy_of(placement="shard") as lazy:
        value_of(lazy, 70_000)
        value_of(lazy, 1)
        if lazy.rank == 2:
            lane: Any = lazy._lane
            lane.casts.keeping.store.drop(1)
            lane.casts.making._give = lambda *_: Failure("decode", lazy.rank, "h", "no memory")
        all_did.wait(LIMIT_S)  # as above
        value_of(lazy, 1)
        with pytest.raises(DecodeError) as caught:
            value_of(lazy, 70_000)
        values = [value_of(lazy, 70_000)["of"] for _ in range(2)]
        return [caught.value.rank, *values]


def test_what_a_rank_cannot_take_fails_once_and_is_made_again() -> None:
    assert on_threads(_no_memory, threading.Barrier(3)) == [[2, 70_000, 70_000]] * 3
    assert _made == [70_000, 1, 70_000]


def _root_lost() -> tuple[list[Any], int, int]:
    with lazy_of(placement="shard") as lazy:
        value_of(lazy, 70_000)
        value_of(lazy, 1)
        if lazy.is_root:
            lane: Any = lazy._lane
            lane.casts.keeping.store.drop(1)
        values = [value_of(lazy, payload)["of"] for payload in (70_000, 1, 70_000)]
        return values, lazy.stats().memo_values, sum(lazy.stats().failed.values())


def test_what_the_root_has_lost_is_made_again() -> None:
    assert on_threads(_root_lost) == [([70_000, 1, 70_000], 2, 0)] * 3
    assert _made == [70_000, 1, 70_000]


def _withdrawn() -> tuple[bool, int]:
    with lazy_of(placement="every") as lazy:
        value_of(lazy, 70_000)
        value_of(lazy, 1)
        future = lazy.broadcast_async(70_000 if lazy.is_root else None, key="again")
        cancelled = future.cancel() if lazy.is_root else False  # it may be too late
        if not cancelled and not lazy.is_root:
            with contextlib.suppress(concurrent.futures.CancelledError):
                future.result(LIMIT_S)
        value_of(lazy, 1)
        value_of(lazy, 70_000)
        return cancelled, len(_made)


def test_what_is_withdrawn_when_it_is_had_again_is_still_remembered() -> None:
    for _, made in on_threads(_withdrawn):
        assert made == 6


def _asked_late(lost: threading.Event, asked: threading.Event) -> int:
    """A rank that has lost a value asks for its cast after that has come, and before the value has."""
    with lazy_of(placement="every") as lazy:
        value_of(lazy, 70_000)
        value_of(lazy, 1)
        lane: Any = lazy._lane
        if lazy.is_root:
            encode_again = lane.sending.encoder.again

            def when_asked(*args: Any) -> Any:
                assert asked.wait(LIMIT_S)
                return encode_again(*args)

            lane.sending.encoder.again = when_asked
        if lazy.rank != 2:
            assert lost.wait(LIMIT_S)  # else the cast could come before
            return int(value_of(lazy, 70_000)["of"])
        lane.casts.keeping.store.drop(1)
        lost.set()
        deadline_s = time.monotonic() + LIMIT_S
        while not lane.casts.making._parked:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        future = lazy.broadcast_async()
        asked.set()
        return int(future.result(LIMIT_S)["of"])


def test_what_a_rank_has_lost_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []

    def allocated(nbytes: int) -> memoryview:
        copied.append(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(making, "allocate", allocated)
    assert on_threads(_asked_late, threading.Event(), threading.Event()) == [70_000] * 3
    assert len(copied) == 1


# What goes


def _random_casts(seed: int, nbytes: int, sizes: list[int]) -> tuple[int, int, list[bool] | None]:
    hits = []
    with lazy_of(placement="every", memo=Memo(nbytes)) as lazy:
        chosen = random.Random(seed)
        for _ in range(250):
            n = sizes[min(int(chosen.expovariate(0.3)), len(sizes) - 1)]
            before = lazy.stats().memo_hits
            value = value_of(lazy, n)
            hits.append(lazy.stats().memo_hits > before)
            assert value["of"] == n
            assert (value["large"] == n % 251).all()
            value["large"][:] = 252
        stats = lazy.stats()  # a cast can be here before this rank asks for it: only the root sees which was a hit
        return stats.memo_nbytes, stats.memo_hits, hits if lazy.is_root else None


def _predicted(seed: int, nbytes: int, sizes: list[int]) -> list[bool]:
    """The same with a plain LRU cache."""
    chosen, cache, hits = random.Random(seed), OrderedDict[int, int](), []
    for _ in range(250):
        n = sizes[min(int(chosen.expovariate(0.3)), len(sizes) - 1)]
        hits.append(n in cache)
        if n in cache:
            cache.move_to_end(n)
        else:
            size = pages(encode({"of": n, "large": np.full(n, n % 251, np.uint8)}).nbytes)
            if size <= nbytes:
                cache[n] = size
            while sum(cache.values()) > nbytes:
                cache.popitem(last=False)
    return hits


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("seed", [0, *(pytest.param(it, marks=pytest.mark.exhaustive) for it in (1, 2))])
def test_the_least_recently_used_goes_on_every_rank_alike(seed: int, ranks: int) -> None:
    sizes = [10, 70_001, 70_002, 500_000, 20, 300_000, 1_000_000, 30, 2_000_000, 65_000]
    nbytes = 1_200_000
    expected = _predicted(seed, nbytes, sizes)
    assert True in expected
    assert False in expected[50:]
    for kept_nbytes, count, hits in on_threads(_random_casts, seed, nbytes, sizes, ranks=ranks):
        assert hits in (None, expected)
        assert count == sum(expected)
        assert kept_nbytes <= nbytes + 1_000_000  # what goes with the next cast


def test_a_store_without_address_space_keeps_nothing_and_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> Any:
        raise MemoryError("no address space")

    monkeypatch.setattr("lazycast.core.memo.store.Region", none_left)
    store, open_before = Store(MIB), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(MemoryError, match="no address space"):
            store.put(encode(b"value"), 1.0)
    assert len(os.listdir("/proc/self/fd")) == open_before
    store.close()


def test_a_place_that_is_held_is_not_used_again() -> None:
    store = Store(2 * MIB)
    first = store.put(encode(np.full(3 * MIB, 1, np.uint8)), 1.0)
    store.keep(1, first)
    held = first.body()
    del first
    store.drop(1)
    second = store.put(encode(np.full(3 * MIB, 2, np.uint8)), 1.0)
    store.keep(2, second)
    assert held[-1] == 1
    with pytest.raises(MemoryError, match="values that were dropped are still held"):
        store.put(encode(np.full(3 * MIB, 3, np.uint8)), 1.0)
    del held
    third = store.put(encode(np.full(3 * MIB, 3, np.uint8)), 1.0)
    assert third.body()[-1] == 3
    assert second.body()[-1] == 2
    mine, other_one = second.body(), second.body()
    mine[-1] = 9
    assert (other_one[-1], second.body()[-1]) == (2, 2)
    del second
    store.close()
    with pytest.raises(MemoryError, match="closed"):
        third.body()
    assert (mine[-1], other_one[-1]) == (9, 2)


def test_the_book_knows_what_all_keep_and_says_what_goes_once() -> None:
    book = Book(100, range(2))

    def cast(ident: bytes, seq: int, nbytes: tuple[int, int], *, good: bool = True) -> int:
        number = book.begin(ident, seq)
        for rank, kept in enumerate(nbytes):
            book.reported(seq, 1 << rank, kept)
        book.decided(seq, good=good)
        return number

    assert cast(b"a", 1, (40, 41)) == 1
    assert book.look(b"a", 2) == 1
    assert book.begin(b"a", 3) == 0, "it is known"
    assert cast(b"b", 4, (40, 0)) == 2, "not everywhere"
    assert book.look(b"b", 5) == 0
    assert book.take_drops() == [2]
    assert cast(b"c", 6, (101, 101)) == 3, "too large"
    assert cast(b"d", 7, (10, 10), good=False) == 4
    assert book.look(b"c", 8) == book.look(b"d", 9) == 0
    assert cast(b"e", 10, (50, 50)) == 5
    assert book.look(b"a", 11) == 1
    assert cast(b"f", 12, (50, 50)) == 6
    assert book.take_drops() == [3, 5], "the oldest, but for what was used"
    assert book.take_drops() == []
    book.decided(11, good=False)
    assert book.look(b"a", 16) == 1, "it was withdrawn"
    book.decided(16, good=False, lost=True)
    assert book.look(b"a", 13) == 0, "some rank could not have it again"
    assert book.take_drops() == [1]
    assert book.begin(b"g", 14) == 7
    assert book.begin(b"g", 15) == 0, "it is under way"


# Names, forks, ends


def _named_again() -> list[Any]:
    first = register_materializer("named again", lambda payload: "one")
    with lazy_of(None) as lazy:
        seen = [lazy.broadcast(b"payload", materialize=first) for _ in range(2)]
        again = register_materializer("named again", lambda payload: "two")
        seen += [lazy.broadcast(b"payload", materialize=again) for _ in range(2)]
        return [*seen, lazy.stats().memo_hits]


def test_a_name_that_is_registered_again_is_another_materializer() -> None:
    assert launch(_named_again, ranks=1, backend="threads", timeout_s=200) == [["one", "one", "two", "two", 2]]


def test_memory_is_given_back_when_the_object_is_closed() -> None:
    def shared_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"RssShmem:\s+(\d+)", status)[0])

    gc.collect()  # of other tests
    before = shared_kib()
    with LazyBroadcast(make, memo=Memo(64 * MIB), timeout_s=LIMIT_S) as lazy:
        for n in range(4):
            lazy.broadcast(n + 4 * MIB)
        assert shared_kib() - before > 8 << 10
    gc.collect()
    assert shared_kib() - before < 4 << 10, "though somebody keeps the object"
    assert lazy.closed


def test_what_is_held_when_a_process_forks_stays_as_it_is_for_the_child(run_python: Callable[..., str]) -> None:
    code = """
import gc, os
import numpy as np
from lazycast import LazyBroadcast, Memo

with LazyBroadcast(lambda payload: np.full(1 << 18, payload, np.uint8), memo=Memo(3 << 18)) as lazy:
    lazy.broadcast(1)
    value = lazy.broadcast(1)
    assert lazy.stats().memo_hits == 1
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go, 1)
        os._exit(0 if set(value.tolist()) == {1} else 1)
    del value
    for n in range(2, 30):
        lazy.broadcast(n)
    gc.collect()
    os.write(gone, b"x")
    print("the child saw", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code) == "the child saw 0\n"


def when_there(payload: str) -> tuple[str, str]:
    while not Path(payload).exists():
        time.sleep(0.01)
    return "made", payload


def test_what_nobody_wanted_is_not_remembered_as_nothing(tmp_path: Path) -> None:
    go, there = tmp_path / "go", str(tmp_path)
    with LazyBroadcast(when_there, placement=Helpers(1), memo=Memo(MIB), timeout_s=LIMIT_S) as lazy:
        first = lazy.broadcast_async(str(go))
        second = lazy.broadcast_async(there)  # it waits for the helper
        assert second.cancel()
        go.touch()
        assert first.result() == ("made", str(go))
        deadline_s = time.monotonic() + LIMIT_S
        while lazy.stats().pending:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert [lazy.broadcast(there) for _ in range(2)] == [("made", there)] * 2

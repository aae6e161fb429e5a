"""Single items that are remembered: what is made, sent and kept, against a model, and what becomes of what is lost."""

from __future__ import annotations

import concurrent.futures
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from lazycast import (
    DecodeError,
    Each,
    EncodeError,
    LazyBroadcast,
    LazycastError,
    MaterializeError,
    Memo,
    RemoteError,
    Tuning,
    launch,
)
from lazycast.codec.pickling import encode
from lazycast.core.memo.book import MOST_ITEMS, Book
from lazycast.materialize.each import Some, in_order
from lazycast.net.host.memory import pages

LIMIT_S = 60.0
MIB = 1 << 20
_made: list[Any] = []  # by all ranks, which are threads of this process


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    _made.clear()


def make(item: int) -> Any:
    """A small result, or an array of so many bytes."""
    _made.append(item)
    if item < 0:
        raise ValueError(f"no item {item}")
    return np.full(item, item % 251, np.uint8)


def made_of(item: int) -> Any:
    return np.full(item, item % 251, np.uint8)


def with_a_lock(item: int) -> Any:
    _made.append(item)
    return item, threading.Lock()


def on_threads(fn: Callable[..., Any], *args: Any, ranks: int = 3) -> list[Any]:
    return launch(fn, ranks=ranks, backend="threads", args=args, timeout_s=200)


def lazy_of(fn: Any, memo: Memo = Memo(64 * MIB), **options: Any) -> LazyBroadcast[Any, Any]:  # noqa: B008
    return LazyBroadcast(fn, memo=memo, timeout_s=LIMIT_S, **{"placement": "shard", **options})


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


# Against a model

SIZES = [10, 70_001, 70_002, 500_000, 20, 300_000, 1_000_000, 30, 2_000_000, 65_000, 5, 6, 7, 8]
ROOM_NBYTES = 1_200_000


def _requests(seed: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    for _ in range(60):
        yield [SIZES[min(int(rng.expovariate(0.3)), len(SIZES) - 1)] for _ in range(rng.choice((1, 1, 2, 3, 8)))]


def _random_casts(seed: int, values: str, shared: str | bool) -> tuple[int, int]:
    memo = Memo(ROOM_NBYTES)
    with lazy_of(Each(make), memo, values=values, tuning=Tuning(shared_memory=shared), root=_last()) as lazy:
        for payload in _requests(seed):
            results = value_of(lazy, payload)
            assert len(results) == len(payload)
            for item, result in zip(payload, results, strict=True):
                assert result.shape == (item,)
                assert (result == item % 251).all()
            for result in results:
                if result.flags.writeable:
                    result[:] = 251 + lazy.rank  # its own
        value_of(lazy, [1])  # whatever went is said with it
        return lazy.stats().memo_hits, lazy.stats().memo_nbytes


def _last() -> int:
    from lazycast.start.discovery import resolve

    return resolve("auto").size - 1


def _predicted(seed: int) -> tuple[int, int]:
    """With a plain LRU cache: how often an item is had again, and how many are made."""
    cache, hits, made = OrderedDict[int, int](), 0, 0
    for payload in [*_requests(seed), [1]]:
        known, new = set(cache), []
        for item in payload:
            if item in known:
                cache.move_to_end(item)
                hits += 1
            else:
                made += 1
                new.append(item)
        for item in dict.fromkeys(new):
            size = pages(encode(made_of(item)).nbytes)
            if size <= ROOM_NBYTES:
                cache[item] = size
        while sum(cache.values()) > ROOM_NBYTES:
            cache.popitem(last=False)
    return hits, made


@pytest.mark.parametrize(("ranks", "shared"), [(1, "auto"), (2, "auto"), (3, "auto"), (2, False)])
@pytest.mark.parametrize(("seed", "values"), [(1, "private"), (2, "readonly"), (3, "copy")])
def test_items_are_made_once_and_the_least_recently_used_go(
    ranks: int, shared: str | bool, seed: int, values: str
) -> None:
    hits, made = _predicted(seed)
    assert hits > 30
    assert made > 30
    for counted, nbytes in on_threads(_random_casts, seed, values, shared, ranks=ranks):
        assert counted == hits
        assert nbytes <= ROOM_NBYTES + pages(1)
    assert len(_made) == made * (ranks if shared is False else 1)


def _album() -> tuple[list[int], int, int]:
    with lazy_of(Each(make), tuning=Tuning(shared_memory=False)) as lazy:
        sent = []
        for payload in ([*range(MIB, MIB + 8)], [*range(MIB, MIB + 8)], [*range(MIB, MIB + 7), MIB + 9]):
            before = lazy.stats().nbytes_sent
            assert [len(one) for one in value_of(lazy, payload)] == payload
            sent.append(lazy.stats().nbytes_sent - before)
        return sent, lazy.stats().memo_hits, lazy.stats().memo_values


def test_of_eight_items_one_that_is_new_is_made_alone() -> None:
    for _, hits, values in on_threads(_album, ranks=2):
        assert (hits, values) == (15, 9)
    assert sorted(_made) == sorted([*range(MIB, MIB + 8), MIB + 9] * 2)


def tripled(item: Any) -> Any:
    _made.append(len(item))
    return item * 3


def _large() -> int:
    with lazy_of(Each(tripled), tuning=Tuning(shared_memory=False)) as lazy:
        payload = [np.full(MIB, n, np.uint8) for n in range(4)]
        for _ in range(5):
            assert [int(one[7]) for one in value_of(lazy, payload)] == [0, 3, 6, 9]
        payload[2] = np.full(MIB, 9, np.uint8)
        assert [int(one[7]) for one in value_of(lazy, payload)] == [0, 3, 27, 9]
        return lazy.stats().nbytes_sent


def test_an_item_that_is_remembered_is_not_sent() -> None:
    root, other = on_threads(_large, ranks=2)
    assert 5 * MIB < root < 5.2 * MIB
    assert other < 10_000
    assert len(_made) == 2 * 5


# What an item is


def both(made: list[Any]) -> tuple[int, list[Any]]:
    for one in made:
        one[:] = 99  # the results are its own
    return len(made), made


def halves(payload: str) -> list[int]:
    return [int(half) for half in payload.split("-")]


def _split_and_joined() -> list[Any]:
    with lazy_of(Each(make, halves, both)) as lazy:
        found = [value_of(lazy, payload) for payload in ("3-4", "4-3", "3-5")]
        other = value_of(lazy, "3-4", materialize=Each(make, halves))
        return [*((count, [len(one) for one in made]) for count, made in found), [int(one[0]) for one in other]]


@pytest.mark.parametrize("ranks", [1, 3])
def test_payloads_share_what_they_are_split_into_and_join_gets_all_in_order(ranks: int) -> None:
    for found in on_threads(_split_and_joined, ranks=ranks):
        assert found == [(2, [3, 4]), (2, [4, 3]), (2, [3, 5]), [3, 4]]
    assert sorted(_made) == [3, 3, 4, 4, 5], "another join makes another materializer"


def _nested() -> Any:
    """A payload and an item that are the same have other values."""
    with lazy_of(Each(str)) as lazy:
        whole = value_of(lazy, [1, 2], materialize=Each(str))
        return whole, value_of(lazy, [[1, 2]]), value_of(lazy, [1, 2])


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_item_is_no_payload(ranks: int) -> None:
    for found in on_threads(_nested, ranks=ranks):
        assert found == (["1", "2"], ["[1, 2]"], ["1", "2"])


def first(item: tuple[Any, int]) -> int:
    _made.append(item)
    return item[1]


def _by_key(asked: list[Any]) -> list[Any]:
    def key(item: tuple[str, int]) -> Any:
        asked.append(item)
        return item[0]

    with lazy_of(Each(first), Memo(MIB, key=key)) as lazy:
        found = [value_of(lazy, payload) for payload in ([("a", 1), ("b", 2)], [("b", 3), ("c", 4)])]
        with pytest.raises(EncodeError if lazy.is_root else RemoteError, match="key must return a str, int or bytes"):
            value_of(lazy, [("a", 1), (None, 5)])
        return [*found, value_of(lazy, [("c", 6)]), value_of(lazy, [])]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_key_of_the_user_names_an_item(ranks: int) -> None:
    asked: list[Any] = []
    for found in on_threads(_by_key, asked, ranks=ranks):
        assert found == [[1, 2], [2, 4], [4], []]
    assert all(type(item) is tuple for item in asked)
    assert sorted(_made) == [("a", 1), ("b", 2), ("c", 4)]


def _too_many() -> int:
    with lazy_of(Each(first)) as lazy:
        payload = [(n, n) for n in range(MOST_ITEMS + 1)]
        for _ in range(3):
            assert value_of(lazy, payload) == list(range(MOST_ITEMS + 1))
        return lazy.stats().memo_hits


@pytest.mark.parametrize("ranks", [1, 2])
def test_of_more_items_than_a_message_may_name_the_whole_is_remembered(ranks: int) -> None:
    assert on_threads(_too_many, ranks=ranks) == [2] * ranks
    assert len(_made) == MOST_ITEMS + 1


# What is never remembered


def _failed() -> tuple[str, int, int]:
    with lazy_of(Each(make)) as lazy:
        value_of(lazy, [3, 4])
        with pytest.raises(MaterializeError) as caught:
            value_of(lazy, [3, 4, 5, -1])
        for _ in range(2):
            assert [len(one) for one in value_of(lazy, [5, 3])] == [5, 3]
        return str(caught.value), lazy.stats().memo_hits, lazy.stats().memo_values


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_failure_names_its_item_and_nothing_of_its_cast_is_remembered(ranks: int) -> None:
    for text, hits, values in on_threads(_failed, ranks=ranks):
        assert "at item 3" in text, text
        assert "no item -1" in text
        assert (hits, values) == (2 + 1 + 2, 3)


def _unpicklable() -> tuple[int, int]:
    with lazy_of(Each(with_a_lock)) as lazy:
        for _ in range(2):
            assert [one[0] for one in value_of(lazy, [3, 4])] == [3, 4]
        return lazy.stats().memo_hits, lazy.stats().memo_values


@pytest.mark.parametrize("ranks", [1, 2])
def test_results_that_do_not_pickle_are_made_each_time(ranks: int) -> None:
    assert on_threads(_unpicklable, ranks=ranks) == [(0, 0)] * ranks


def endless(payload: Any) -> Any:
    return iter(payload)


def _not_split() -> str:
    with lazy_of(Each(make, endless)) as lazy:
        with pytest.raises(MaterializeError) as caught:
            value_of(lazy, [3])
        assert [len(one) for one in value_of(lazy, [3], materialize=Each(make))] == [3]
        return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_split_that_gives_no_sequence_is_an_error_on_every_rank(ranks: int) -> None:
    for text in on_threads(_not_split, ranks=ranks):
        assert "split must return a sequence of items, such as a list, got list_iterator" in text


class Unending:
    """Says that it has two items, and has one wherever it is asked."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return 3


def _from_unending() -> list[int]:
    with lazy_of(Each(make)) as lazy:
        return [len(one) for one in value_of(lazy, Unending())]


@pytest.mark.parametrize("ranks", [1, 2])
def test_items_are_counted_before_they_are_taken(ranks: int) -> None:
    assert on_threads(_from_unending, ranks=ranks) == [[3, 3]] * ranks


_goes_on = threading.Event()


def held_up(payload: Any) -> Any:
    assert payload[0] or _goes_on.wait(LIMIT_S)
    return payload


def _while_one_is_taken_apart() -> None:
    with lazy_of(Each(make, held_up)) as lazy:
        held = lazy.broadcast_async([0, 3] if lazy.is_root else None, key="held")
        assert [len(one) for one in value_of(lazy, [4], key="other", materialize=Each(make))] == [4]
        if lazy.is_root:
            assert held.cancel()
        with pytest.raises((concurrent.futures.CancelledError, LazycastError)):
            held.result(LIMIT_S)
        _goes_on.set()
        assert [len(one) for one in value_of(lazy, [2, 4])] == [2, 4]


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_split_that_takes_its_time_stops_no_other_cast(ranks: int) -> None:
    _goes_on.clear()
    on_threads(_while_one_is_taken_apart, ranks=ranks)


# What is lost


def _lost(losers: tuple[int, ...], all_did: threading.Barrier) -> tuple[int, int]:
    with lazy_of(Each(make)) as lazy:
        value_of(lazy, [70_000, 5, 80_000])
        value_of(lazy, [1])
        if lazy.rank in losers:
            lane: Any = lazy._lane
            lane.casts.keeping.store.drop(1)
            lane.casts.keeping.store.drop(2)
        all_did.wait(LIMIT_S)  # a cast waits for no rank's calls
        for _ in range(3):
            results = value_of(lazy, [80_000, 70_000, 6, 5])
            assert [len(one) for one in results] == [80_000, 70_000, 6, 5]
            assert all((one == len(one) % 251).all() for one in results)
            for one in results:
                one[:] = 252
        return lazy.stats().memo_hits, sum(lazy.stats().failed.values())


@pytest.mark.parametrize("losers", [(1,), (1, 2)])
def test_what_ranks_have_lost_the_root_sends_them(losers: tuple[int, ...]) -> None:
    assert [failed for _, failed in on_threads(_lost, losers, threading.Barrier(3))] == [0] * 3
    assert sorted(_made) == [1, 5, 5, 6, 70_000, 70_000, 80_000, 80_000], "it is sent once, and then made anew"


class Locked:
    """A result that cannot be encoded again once it was rebuilt."""

    def __init__(self, of: int) -> None:
        self.of, self.held = of, threading.Lock() if of < 0 else None

    def __reduce__(self) -> Any:
        if self.held is not None:
            raise TypeError("it holds a lock")
        return Locked, (-self.of,)


def _locked_again(all_did: threading.Barrier) -> list[Any]:
    with lazy_of(Each(Locked), tuning=Tuning(shared_memory=False)) as lazy:
        value_of(lazy, [7, 8])
        value_of(lazy, [9])
        if lazy.rank == 1:
            cast(Any, lazy)._lane.casts.keeping.store.drop(1)
        all_did.wait(LIMIT_S)
        return [[abs(one.of) for one in value_of(lazy, [7, 8])] for _ in range(3)]


def test_what_was_lost_is_sent_as_it_was_kept() -> None:
    assert on_threads(_locked_again, threading.Barrier(3)) == [[[7, 8]] * 3] * 3


def _no_room_for_what_is_sent(all_did: threading.Barrier, patch: pytest.MonkeyPatch) -> list[Any]:
    with lazy_of(Each(make)) as lazy:
        value_of(lazy, [70_000, 5])
        value_of(lazy, [1])
        if lazy.rank == 1:
            cast(Any, lazy)._lane.casts.keeping.store.drop(1)
            patch.setattr("lazycast.core.items.sharing.allocate", _no_memory)
        all_did.wait(LIMIT_S)
        with pytest.raises(DecodeError, match="could not be had again") as caught:
            value_of(lazy, [70_000, 5], timeout_s=20)
        all_did.wait(LIMIT_S)
        return [caught.value.rank, [len(one) for one in value_of(lazy, [70_000, 5])]]


def test_a_rank_without_memory_for_what_it_is_sent_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_threads(_no_room_for_what_is_sent, threading.Barrier(3), monkeypatch)
    assert found == [[1, [70_000, 5]]] * 3, "it is made anew"


def _not_sent_again(items: bool, shared: str | bool, all_did: threading.Barrier) -> list[Any]:
    """The root has no memory for what rank 1 has lost."""
    fn: Any = Each(make) if items else made_of
    with lazy_of(fn, tuning=Tuning(shared_memory=shared)) as lazy:
        payload: Any = [70_000] if items else 70_000
        value_of(lazy, payload)
        value_of(lazy, [1] if items else 1)
        lane: Any = lazy._lane
        if lazy.rank == 1:
            lane.casts.keeping.store.drop(1)
        if lazy.is_root:
            lane.sending.encoder.items_again = lane.sending.encoder.again = _no_memory
        all_did.wait(LIMIT_S)  # a cast waits for no rank's calls
        with pytest.raises(EncodeError if lazy.is_root else RemoteError, match="could not be sent") as caught:
            value_of(lazy, payload)
        for again in (payload, payload):  # it is made anew
            assert len(value_of(lazy, again)) == (1 if items else 70_000)
        return [caught.value.rank, len(value_of(lazy, [3])[0]) if items else len(value_of(lazy, 3))]


def _no_memory(*_: Any) -> Any:
    raise MemoryError("no room")


@pytest.mark.parametrize("shared", ["auto", False], ids=["one host", "apart"])
@pytest.mark.parametrize("items", [True, False], ids=["items", "whole"])
def test_what_the_root_cannot_send_again_fails_that_cast_alone(items: bool, shared: str | bool) -> None:
    assert on_threads(_not_sent_again, items, shared, threading.Barrier(3)) == [[0, 3]] * 3


def _too_few_again(all_did: threading.Barrier) -> list[Any]:
    """The root sends less again than was lost."""
    with lazy_of(Each(make)) as lazy:
        value_of(lazy, [70_000, 80_000])
        lane: Any = lazy._lane
        if lazy.rank == 1:
            lane.casts.keeping.store.drop(1)
        if lazy.is_root:
            encoder = lane.sending.encoder
            again = encoder.items_again
            encoder.items_again = lambda ident, had: again(ident, had[:1])
        all_did.wait(LIMIT_S)
        with pytest.raises(DecodeError, match="not as much as was lost") as caught:
            value_of(lazy, [70_000, 80_000])
        return [caught.value.rank, len(value_of(lazy, [3])[0])]


def test_less_than_was_lost_is_no_value() -> None:
    assert on_threads(_too_few_again, threading.Barrier(3)) == [[1, 3]] * 3


def _spoilt(all_did: threading.Barrier, memo: bool, spoil: Callable[[Any], Any]) -> list[Any]:
    """Rank 1 shares something else than it has made."""
    with lazy_of(Each(make), memo=Memo(64 * MIB) if memo else None) as lazy:
        parts = cast(Any, lazy)._lane.casts.making.own_part
        share = parts.share
        if lazy.rank == 1:
            parts.share = lambda of, message, value: (*share(of, message, spoil(value))[:2], value)
        all_did.wait(LIMIT_S)
        said: Any
        try:
            said = [len(one) for one in value_of(lazy, [4, 5, 6, 7])]
        except LazycastError as exc:
            said = exc
        all_did.wait(LIMIT_S)
        if lazy.rank == 1:
            parts.share = share
        all_did.wait(LIMIT_S)
        return [said, [len(one) for one in value_of(lazy, [5])]]


@pytest.mark.parametrize("memo", [False, True], ids=["made", "remembered"])
def test_what_is_no_part_of_a_value_is_made_by_whoever_gets_it(memo: bool) -> None:
    assert on_threads(_spoilt, threading.Barrier(3), memo, lambda value: None) == [[[4, 5, 6, 7], [5]]] * 3


@pytest.mark.parametrize("memo", [False, True], ids=["made", "remembered"])
def test_a_part_without_all_its_results_is_an_error_on_every_rank(memo: bool) -> None:
    for said, next_value in on_threads(_spoilt, threading.Barrier(3), memo, lambda value: (value[0], value[1][1:])):
        assert isinstance(said, MaterializeError)
        assert said.rank != 1, "whoever got it says so"
        assert "part 1 of 3 has not brought its results of 4 items" in str(said)
        assert next_value == [5]


@pytest.mark.parametrize("payload", [[1], [1, 2, 3], (1, 2), None], ids=["fewer", "more", "tuple", "none"])
def test_a_payload_that_is_not_the_items_its_cast_names_is_refused(payload: Any) -> None:
    with pytest.raises(ValueError, match="not the list of 2 items"):
        Some(Each(make), numbers=[0, 3])(payload)


@pytest.mark.parametrize(
    "parts",
    [[(10**9, [1])], [(3, [1, 2])], [(1, [1, 2])], [(2, "ab")], [(2, {1: 1, 2: 2})], [(3, [1, 3]), (3, [])]],
    ids=["huge", "fewer", "more", "text", "dict", "second"],
)
def test_a_part_that_lacks_results_is_refused_before_anything_is_taken(parts: Any) -> None:
    with pytest.raises(ValueError, match="has not brought its results"):
        in_order(parts)


def test_what_the_root_has_lost_is_made_again() -> None:
    assert [failed for _, failed in on_threads(_lost, (0,), threading.Barrier(3))] == [0] * 3
    assert sorted(_made) == [1, 5, 5, 6, 70_000, 70_000, 80_000]


# The book


def test_of_several_values_of_a_cast_each_counts_with_its_own_bytes() -> None:
    book = Book(10, (0, 1))
    numbers = [book.begin(ident, 1) for ident in (b"a", b"b", b"c")]
    book.reported(1, 0b01, 9)
    book.reported(1, 0b10, 12)  # a rank that needs more than the root
    book.decided(1, good=True, sizes=dict(zip(numbers, (2, 3, 4), strict=True)))
    assert book.take_drops() == [numbers[0]], "3, 4 and 5: the first is the least recently used"
    assert [book.look(ident, 2) for ident in (b"a", b"b", b"c")] == [0, *numbers[1:]]
    book.decided(2, good=False, lost=True)
    assert sorted(book.take_drops()) == numbers[1:]
    assert [book.look(ident, 3) for ident in (b"b", b"c")] == [0, 0]

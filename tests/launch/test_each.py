"""Casts whose items several make, against a plain loop: in shards and with helpers, on one host and on two."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import Each, Helpers, LazyBroadcast, Memo, Staged, launch, register_materializer
from lazycast.core.making import Making
from lazycast.core.own_part import OwnPart
from lazycast.errors import CastTimeoutError, EncodeError, MaterializeError, RemoteError, TrustError
from tests import helped
from tests.cells import cells

pytestmark = pytest.mark.usefixtures("warm_python")  # for ranks: helpers are interpreters of their own
LIMIT_S = 60.0
SHARED: list[Any] = ["shard", Helpers(2)]
NAMES = ["shard", "helpers"]
SELDOM = pytest.mark.exhaustive


def lazy_of(fn: Any, placement: Any, **options: Any) -> LazyBroadcast[Any, Any]:
    return LazyBroadcast(fn, placement=placement, **{"timeout_s": LIMIT_S, **options})


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


NOT_SENT = EncodeError, RemoteError  # where it happened, and elsewhere


def error_of(lazy: LazyBroadcast[Any, Any], payload: Any, kind: Any, fn: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        value_of(lazy, payload, materialize=fn, **more)
    return str(caught.value)


def on_threads(fn: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    return launch(fn, ranks=ranks, backend="threads", args=args, timeout_s=200)


# Against a loop


def _random_casts(placement: Any, seed: int, root: int, agree: bool, values: str) -> int:
    rng = random.Random(seed)  # the same on all ranks
    with lazy_of(None, placement, root=root, agree=agree, values=values) as lazy:
        for number in range(12):
            sizes = [rng.choice((0, 1, 7, 30_000)) for _ in range(rng.choice((0, 1, 2, 3, 8, 40)))]
            payload = {"items": [np.full(size, n, np.float32) for n, size in enumerate(sizes)], "number": number}
            each: Any = Each(helped.tripled, helped.items_of, rng.choice((list, helped.sizes_and_sum)))
            fn = rng.choice((each, Staged(each, helped.with_number)))
            value = value_of(lazy, payload, materialize=fn, key=rng.choice((None, f"r{number}")))
            expected = each.join([helped.tripled(item) for item in payload["items"]])
            if isinstance(fn, Staged):
                expected = helped.with_number(payload, expected)
            assert repr(value) == repr(expected), (number, sizes)
        return lazy.stats().resolved


@pytest.mark.parametrize("placement", ["shard", Helpers(2), "every", "root", "auto"], ids=str)
@pytest.mark.parametrize(("ranks", "seed"), [(2, 1), pytest.param(4, 2, marks=SELDOM)])
def test_what_comes_is_what_a_loop_makes(placement: Any, ranks: int, seed: int) -> None:
    args = placement, seed, seed % ranks, seed % 2 == 0, ("copy", "readonly", "private")[seed] if seed < 2 else "copy"
    assert launch(_random_casts, ranks=ranks, args=args, timeout_s=200) == [12] * ranks


def test_one_rank_with_helpers_gets_what_a_loop_makes() -> None:
    assert on_threads(_random_casts, Helpers(2), 3, 0, True, "copy", ranks=1) == [12]


def waits_at(item: str) -> str:
    """Of a folder it says there that it has begun, and ends when somebody lets it."""
    if item:
        Path(item, "begun").touch()
        while not Path(item, "go").exists():
            time.sleep(0.01)
    return item


def _waits_for_items(folder: str) -> str:
    with lazy_of(Each(waits_at), "shard") as lazy:
        while lazy.rank == 1 and not Path(folder, "begun").exists():
            time.sleep(0.01)
        limit_s = 1.0 if lazy.rank == 1 else LIMIT_S
        try:
            with pytest.raises(CastTimeoutError) as caught:
                value_of(lazy, ["", "", folder], timeout_s=limit_s)
        finally:
            Path(folder, "go").touch()
        return str(caught.value)


def test_who_waits_says_whose_items_are_missing(tmp_path: Path) -> None:
    for text in launch(_waits_for_items, ranks=3, args=(str(tmp_path),), timeout_s=200):
        assert re.search(r"rank [02] makes items of it for this host; missing: rank [02]", text), text


def _what_is_left_alive() -> list[bool]:
    gc.disable()  # what only the collector frees would keep the memory of each value until it runs
    try:
        with lazy_of(Each(helped.tripled), Helpers(2)) as lazy:
            payload = [np.full(30_000, n, np.float32) for n in range(9)]
            made = [weakref.ref(result) for result in value_of(lazy, payload)]
            payloads = [weakref.ref(payload[0])]
            del payload
            with pytest.raises(MaterializeError) as caught:
                value_of(lazy, bad := [np.full(30_000, 1.0), None])
            payloads.append(weakref.ref(bad[0]))
            del bad, caught
            # The other helper's thread is done with what it was asked for once it has taken part in this.
            assert len(value_of(lazy, [np.zeros(1)] * 9)) == 9
            end_s = time.monotonic() + LIMIT_S
            while any(one() is not None for one in made + payloads) and time.monotonic() < end_s:
                time.sleep(0.01)
            return [one() is not None for one in made + payloads]
    finally:
        gc.enable()


def test_one_rank_with_helpers_lets_go_of_what_they_made() -> None:
    assert not any(_what_is_left_alive())


def _two_hosts(placement: Any) -> list[Any]:
    os.environ["LAZYCAST_HOST"] = f"host {int(os.environ['LAZYCAST_RANK']) // 2}"
    with lazy_of(Each(helped.made_by), placement) as lazy:
        assert len(lazy.stats().hosts) == 2
        return [os.getpid(), value_of(lazy, [np.full(40_000, n) for n in range(9)])]


@pytest.mark.parametrize("placement", ["shard", pytest.param(Helpers(2), marks=SELDOM)], ids=NAMES)
def test_each_host_makes_all_items(placement: Any) -> None:
    found = launch(_two_hosts, ranks=4, args=(placement,), timeout_s=200)
    makers = [{by for by, _ in made} for _, made in found]
    assert all([n for _, n in made] == list(range(9)) for _, made in found)
    assert makers[0] == makers[1]
    assert makers[2] == makers[3]
    assert makers[0].isdisjoint(makers[2])
    pids = [pid for pid, _ in found]
    if placement == "shard":
        assert makers == [set(pids[:2])] * 2 + [set(pids[2:])] * 2, "both ranks of a host have made some"
    else:
        assert makers[0].isdisjoint(pids)


# What goes wrong


def _failures(placement: Any, agree: bool) -> list[str]:
    lock = threading.Lock()
    with lazy_of(None, placement, agree=agree) as lazy:
        said = [
            error_of(lazy, [3, 2, 1, 0, 1], MaterializeError, Each(helped.inverse), key="request 7"),
            error_of(lazy, [1], MaterializeError, Each(helped.inverse, iter)),
            error_of(lazy, b"jpeg", MaterializeError, Each(helped.inverse)),
            error_of(lazy, [1], NOT_SENT, Each(lambda item: (item, lock))),
        ]
        assert value_of(lazy, [], materialize=Each(helped.inverse)) == []
        assert value_of(lazy, [1, 2], materialize=Each(helped.inverse)) == [1, 0.5], "the next cast works"
        return said


@pytest.mark.parametrize("agree", [True, False])
@pytest.mark.parametrize("placement", SHARED, ids=NAMES)
def test_what_is_wrong_is_said_on_every_rank(placement: Any, agree: bool) -> None:
    for item, endless, text, unpicklable in on_threads(_failures, placement, agree):
        assert "'request 7'" in item
        assert re.search(r"materializer 'Each\(inverse\)' raised at item 3 (in helper \d )?on rank \d", item), item
        assert "ZeroDivisionError" in item
        assert "split must return a sequence of items, such as a list, got list_iterator" in endless
        assert "without split the payload must be a sequence of items" in text
        assert "materializer" in unpicklable


_both_began = threading.Barrier(2)


def fails_with_the_other(item: int) -> Any:
    _both_began.wait(LIMIT_S / 2)
    raise ValueError(f"item {item}")


def _both_fail() -> list[str]:
    with lazy_of(None, "shard") as lazy:
        return [
            error_of(lazy, [0, 1], MaterializeError, Each(fails_with_the_other)),
            *map(str, value_of(lazy, [1, 2], materialize=Each(helped.inverse))),
        ]


def test_two_ranks_that_fail_at_once_end_the_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hears of the other's failure before it is done with its own."""
    heard = {rank: threading.Event() for rank in range(2)}
    hear, tell = Making.hear, OwnPart.tell

    def hears(self: Any, message: Any, body: memoryview) -> None:
        hear(self, message, body)
        if message.failure is not None:
            heard[message.rank].set()

    def tells(self: Any, message: Any) -> None:
        tell(self, message)
        if message.failure is not None and message.failure.kind == "materialize":
            assert heard[1 - message.rank].wait(LIMIT_S / 2)

    monkeypatch.setattr(Making, "hear", hears)
    monkeypatch.setattr(OwnPart, "tell", tells)
    for text, *after in on_threads(_both_fail):
        assert "ValueError: item" in text
        assert after == ["1.0", "0.5"]


def _join_raises(placement: Any) -> str:
    with lazy_of(None, placement) as lazy:
        text = error_of(lazy, [1, 2], MaterializeError, Each(helped.inverse, join=helped.raises_on_one_rank))
        assert value_of(lazy, [1, 2], materialize=Each(helped.inverse)) == [1, 0.5]
        return text


@pytest.mark.parametrize("placement", [pytest.param("shard", marks=SELDOM), Helpers(2)], ids=NAMES)
def test_a_join_that_raises_on_one_rank_fails_the_cast_on_all(placement: Any) -> None:
    for text in launch(_join_raises, ranks=2, args=(placement,), timeout_s=200):
        assert "materializer 'raises_on_one_rank' raised on rank 1" in text


def _unsure_split(placement: Any) -> str:
    with lazy_of(None, placement) as lazy:
        return error_of(lazy, [0] * 20, MaterializeError, Each(helped.inverse, helped.as_many_as_its_process_says))


def test_a_split_that_finds_other_items_elsewhere_is_an_error() -> None:
    for text in launch(_unsure_split, ranks=2, args=("shard",), timeout_s=200):
        assert "split has found 2 and 3 items in one payload" in text


def _unshared() -> tuple[list[int], int]:
    with lazy_of(Each(helped.locked, join=helped.numbers_of), "shard") as lazy:
        return value_of(lazy, list(range(6))), lazy.stats().unshared


def test_results_that_do_not_pickle_are_made_where_they_are_wanted() -> None:
    for numbers, unshared in launch(_unshared, ranks=2, timeout_s=200):
        assert numbers == list(range(6))
        assert unshared == 1


def _unshared_by_helpers() -> str:
    with lazy_of(None, Helpers(1)) as lazy:
        return error_of(lazy, [1], NOT_SENT, Each(helped.locked))


def test_results_that_cannot_leave_a_helper_are_an_error() -> None:
    for text in on_threads(_unshared_by_helpers):
        assert "cannot leave its process in helper 0" in text


# With everything else


def _withdrawn(placement: Any, folder: str) -> list[str]:
    place = Path(folder)
    with lazy_of(Each(helped.slow_item), placement) as lazy:
        future = lazy.broadcast_async([(folder, n) for n in range(30)] if lazy.is_root else None)
        if lazy.is_root:
            while not (place / "begun").exists():
                time.sleep(0.01)
            assert future.cancel()  # what has begun sees that it is withdrawn, and ends
        with pytest.raises(BaseException, match=r"^$|withdr|cancel"):
            future.result(LIMIT_S)
        assert value_of(lazy, [1, 2], materialize=Each(helped.inverse)) == [1, 0.5]
        return (place / "begun").read_text().split()


@pytest.mark.parametrize("placement", SHARED, ids=NAMES)
def test_what_has_not_begun_when_a_cast_is_withdrawn_is_not_made(placement: Any, tmp_path: Path) -> None:
    for begun in on_threads(_withdrawn, placement, str(tmp_path)):
        assert 1 <= len(begun) <= 6, "an item for each who works, and one more at most"


def _trusting_less(placement: Any) -> list[Any]:
    each = register_materializer("inverses", Each(helped.inverse, join=sum))
    with lazy_of(None, placement, trust="data") as lazy:
        found = value_of(lazy, [1, 2, 4], materialize=each)
        if lazy.is_root:
            with pytest.raises(TrustError, match=r"'Each\(inverse\)' is not registered"):
                lazy.broadcast([1], materialize=Each(helped.inverse))
        else:
            with pytest.raises(RemoteError, match="not registered"):
                lazy.broadcast(None)
        return [found, value_of(lazy, [1], materialize=each)]


@pytest.mark.parametrize("placement", ["shard", pytest.param(Helpers(2), marks=SELDOM)], ids=NAMES)
def test_with_trust_in_data_it_travels_by_its_name(placement: Any) -> None:
    assert launch(_trusting_less, ranks=2, args=(placement,), timeout_s=200) == [[1.75, 1.0]] * 2


def _remembered(placement: Any) -> tuple[list[Any], int]:
    with lazy_of(Each(helped.made_by), placement, memo=Memo(nbytes=64 << 20)) as lazy:
        payload = [np.full(40_000, n) for n in range(5)]
        found = [value_of(lazy, payload) for _ in range(3)]
        assert [n for _, n in value_of(lazy, payload[:4])] == list(range(4))
        return found, lazy.stats().memo_hits


@pytest.mark.parametrize("placement", SHARED, ids=NAMES)
def test_the_value_of_a_payload_that_comes_again_is_not_made_again(placement: Any) -> None:
    for found, hits in launch(_remembered, ranks=2, args=(placement,), timeout_s=200):
        assert found[0] == found[1] == found[2]
        assert hits == 2 * 5 + 4, "each item counts"


def _code(placement: Any) -> list[Any]:
    offset = 10 * (int(os.environ["LAZYCAST_RANK"]) + 1)
    with lazy_of(None, placement) as lazy:
        each = Each(lambda n: n + offset, lambda payload: payload["items"], lambda made: (offset, made))
        return [value_of(lazy, {"items": [1, 2, 3]}, materialize=each) for _ in range(2)]


@pytest.mark.parametrize("placement", [pytest.param("shard", marks=SELDOM), Helpers(2)], ids=NAMES)
def test_its_functions_travel_as_code(placement: Any) -> None:
    assert launch(_code, ranks=3, args=(placement,), timeout_s=200) == [[(10, [11, 12, 13])] * 2] * 3


def _given_up() -> Any:
    """A rank that does not want the value works for the others all the same."""
    with lazy_of(Each(helped.inverse), "shard") as lazy:
        if lazy.rank == 1:
            lazy.discard("a")
        found = value_of(lazy, [1, 2, 4], key="a") if lazy.rank != 1 else None
        assert value_of(lazy, [1], key="b") == [1]
        return found


def test_a_rank_that_has_discarded_a_cast_makes_its_items_for_the_others() -> None:
    assert on_threads(_given_up, ranks=3) == [[1, 0.5, 0.25], None, [1, 0.5, 0.25]]


def _many(placement: Any) -> int:
    with lazy_of(Each(helped.inverse), placement) as lazy:
        futures = [lazy.broadcast_async(list(range(1, n + 2)) if lazy.is_root else None) for n in range(40)]
        for n, future in enumerate(futures):
            assert future.result(LIMIT_S) == [1 / k for k in range(1, n + 2)]
        return len(futures)


@pytest.mark.parametrize("placement", [pytest.param("shard", marks=SELDOM), Helpers(2)], ids=NAMES)
def test_many_at_once(placement: Any) -> None:
    assert launch(_many, ranks=3, args=(placement,), timeout_s=200) == [40] * 3


def _storm(placement: Any, seed: int, agree: bool) -> None:
    """Casts of which some fail, some are withdrawn and some are not wanted by a rank: each ends as it may."""
    rng = random.Random(seed)  # the same on all ranks
    asked = []
    with lazy_of(None, placement, agree=agree) as lazy:
        for number in range(40):
            items: list[float] = list(range(1, rng.randrange(1, 12))) + [0] * (rng.random() < 0.2)
            rng.shuffle(items)
            withdrawn, without = rng.random() < 0.15, rng.choice((None, None, None, 1, 2))
            if without == lazy.rank:
                lazy.discard(f"r{number}")
                continue
            payload = items if lazy.is_root else None
            future = lazy.broadcast_async(payload, materialize=Each(helped.inverse), key=f"r{number}")
            if withdrawn and lazy.is_root:
                future.cancel()
            asked.append((future, items, withdrawn))
        for future, items, withdrawn in asked:
            try:
                error = future.exception(LIMIT_S)
            except concurrent.futures.CancelledError:
                assert withdrawn
                continue
            if error is not None:
                assert f"at item {items.index(0)}" in str(error)
            else:
                assert future.result() == [1 / item for item in items]
        assert value_of(lazy, [1], materialize=Each(helped.inverse), key="the last") == [1]


@pytest.mark.parametrize("agree", [pytest.param(True, marks=SELDOM), False])
@pytest.mark.parametrize("placement", SHARED, ids=NAMES)
def test_casts_that_fail_are_withdrawn_and_not_wanted_leave_others_alone(placement: Any, agree: bool) -> None:
    for seed in (1, 2, 3):
        on_threads(_storm, placement, seed, agree, ranks=3)


# On each backend


def _items_of(placement: Any, apart: bool) -> list[Any]:
    if apart:
        os.environ["LAZYCAST_HOST"] = f"host of process {os.getpid()}"
    with lazy_of(Each(helped.who_tripled), placement) as lazy:
        values = value_of(lazy, list(range(9)))
        for value in values:
            value["large"][:1] = -lazy.rank
        bad = error_of(lazy, [3, "bad", 4], MaterializeError, Each(helped.who_tripled))
        again = value_of(lazy, [1, 2])
        made = [int(value["large"][1]) for value in values], [int(value["large"][0]) for value in again]
        return [os.getpid(), len(lazy.stats().hosts), made, bad, {value["pid"] for value in values}]


@pytest.mark.parametrize(
    ("backend", "placement", "apart"),
    cells(
        {"torch-helpers-two", "mpi-shard-one host"},
        {"torch": "torch", "mpi": "mpi"},
        dict(zip(NAMES, SHARED, strict=True)),
        {"one host": False, "two": True},
    ),
)
def test_items_are_shared_on_each_backend(backend: str, placement: Any, apart: bool) -> None:
    found = launch(_items_of, ranks=2, backend=backend, args=(placement, apart), timeout_s=200)
    ranks = {pid for pid, *_ in found}
    for pid, hosts, made, bad, makers in found:
        assert hosts == (2 if apart else 1)
        assert made == ([3 * n for n in range(9)], [3, 6])
        assert "at item 1" in bad
        if placement != "shard":
            assert makers.isdisjoint(ranks)
        else:
            assert makers == ({pid} if apart else ranks)

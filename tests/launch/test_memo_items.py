"""Single items that are remembered, on real ranks: made by helpers or in a shard, on one host and on two."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from lazycast import Each, Helpers, LazyBroadcast, MaterializeError, Memo, launch, register_materializer
from tests import helped
from tests.cells import cells

pytestmark = pytest.mark.usefixtures("warm_python")  # for ranks: helpers are interpreters of their own
LIMIT_S = 60.0
SHARED: list[Any] = ["shard", Helpers(2)]
NAMES = ["shard", "helpers"]
SELDOM = pytest.mark.exhaustive


def lazy_of(fn: Any, placement: Any, nbytes: int = 64 << 20, **options: Any) -> LazyBroadcast[Any, Any]:
    return LazyBroadcast(fn, placement=placement, memo=Memo(nbytes), timeout_s=LIMIT_S, **options)


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


def _checked(lazy: LazyBroadcast[Any, Any], payload: list[int]) -> list[int]:
    """Return who has made each item, and overwrite what came."""
    values = value_of(lazy, payload)
    assert [value["large"].tolist() for value in values] == [[3 * item] * 20_000 for item in payload]
    for value in values:
        value["large"][:] = -1 - lazy.rank
    return [int(value["pid"]) for value in values]


def _albums(placement: Any, hosts: int) -> Any:
    rank = int(os.environ.get("LAZYCAST_RANK") or os.environ["RANK"])
    os.environ["LAZYCAST_HOST"] = f"host {rank % hosts}"
    with lazy_of(Each(helped.who_tripled), placement) as lazy:
        makers = [_checked(lazy, payload) for payload in ([*range(8)], [*range(8)], [*range(4), 9, *range(5, 8)])]
        with pytest.raises(MaterializeError, match="at item 2"):
            value_of(lazy, [1, 2, "bad", 3])
        _checked(lazy, [3, 10, 2])
        return len(lazy.stats().hosts), os.getpid(), makers, lazy.stats().memo_hits, lazy.stats().memo_values


@pytest.mark.parametrize(
    ("backend", "placement", "hosts"),
    cells(
        {"local-shard-two", "torch-helpers-one host"},
        {"local": "local", "torch": "torch"},
        dict(zip(NAMES, SHARED, strict=True)),
        {"one host": 1, "two": 2},
    ),
)
def test_only_what_is_new_is_made(backend: str, placement: Any, hosts: int) -> None:
    found = launch(_albums, ranks=3, backend=backend, args=(placement, hosts), timeout_s=200)
    ranks = {pid for _, pid, *_ in found}
    for of_hosts, _, (first, second, third), hits, values in found:
        assert of_hosts == hosts
        assert first == second
        assert third[:4] + third[5:] == first[:4] + first[5:]
        assert set(first + third).isdisjoint(ranks) or placement == "shard"
        # The two good items of the cast that fails are had again too, before anybody knows that it does.
        assert hits == 8 + 7 + 3 + 2
        assert values == 8 + 1 + 1


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=SELDOM), 2])
def test_helpers_of_a_rank_make_what_is_new(ranks: int) -> None:
    for *_, hits, values in launch(_albums, ranks=ranks, args=(Helpers(2), 1), timeout_s=200):
        assert (hits, values) == (8 + 7 + 3 + 2, 10)


def _random_albums(placement: Any, seed: int, values: str) -> int:
    """Many requests at once, from a small pool of items, with room for some of them."""
    rng = random.Random(seed)  # the same on all ranks
    with lazy_of(Each(helped.tripled, helped.items_of), placement, 1 << 20, values=values, root=1) as lazy:
        for _ in range(15):
            burst = [
                [rng.choice((1, 7, 8, 9, 20, 30_000, 60_000, 90_000)) for _ in range(rng.choice((0, 1, 2, 6)))]
                for _ in range(rng.randint(1, 8))
            ]
            futures = [
                lazy.broadcast_async({"items": [np.full(n, n, np.float32) for n in sizes]} if lazy.is_root else None)
                for sizes in burst
            ]
            for sizes, future in zip(burst, futures, strict=True):
                results = future.result(LIMIT_S)
                assert [result.size for result in results] == sizes
                assert all((result == 3 * result.size).all() for result in results)
                for result in results:
                    if result.flags.writeable:
                        result[:] = -1
        return lazy.stats().memo_hits


@pytest.mark.parametrize("values", ["private", *(pytest.param(it, marks=SELDOM) for it in ("readonly", "copy"))])
@pytest.mark.parametrize("placement", SHARED, ids=NAMES)
def test_random_requests_get_what_a_loop_makes(placement: Any, values: str) -> None:
    hits = launch(_random_albums, ranks=2, args=(placement, 5, values), timeout_s=200)
    assert hits[0] == hits[1] > 20


def _by_name(placement: Any) -> Any:
    each = register_materializer("inverses of items", Each(helped.inverse))
    with lazy_of(None, placement, trust="data") as lazy:
        found = [value_of(lazy, payload, materialize=each) for payload in ([1, 2], [2, 4, 1])]
        return found, lazy.stats().memo_hits


@pytest.mark.parametrize("placement", ["shard", pytest.param(Helpers(2), marks=SELDOM)], ids=NAMES)
def test_with_trust_in_data_items_are_remembered_too(placement: Any) -> None:
    assert launch(_by_name, ranks=2, args=(placement,), timeout_s=200) == [([[1, 0.5], [0.5, 0.25, 1]], 2)] * 2

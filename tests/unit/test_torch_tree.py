"""How ranks over torch exchange what they have while they construct. Ranks as threads, real connections of gloo."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from lazycast import interfaces
from lazycast.backends import _torch_tree, torch_distributed
from lazycast.backends.torch_distributed import _TorchContext
from lazycast.errors import BackendError, CastTimeoutError

WAIT_S = 30.0
LATE_S = 5.0  # in which on a busy machine all come that do
SIZES = (1, 2, 4, 5, 14)  # 14 ranks: the tree has three steps


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interfaces.VARIABLE, "lo")


class CountingStore(Store):
    """One rank's way to the store of all; counts the requests."""

    def __init__(self, shared: Store) -> None:
        super().__init__()
        self.shared = shared
        self.requests: collections.Counter[str] = collections.Counter()
        self.is_gone = False

    def _ask(self, what: str, *args: Any) -> Any:
        if self.is_gone:
            raise RuntimeError("the connection was closed")
        self.requests[what] += 1
        return getattr(self.shared, what)(*args)

    def set(self, key: str, value: Any) -> None:
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        return bytes(self._ask("get", key))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return list(self._ask("multi_get", keys))

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", keys))

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=WAIT_S)) -> None:
        self._ask("wait", keys, timeout)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return bytes(self._ask("compare_set", key, expected, desired))


class Ranks:
    """The contexts of a group, and the store of each."""

    def __init__(self, size: int) -> None:
        shared = HashStore()
        self.size = size
        self.stores = [CountingStore(shared) for _ in range(size)]
        self.contexts = [_TorchContext(rank, size, store, 1) for rank, store in enumerate(self.stores)]

    def each(self, act: Callable[[int, _TorchContext], Any]) -> list[Any]:
        """Let every rank do something at a time; return what came of it, errors too."""

        def rank_of(rank: int) -> Any:
            try:
                return act(rank, self.contexts[rank])
            except Exception as exc:
                self.contexts[rank].close()
                return exc.with_traceback(None)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(rank_of, range(self.size)))

    def exchange(self, nbytes: int = 1, timeout_s: float = WAIT_S) -> list[Any]:
        return self.each(lambda rank, context: context.exchange(blob_of(rank, nbytes), timeout_s=timeout_s))

    def requests(self) -> list[dict[str, int]]:
        """What each rank has asked of the store since the last call."""
        found = [dict(store.requests) for store in self.stores]
        for store in self.stores:
            store.requests.clear()
        return found


def blob_of(rank: int, nbytes: int) -> bytes:
    return bytes([rank]) * (nbytes * (rank % 3))


@pytest.fixture
def ranks() -> Iterator[Callable[[int], Ranks]]:
    made: list[Ranks] = []

    def make(size: int) -> Ranks:
        made.append(Ranks(size))
        return made[-1]

    yield make
    for group in made:
        for context in group.contexts:
            context.close()


def no_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_distributed, "_why_no_gloo", lambda: "there is none")


@pytest.mark.parametrize("way", ["tree", "store"])
@pytest.mark.parametrize("size", SIZES)
def test_every_blob_reaches_every_rank(
    size: int, way: str, ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "store":
        no_gloo(monkeypatch)
    group = ranks(size)
    for nbytes in (0, 1, _torch_tree._FIRST_NBYTES, 32 << 10):
        assert group.exchange(nbytes) == [[blob_of(rank, nbytes) for rank in range(size)]] * size


@pytest.mark.parametrize("size", SIZES)
def test_a_round_along_the_tree_is_one_request_of_each_rank(size: int, ranks: Callable[[int], Ranks]) -> None:
    group = ranks(size)
    group.exchange()
    group.requests()
    for _ in range(3):
        group.exchange()
        assert group.requests() == [{"set": 1}] * size  # by which it is known to have come


@pytest.mark.parametrize("size", SIZES)
def test_a_round_through_the_store_is_as_many_requests_in_any_group(
    size: int, ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gloo(monkeypatch)
    group = ranks(size)
    group.exchange()
    group.requests()
    group.exchange()
    rank_0, *others = group.requests()
    assert rank_0 == {"set": 2, "wait": 2, "multi_get": 1, "get": 1}
    assert others == [{"set": 1, "wait": 1, "get": 1}] * (size - 1)


def test_what_the_first_round_costs_a_rank_does_not_grow_with_the_group(ranks: Callable[[int], Ranks]) -> None:
    small, large = ranks(13), ranks(40)  # both are whole trees
    small.exchange()
    large.exchange()
    assert max(sum(of.values()) for of in small.requests()) == max(sum(of.values()) for of in large.requests())


def test_a_rank_is_connected_with_its_parents_family_and_its_own(
    ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _torch_tree._group
    connections = collections.Counter[str]()  # of each rank, which is a thread

    def counted(store: Any, place: int, size: int, deadline_s: float) -> Any:
        connections[threading.current_thread().name] += size - 1
        return real(store, place, size, deadline_s)

    monkeypatch.setattr(_torch_tree, "_group", counted)
    group = ranks(40)
    assert group.exchange() == [[blob_of(rank, 1) for rank in range(40)]] * 40
    assert max(connections.values()) == 6
    assert sum(connections.values()) == 13 * 4 * 3  # all to all they are 40 * 39


OFTEN = {(0, 1, "tree"), (1, 6, "tree"), (0, 13, "store")}


@pytest.mark.parametrize(
    ("after", "missing", "way"),
    [
        pytest.param(*it, marks=[] if it in OFTEN else pytest.mark.exhaustive)
        for it in itertools.product((0, 1), (0, 1, 6, 13), ("tree", "store"))
    ],
)
def test_who_does_not_come_is_named_by_all_in_the_same_words(
    missing: int, after: int, way: str, ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "store":
        no_gloo(monkeypatch)
    group = ranks(14)
    for _ in range(after):
        group.exchange()

    def come(rank: int, context: _TorchContext) -> Any:
        return None if rank == missing else context.exchange(b"", timeout_s=LATE_S + 0.1 * (rank % 4))

    found = group.each(come)
    del found[missing]
    assert [type(exc) for exc in found] == [CastTimeoutError] * 13, found
    assert {(exc.rank, tuple(exc.missing)) for exc in found} == {(missing, (missing,))}
    assert len({str(exc) for exc in found}) == 1


@pytest.mark.parametrize("lost", [0, 1, 6, 13])
def test_who_gives_up_is_named_by_all_at_once(lost: int, ranks: Callable[[int], Ranks]) -> None:
    group = ranks(14)
    group.exchange()

    def come(rank: int, context: _TorchContext) -> Any:
        return context.close() if rank == lost else context.exchange(b"", timeout_s=10 * WAIT_S)

    found = group.each(come)  # and the test has a time limit that is shorter
    del found[lost]
    assert [type(exc) for exc in found] == [BackendError] * 13
    assert {exc.rank for exc in found} == {lost}
    assert len({str(exc) for exc in found}) == 1


def test_where_the_store_goes_too_nobody_is_blamed_alone(ranks: Callable[[int], Ranks]) -> None:
    """Its server is a rank, and the others cannot tell each other whom they saw first."""
    group = ranks(14)
    group.exchange()

    def come(rank: int, context: _TorchContext) -> Any:
        if rank == 0:
            context.close()
            for store in group.stores:
                store.is_gone = True
            return None
        return context.exchange(b"", timeout_s=10 * WAIT_S)

    _, *found = group.each(come)
    assert [type(exc) for exc in found] == [BackendError] * 13
    assert all("the group's store" in str(exc) for exc in found)


def test_a_family_that_cannot_connect_is_everybodys_error_in_the_same_words(
    ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _torch_tree._group

    def refuse(named: tuple[str, Store], *args: Any) -> Any:
        prefix, store = named
        if prefix == "gloo/1":
            raise RuntimeError("no way to the others")
        return real(PrefixStore(prefix, store), *args)

    monkeypatch.setattr(_torch_tree, "PrefixStore", lambda *of: of)
    monkeypatch.setattr(_torch_tree, "_group", refuse)
    found = ranks(14).exchange(timeout_s=LATE_S)
    assert [type(exc) for exc in found] == [BackendError] * 14
    assert {str(exc) for exc in found} == {"gloo could not connect the ranks within 5 s: no way to the others"}

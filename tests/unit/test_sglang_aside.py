"""What a scheduler has put aside, and what is worth a cast: decisions on plain data, without SGLang."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lazycast.adapters.sglang.aside import Admission, Aside, DivergedError
from lazycast.adapters.sglang.binding import Binding
from lazycast.adapters.sglang.worth import Worth, measured


def keep(aside: Aside, *rids: str) -> list[Future[Any]]:
    futures: list[Future[Any]] = [Future() for _ in rids]
    for rid, future in zip(rids, futures, strict=True):
        aside.keep(SimpleNamespace(rid=rid), f"raw {rid}", future)
    return futures


def taken(aside: Aside, admission: Admission | None) -> list[tuple[str, str | None]]:
    assert admission is not None
    return [(kept.request.rid, failure) for kept, failure in aside.take(admission)]


def test_what_is_ready_goes_on_in_the_order_of_receipt_and_waits_for_nothing() -> None:
    aside = Aside()
    futures = keep(aside, "a", "b", "c", "d")
    assert aside.decided() is None
    for n in (2, 0):
        futures[n].set_result(n)
    admission = aside.decided()
    assert admission == Admission((1, 3), rids={1: "a", 3: "c"})
    assert aside.decided() == admission, "it is said until it has been seen"
    assert taken(aside, admission) == [("a", None), ("c", None)]
    assert aside.decided() is None
    assert len(aside) == 2


def test_an_admission_that_comes_twice_or_late_changes_nothing() -> None:
    aside = Aside()
    first, second = keep(aside, "a", "b")
    first.set_result(1)
    admission = aside.decided()
    assert taken(aside, admission) == [("a", None)]
    assert taken(aside, admission) == []
    second.set_result(2)
    late = aside.decided()
    assert [kept.request.rid for kept in aside.withdraw("b", every=False)] == ["b"]
    keep(aside, "b")  # the same id again: another request
    assert taken(aside, late) == []
    assert len(aside) == 1


def test_failures_and_withdrawals_are_told() -> None:
    aside = Aside()
    bad, gone, good, silent = keep(aside, "bad", "gone", "good", "silent")
    bad.set_exception(ValueError("no image"))
    gone.cancel()
    good.set_result(1)
    silent.set_exception(KeyboardInterrupt())
    told = [("bad", "no image"), ("gone", "the request's inputs were withdrawn")]
    assert taken(aside, aside.decided()) == [*told, ("good", None), ("silent", "KeyboardInterrupt")]


def test_ranks_that_keep_the_same_number_it_alike() -> None:
    one, other = Aside(), Aside()
    futures = keep(one, "a", "b", "c")
    keep(other, "a", "b", "c")
    for aside in (one, other):
        aside.withdraw("a", every=False)
        keep(aside, "d")
    futures[2].set_result(1)
    assert taken(other, one.decided()) == [("c", None)], "by what the entry rank has said, not by its own futures"


def test_ranks_that_have_put_different_requests_aside_say_so() -> None:
    entry, more, fewer = Aside(), Aside(), Aside()
    (ready,) = keep(entry, "a")
    keep(more, "other", "a")
    ready.set_result(1)
    for aside, said in ((more, "request 'other' here"), (fewer, "no request here")):
        with pytest.raises(DivergedError, match=f"number 1 is 'a', and {said}"):
            taken(aside, entry.decided())


def test_aborts_by_id_by_beginning_and_all() -> None:
    aside = Aside()
    keep(aside, "a-1", "a-2", "b")
    assert [kept.request.rid for kept in aside.withdraw("a-", every=False)] == ["a-1", "a-2"]
    assert aside.withdraw("c", every=False) == []
    assert [kept.raw for kept in aside.withdraw("", every=True)] == ["raw b"]


def test_who_has_been_aside_for_long() -> None:
    aside = Aside()
    keep(aside, "a")
    assert aside.older_than(3600) == []
    assert [kept.request.rid for kept in aside.older_than(-1)] == ["a"]


def item(nbytes: int | None = 100, **fields: Any) -> Any:
    feature: Any = "of no known kind" if nbytes is None else np.zeros(nbytes, np.uint8)
    found = {"hash": None, "pad_value": None, "feature": feature, "precomputed_embeddings": None, **fields}
    return SimpleNamespace(is_valid=lambda: True, **found)


def raw(*items: Any) -> Any:
    return SimpleNamespace(mm_items=list(items))


WORTH = Worth(Binding(object, "from_processor_output"), False, 1000)
MADE_UP = Worth(Binding(object, "from_processor_output"), True, 1000)


@pytest.mark.parametrize(
    ("inputs", "cast", "waits", "cast_if_made_up"),
    [
        (raw(item(999)), False, False, True),
        (raw(item(1000)), True, True, True),
        (raw(item(600), item(600)), True, True, True),
        (raw(item(600), item(600, pad_value=1)), False, False, True),
        (raw(item(5000, hash=3), item(5000, pad_value=1)), False, False, True),
        (raw(item(5000, pad_value=1)), False, False, False),
        (raw(item(feature=None, precomputed_embeddings=np.zeros(1000, np.uint8))), True, True, True),
        (raw(item(feature=[np.zeros(600, np.uint8), (np.zeros(600, np.uint8),)])), True, True, True),
        (raw(item(None)), True, False, True),
        (raw(item(feature=[np.zeros(600, np.uint8), "x"])), True, False, True),
        (raw(), False, False, False),
        (17, True, False, True),
        (None, True, False, True),
    ],
    ids=[f"case {n}" for n in range(13)],
)
def test_what_is_worth_a_cast(inputs: Any, cast: bool, waits: bool, cast_if_made_up: bool) -> None:
    assert WORTH.is_worth_a_cast(inputs) is cast
    assert WORTH.is_worth_waiting(inputs) is waits
    assert MADE_UP.is_worth_a_cast(inputs) is cast_if_made_up


def test_what_is_hashed_on_a_device_is_not_left_to_other_threads() -> None:
    on_device = Worth(WORTH.binding, False, 1000, on_device=True)
    assert on_device.is_worth_a_cast(raw(item(5000)))
    assert not on_device.is_worth_waiting(raw(item(5000)))


def test_what_a_cast_is_worth_is_measured() -> None:
    calls = []
    least = measured(lambda: calls.append(1))
    assert len(calls) > 1
    assert least == 256 << 10, "a cast that takes no time is worth it for little"

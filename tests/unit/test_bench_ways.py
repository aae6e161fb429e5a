"""Which ways a benchmark has, what it says of those that are not installed, and what workers do in place of ranks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from lazycast.tools.bench import report, touch, ways
from lazycast.tools.bench.payloads import SOURCES, ArraySource
from lazycast.tools.bench.plan import COLUMNS
from lazycast.tools.bench.ways import base
from lazycast.tools.bench.ways.stores import Holder, Store

NBYTES = 64 << 10
PACKAGES = {
    "local": {"Ray put and get": "ray", "Dask scatter": "distributed"},
    "torch": {
        "accelerate broadcast_object_list": "accelerate",
        "vLLM MessageQueue": "vllm",
        "vLLM MessageQueue (tensor arena)": "vllm",
    },
    "mpi": {},
}


@pytest.mark.parametrize("backend", PACKAGES)
def test_what_is_not_installed_is_told(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    said = {way: f"{package} is not installed" for way, package in PACKAGES[backend].items()}
    assert ways.absent(backend) == said
    names = [way.name for way in ways.available(backend)]
    assert "lazycast" in names
    assert not set(names) & set(said)
    assert ways.absent(backend, ("lazycast", *list(said)[:1])) == dict(list(said.items())[:1])  # what was asked for


def test_what_is_installed_is_no_longer_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: name == "ray" or None)
    assert ways.absent("local") == {"Dask scatter": "distributed is not installed"}
    assert [way.name for way in ways.available("local", ("Ray put and get", "Dask scatter"))] == ["Ray put and get"]
    assert not ways.absent("mpi")


def test_a_package_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: True)
    monkeypatch.setattr(ways.VllmQueue, "_MODULE", "lazycast.no_such_module")
    assert ways.VllmQueue.missing() == "vllm cannot be imported: No module named 'lazycast.no_such_module'"
    monkeypatch.setattr(ways.VllmQueue, "_MODULE", "lazycast.tools.bench.ways.stores")
    monkeypatch.setattr("lazycast.tools.bench.ways.stores.MessageQueue", object, raising=False)
    assert ways.VllmQueue.missing() == "this vllm has another MessageQueue"


def test_reports_say_what_was_not_measured() -> None:
    said = {"figures": {}, "absent": {"Ray put and get": "ray is not installed"}}
    assert list(report.figures(said)) == ["not measured: Ray put and get (ray is not installed)"]
    assert list(report.figures({"figures": {}})) == []  # a file of an older run


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_worker_holds_what_was_sent_and_leaves_it_as_it_is(kind: str, column: str) -> None:
    source, holder = SOURCES[kind](NBYTES), Holder(2)
    holder.prepare(kind, NBYTES)
    sent = source.at(5)
    before_ns = time.monotonic_ns()
    assert before_ns <= holder.take(sent, column, 5) <= time.monotonic_ns()
    assert holder.wrong(column, 5) is None
    assert touch.difference(SOURCES[kind](NBYTES).at(5), sent) is None


def test_a_worker_tells_a_wrong_value() -> None:
    holder = Holder(2)
    holder.prepare("array", NBYTES)
    holder.take(ArraySource(NBYTES).at(4), "holds", 5)
    assert holder.wrong("holds", 5) == f" of worker 2: byte 0 of {NBYTES} is 4, not 5"
    holder.take(ArraySource(NBYTES).at(5), "overwritten", 5)
    assert str(holder.wrong("holds", 5)).startswith(" of worker 2: byte 0")


class _Shelf(Store):
    """Workers in this process, that are done when they say."""

    name = "shelf"

    def __init__(self, ends_ns: list[int]) -> None:
        super().__init__(1)  # not as the root, which would look for its group
        self.rank = 0
        self._ends_ns = ends_ns
        self._start(2)

    def _start(self, workers: int) -> None:
        self._holders = [Holder(rank) for rank in range(1, workers + 1)]

    def _send(self, payload: Any, column: str, number: int) -> Any:
        for holder in self._holders:
            holder.take(np.array(payload), column, number)
        return self._ends_ns

    def _results(self, pending: Any) -> list[Any]:
        return list(pending)

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(holder, method)(*arguments) for holder in self._holders]


def test_the_last_worker_counts() -> None:
    late_ns = time.monotonic_ns() + 10**12
    source = ArraySource(NBYTES)
    shelf = _Shelf([1, late_ns])
    shelf.prepare(source)
    done = shelf.turn(source.at(3), "overwritten", 3)
    assert done.end_ns == late_ns
    assert touch.difference(touch.overwrite(source.at(3), touch.mark(3, 0)), done.value) is None
    assert shelf.elsewhere("overwritten", 3) is None
    assert _Shelf([1, 2]).turn(source.at(3), "read", 3).end_ns > 2  # nor is the root done before it has read its own


def test_a_wrong_value_of_one_worker_is_told() -> None:
    source = ArraySource(NBYTES)
    shelf = _Shelf([1, 1])
    shelf.prepare(source)
    shelf.turn(source.at(3), "holds", 3)
    shelf._holders[1].take(source.at(4), "holds", 4)
    assert shelf.elsewhere("holds", 3) == f" of worker 2: byte 0 of {NBYTES} is 4, not 3"


def test_other_ranks_have_no_part_in_a_store() -> None:
    shelf = _Shelf([1, 1])
    shelf.rank = 1
    shelf.prepare(ArraySource(NBYTES))
    assert shelf.turn(None, "holds", 1).value is None

"""What Prometheus gets, scraped over HTTP and read by prometheus_client's own parser."""

from __future__ import annotations

import gc
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from lazycast import LazyBroadcast, MaterializeError, PeerLostError
from lazycast.testing.kit import raises
from lazycast.watch.timing import BOUNDS_S, Tally

prometheus_client = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from prometheus_client import CollectorRegistry, start_http_server  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from lazycast.backends.local import LocalBackend  # noqa: E402
from lazycast.watch import prometheus  # noqa: E402
from lazycast.watch.stats import PHASES  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """A registry that is served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=self.registry)

    def scrape(self) -> tuple[Samples, dict[str, str]]:
        """Return all samples, each of which must be there once, and the type of each family."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._server.server_port}/metrics", timeout=60) as reply:
            text = reply.read().decode()
        samples: Samples = {}
        types = {}
        for family in text_string_to_metric_families(text):
            types[family.name] = family.type
            for sample in family.samples:
                series = sample.name, frozenset(sample.labels.items())
                assert series not in samples, f"{series} is there twice"
                samples[series] = sample.value
        return samples, types

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


@pytest.fixture
def page() -> Iterator[Page]:
    served = Page()
    yield served
    served.close()


def value(samples: Samples, series: str, /, **labels: object) -> float:
    return samples[series, frozenset((key, str(label)) for key, label in labels.items())]


def refuse(payload: object) -> object:
    raise ValueError("no")


def test_one_rank(page: Page) -> None:
    prometheus.register(registry=page.registry)
    assert page.scrape()[0] == {}, "there is no object yet"
    with LazyBroadcast(len, name="solo") as lazy:
        for n in range(5):
            assert lazy.broadcast(bytes(n)) == n
        raises(MaterializeError, "no", lambda: lazy.broadcast(b"", materialize=refuse))
        samples, types = page.scrape()
        labels = {"name": "solo", "rank": 0}
        assert value(samples, "lazycast_casts_total", **labels, placement="every") == 6
        assert value(samples, "lazycast_calls_total", **labels) == 6
        assert value(samples, "lazycast_calls_ended_total", **labels, outcome="value") == 5
        assert value(samples, "lazycast_calls_ended_total", **labels, outcome="MaterializeError") == 1
        assert value(samples, "lazycast_pending_calls", **labels) == 0
        assert value(samples, "lazycast_phase_seconds_count", **labels, phase="total") == 5
        assert value(samples, "lazycast_phase_seconds_bucket", **labels, phase="total", le="+Inf") == 5
        total_s = lazy.stats().total.total_s
        assert value(samples, "lazycast_phase_seconds_sum", **labels, phase="total") == pytest.approx(total_s)
        assert types["lazycast_casts"] == "counter"
        assert types["lazycast_pending_calls"] == "gauge"
        assert types["lazycast_phase_seconds"] == "histogram"
        assert value(samples, "lazycast_aborted_casts_total", **labels) == 0
        assert value(samples, "lazycast_lost_ranks_total", **labels) == 0


def test_what_has_not_happened_yet_has_its_series(page: Page) -> None:
    """`rate()` begins with a series' second value: it would miss the first failure of a kind."""
    prometheus.register(registry=page.registry)
    with LazyBroadcast(len, name="new") as lazy:
        before, labels = page.scrape()[0], {"name": "new", "rank": 0}
        for outcome in ("value", "cancelled", "MaterializeError", "PeerLostError", "CastTimeoutError", "EncodeError"):
            assert value(before, "lazycast_calls_ended_total", **labels, outcome=outcome) == 0
        for placement in ("every", "demand", "root", "shard", "helpers"):
            assert value(before, "lazycast_casts_total", **labels, placement=placement) == 0
        for phase in PHASES:
            assert value(before, "lazycast_phase_seconds_count", **labels, phase=phase) == 0
            assert value(before, "lazycast_phase_seconds_bucket", **labels, phase=phase, le="+Inf") == 0
        raises(MaterializeError, "no", lambda: lazy.broadcast(b"", materialize=refuse))
        assert lazy.broadcast(b"ab") == 2
        after, _ = page.scrape()
        assert value(after, "lazycast_calls_ended_total", **labels, outcome="MaterializeError") == 1
        assert value(after, "lazycast_phase_seconds_count", **labels, phase="total") == 1
        families = "lazycast_calls_ended_total", "lazycast_phase_seconds_bucket", "lazycast_casts_total"
        assert {series for series in after if series[0] in families} <= set(before), "one made a series of its own"


def each(group: list[Any], together: Callable[..., list[Any]], fn: Callable[[Any], Any]) -> list[Any]:
    return together(*(lambda lazy=lazy: fn(lazy) for lazy in group))


def test_ranks_are_told_apart_and_the_root_alone_can_speak_for_all(
    page: Page, together: Callable[..., list[Any]]
) -> None:
    backends = LocalBackend.threads(3)
    objects = together(*(lambda b=b: LazyBroadcast(len, backend=b, name="tp") for b in backends))
    try:
        for n in range(4):
            assert each(objects, together, lambda lazy, n=n: lazy.broadcast(bytes(n))) == [n] * 3
        prometheus.register(registry=page.registry)
        samples, _ = page.scrape()
        for rank in range(3):
            assert value(samples, "lazycast_calls_ended_total", name="tp", rank=rank, outcome="value") == 4
            assert value(samples, "lazycast_phase_seconds_count", name="tp", rank=rank, phase="total") == 4
        assert value(samples, "lazycast_phase_seconds_count", name="tp", rank=0, phase="encode") == 4

        of_root = Page()
        try:
            prometheus.register(objects[1], group=True, registry=of_root.registry)
            assert of_root.scrape()[0] == {}, "its root is another object"
            prometheus.register(objects[0], group=True, registry=of_root.registry)
            together(*(lambda lazy=lazy: lazy.close() for lazy in objects[1:]))  # each says its last word
            deadline_s = time.monotonic() + 20
            while time.monotonic() < deadline_s:  # which the root may read a moment after they have closed
                heard = objects[0].stats(group=True).ranks
                if [stats.resolved for stats in heard.values()] == [4, 4, 4]:
                    break
                time.sleep(0.01)
            samples, _ = of_root.scrape()
            for rank in range(3):
                assert value(samples, "lazycast_calls_ended_total", name="tp", rank=rank, outcome="value") == 4
                assert 0 <= value(samples, "lazycast_report_age_seconds", name="tp", rank=rank) < 60
        finally:
            of_root.close()
    finally:
        together(*(lambda lazy=lazy: lazy.close() for lazy in objects))


def test_objects_of_one_name_are_added_up(page: Page) -> None:
    prometheus.register(registry=page.registry)
    with LazyBroadcast(name="twin") as one, LazyBroadcast(name="twin") as other, LazyBroadcast(name="odd") as odd:
        for lazy in (one, other, other, odd):
            lazy.broadcast(1)
        samples, _ = page.scrape()
        assert value(samples, "lazycast_calls_total", name="twin", rank=0) == 3
        assert value(samples, "lazycast_calls_total", name="odd", rank=0) == 1
        assert value(samples, "lazycast_phase_seconds_count", name="twin", rank=0, phase="total") == 3


def test_only_the_chosen_ones_are_exported_and_none_is_kept(page: Page) -> None:
    with LazyBroadcast(name="chosen") as chosen, LazyBroadcast(name="other") as other:
        chosen.broadcast(1)
        other.broadcast(1)
        prometheus.register(chosen, registry=page.registry)
        names = {dict(labels)["name"] for _, labels in page.scrape()[0]}
        assert names == {"chosen"}
        assert chosen.closed is False
    assert chosen.closed
    lane, gone = weakref.ref(chosen._lane), weakref.ref(chosen)
    del chosen
    gc.collect()
    assert gone() is None, "the collector keeps a closed object alive"
    assert lane() is None, "or what it is made of"
    samples = page.scrape()[0]
    assert {dict(labels)["name"] for _, labels in samples} == {"chosen"}
    assert value(samples, "lazycast_calls_total", name="chosen", rank=0) == 1


def test_series_stay_when_an_object_is_closed_and_the_next_of_its_name_counts_on(page: Page) -> None:
    prometheus.register(registry=page.registry)
    labels = {"name": "again", "rank": 0}
    with LazyBroadcast(len, name="again") as lazy:
        held = lazy.broadcast_async(b"12", key="k")
        assert held.result(20) == 2
        raises(MaterializeError, "no", lambda: lazy.broadcast(b"", materialize=refuse))
        before, _ = page.scrape()
    lazy.close()  # once more
    after, types = page.scrape()
    counters = {s: v for s, v in before.items() if s[0].endswith(("_total", "_bucket", "_count", "_sum"))}
    assert len(counters) > 30
    assert {series: after[series] for series in counters} == counters
    assert set(after) == set(before), "a series has come or gone"
    assert types["lazycast_pending_calls"] == "gauge"
    assert value(after, "lazycast_pending_calls", **labels) == 0
    with LazyBroadcast(len, name="again") as lazy:
        assert value(page.scrape()[0], "lazycast_calls_total", **labels) == 2
        lazy.broadcast(b"")
        assert value(page.scrape()[0], "lazycast_calls_total", **labels) == 3
    samples, _ = page.scrape()
    assert value(samples, "lazycast_calls_total", **labels) == 3
    assert value(samples, "lazycast_phase_seconds_count", **labels, phase="total") == 2
    assert value(samples, "lazycast_calls_ended_total", **labels, outcome="MaterializeError") == 1


def test_gauges_of_a_closed_object_are_zero_and_the_group_keeps_its_last_word(
    page: Page, together: Callable[..., list[Any]]
) -> None:
    objects = together(*(lambda b=b: LazyBroadcast(backend=b, name="g") for b in LocalBackend.threads(2)))
    prometheus.register(objects[0], group=True, registry=page.registry)
    every = Page()
    try:
        prometheus.register(registry=every.registry)
        root, other = objects
        values = together(lambda: root.broadcast(bytes(1 << 20)), other.broadcast)  # the memory is held, beyond `close`
        assert value(every.scrape()[0], "lazycast_arena_bytes", name="g", rank=0) > 0
        together(*(lazy.close for lazy in objects))
        samples, _ = every.scrape()
        for gauge in ("arena_bytes", "shared_bytes", "pending_calls", "unasked_casts", "blocked_calls"):
            assert value(samples, f"lazycast_{gauge}", name="g", rank=0) == 0
        assert value(samples, "lazycast_received_bytes_total", name="g", rank=1, by="host") > 1 << 20
        assert value(samples, "lazycast_received_bytes_total", name="g", rank=1, by="network") == 0
        samples, _ = page.scrape()
        age_s = value(samples, "lazycast_report_age_seconds", name="g", rank=0)
        assert value(page.scrape()[0], "lazycast_report_age_seconds", name="g", rank=0) == age_s
        assert value(samples, "lazycast_calls_total", name="g", rank=0) == 1
        assert values[0] == values[1]
    finally:
        every.close()


def test_aborted_casts_are_no_failures(page: Page, together: Callable[..., list[Any]]) -> None:
    prometheus.register(registry=page.registry)
    objects = together(
        *(lambda b=b: LazyBroadcast(backend=b, name="ab", placement="root") for b in LocalBackend.threads(2))
    )
    root, other = objects
    gate = threading.Event()
    try:
        held = root.broadcast_async(1, materialize=lambda payload: gate.wait(20))
        withdrawn = root.broadcast_async(2)  # behind the other, so it has not been sent
        assert withdrawn.cancel()
        asked = [other.broadcast_async(), other.broadcast_async()]
        gate.set()
        assert held.result(20) is True
        assert asked[0].result(20) is True
        raises(CancelledError, "", lambda: asked[1].result(20))
        for rank in (0, 1):
            samples, labels = page.scrape()[0], {"name": "ab", "rank": rank}
            assert value(samples, "lazycast_aborted_casts_total", **labels) == 1
            outcomes = {
                dict(series)["outcome"]: count
                for (name, series), count in samples.items()
                if name == "lazycast_calls_ended_total" and dict(series)["rank"] == str(rank) and count
            }
            assert outcomes == {"value": 1, "cancelled": 1}
    finally:
        gate.set()
        together(*(lazy.close for lazy in objects))


def test_a_call_that_one_rank_alone_gives_up_is_no_aborted_cast(page: Page, together: Callable[..., list[Any]]) -> None:
    prometheus.register(registry=page.registry)
    objects = together(*(lambda b=b: LazyBroadcast(backend=b, name="one") for b in LocalBackend.threads(2)))
    try:
        future = objects[1].broadcast_async()
        assert future.cancel()
        assert objects[0].broadcast(1) == 1
        for rank, cancelled in ((0, 0), (1, 1)):
            samples, labels = page.scrape()[0], {"name": "one", "rank": rank}
            assert value(samples, "lazycast_aborted_casts_total", **labels) == 0
            assert value(samples, "lazycast_calls_ended_total", **labels, outcome="cancelled") == cancelled
    finally:
        together(*(lazy.close for lazy in objects))


def test_lost_ranks_are_counted_once_each(page: Page, together: Callable[..., list[Any]]) -> None:
    prometheus.register(registry=page.registry)
    objects = together(*(lambda b=b: LazyBroadcast(backend=b, name="loss") for b in LocalBackend.threads(3)))
    try:
        lane: Any = objects[1]._lane
        future = objects[1].broadcast_async()
        lane.on_neighbour_gone(2, None)  # closed: that is no loss
        assert value(page.scrape()[0], "lazycast_lost_ranks_total", name="loss", rank=1) == 0
        for _ in range(2):  # it is noticed, and others tell of it
            lane.on_neighbour_gone(2, "end of file")
        raises(PeerLostError, "rank 2", lambda: future.result(20))
        assert objects[1].stats().lost == 1
        assert "lost           1 rank" in str(objects[1].stats())
    finally:
        together(*(lazy.close for lazy in objects))
    samples, _ = page.scrape()
    assert value(samples, "lazycast_lost_ranks_total", name="loss", rank=1) == 1, "and it stays after close"
    assert value(samples, "lazycast_calls_ended_total", name="loss", rank=1, outcome="PeerLostError") == 1


def test_a_forked_child_exports_nothing_of_its_parent(run_python: Callable[..., str]) -> None:
    code = """
import os
from prometheus_client import CollectorRegistry
from lazycast import LazyBroadcast
from lazycast.watch import prometheus

collector = prometheus.register(registry=CollectorRegistry())
names = lambda: sorted({sample.labels["name"] for family in collector.collect() for sample in family.samples})
with LazyBroadcast(name="closed") as lazy:
    lazy.broadcast(1)
with LazyBroadcast(name="open") as lazy:
    lazy.broadcast(1)
    pid = os.fork()
    if pid == 0:
        os.write(1, f"child {names()}\\n".encode())
        os._exit(0)
    os.waitpid(pid, 0)
print("parent", names())
"""
    assert run_python(code).splitlines() == ["child []", "parent ['closed', 'open']"]


def test_buckets_hold_what_took_no_longer_than_their_bound() -> None:
    tally = Tally()
    for bound_s in BOUNDS_S:
        tally.add(bound_s)
    for text, count in prometheus._cumulated(tally.timing())[:-1]:
        assert count == sum(bound_s <= float(text) for bound_s in BOUNDS_S)
    bounds = [text for text, _ in prometheus._cumulated(tally.timing())]
    assert bounds[:4] == ["1e-05", "2e-05", "5e-05", "0.0001"]
    assert bounds[-3:] == ["50", "100", "+Inf"]


def test_without_the_library_the_error_says_what_to_install(run_python: Callable[..., str]) -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from lazycast.watch import prometheus
try:
    prometheus.register()
except ImportError as exc:
    print(exc)
"""
    assert "pip install 'lazycast[prometheus]'" in run_python(code)


def test_several_roots_count_each_rank_once(page: Page, together: Callable[..., list[Any]]) -> None:
    prometheus.register(group=True, registry=page.registry)
    objects = together(
        *(lambda b=b: LazyBroadcast(backend=b, name="any", roots="any") for b in LocalBackend.threads(3))
    )
    try:
        together(*(lambda one=one: [one.broadcast(n, key=n, root=0) for n in range(5)] for one in objects))
        deadline_s = time.monotonic() + 20
        while len(objects[0].stats(group=True).ranks) < 3:
            assert time.monotonic() < deadline_s, "rank 0 has heard of all"
            time.sleep(0.01)
        samples, _ = page.scrape()
        assert [value(samples, "lazycast_calls_total", name="any", rank=rank) for rank in range(3)] == [5, 5, 5]
    finally:
        together(*(lazy.close for lazy in objects))

"""What Prometheus gets, scraped over HTTP and read by prometheus_client's own parser."""

from __future__ import annotations

import gc
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazycast import LazyBroadcast, MaterializeError
from lazycast.testing.kit import raises
from lazycast.watch.timing import BOUNDS_S, Tally

prometheus_client = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from prometheus_client import CollectorRegistry, start_http_server  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from lazycast.backends.local import LocalBackend  # noqa: E402
from lazycast.watch import prometheus  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """A registry that is served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=self.registry)

    def scrape(self) -> tuple[Samples, dict[str, str]]:
        """Return all samples, each of which must be there once, and the type of each family."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._server.server_port}/metrics", timeout=10) as reply:
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
        self._thread.join(5)


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
    assert page.scrape()[0] == {}, "a closed object is exported"


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
    assert page.scrape()[0] == {}
    gone = weakref.ref(chosen)
    del chosen
    gc.collect()
    assert gone() is None, "the collector keeps a closed object alive"


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

"""Spans of OpenTelemetry, as the SDK has them: whose child each is, what it says, and that nothing happens without."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from lazycast import CastTimeoutError, LazyBroadcast, MaterializeError, RemoteError, Tuning, WouldBlockError
from lazycast.backends.local import LocalBackend
from lazycast.net import wire
from lazycast.testing.kit import raises

for needed in ("opentelemetry", "opentelemetry.sdk"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from lazycast.watch import otel  # noqa: E402

Together = Callable[..., list[Any]]


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.user = self.provider.get_tracer("user")

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str, rank: int | None = None) -> list[ReadableSpan]:
        """Those with a name, oldest first."""
        found = [s for s in self.all() if s.name == name and rank in (None, (s.attributes or {}).get("lazycast.rank"))]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str, rank: int | None = None) -> ReadableSpan:
        found = self.named(name, rank)
        assert len(found) == 1, (name, rank, [(s.name, dict(s.attributes or {})) for s in self.all()])
        return found[0]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    users.append(made.user)
    yield made
    users.pop()
    otel.uninstrument()
    made.provider.shutdown()


def below(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert child.context is not None
    assert parent.context is not None
    same_trace = child.context.trace_id == parent.context.trace_id
    return same_trace and child.parent is not None and child.parent.span_id == parent.context.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("lazycast."): value for name, value in (span.attributes or {}).items()}


def group(together: Together, size: int, **options: Any) -> list[LazyBroadcast[Any, Any]]:
    options = {"timeout_s": 60, "placement": "every", **options}
    return together(*(lambda b=b: LazyBroadcast(backend=b, name="tp", **options) for b in LocalBackend.threads(size)))


def close(objects: list[LazyBroadcast[Any, Any]], together: Together) -> None:
    together(*(lazy.close for lazy in objects))


def everywhere(objects: list[LazyBroadcast[Any, Any]], together: Together, payload: Any, **options: Any) -> list[Any]:
    """Cast from the root, and ask on all others, with options that are all ranks'."""
    ask = [lambda lazy=lazy: lazy.broadcast(payload if lazy.is_root else None, **options) for lazy in objects]
    return together(*ask)


@pytest.mark.parametrize("shared_memory", ["auto", False], ids=["shared", "network"])
def test_a_cast_is_part_of_the_request_on_every_rank(
    spans: Spans, together: Together, shared_memory: str | bool
) -> None:
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 3, root=1, tuning=Tuning(shared_memory=shared_memory))
    try:

        def request() -> int:
            with spans.user.start_as_current_span("request"):
                return objects[1].broadcast(41, materialize=develop, key="req-7")

        others = [lambda lazy=objects[rank]: lazy.broadcast(key="req-7") for rank in (0, 2)]
        assert together(request, *others) == [42, 42, 42]
    finally:
        close(objects, together)
    call = spans.one("lazycast.broadcast")
    assert below(call, spans.one("request"))
    assert call.kind is SpanKind.PRODUCER
    seq = attributes(call)["seq"]
    common = {"object": "tp", "root": 1, "size": 3, "key": "req-7", "seq": seq, "placement": "every"}
    assert attributes(call).items() >= {**common, "rank": 1, "outcome": "value", "blocking": True}.items()
    assert attributes(call)["payload_nbytes"] > 0
    assert below(spans.one("lazycast.encode"), call)
    for rank in range(3):
        part = spans.one("lazycast.part", rank)
        assert below(part, call)
        assert attributes(part).items() >= {**common, "rank": rank}.items()
        materialized = spans.one("lazycast.materialize", rank)
        assert below(materialized, part)
        assert attributes(materialized)["materializer"].endswith("develop")
        assert [below(inner, materialized) for inner in spans.named("in the materializer")].count(True) == 1
        assert [below(decoded, part) for decoded in spans.named("lazycast.decode", rank)] == [True] * (rank != 1)
    for rank in (0, 2):
        asked = spans.one("lazycast.receive", rank)
        assert below(asked, call), "nothing was current where it was asked: it belongs to the root's call"
        assert asked.kind is SpanKind.CONSUMER
        assert attributes(asked).items() >= {**common, "rank": rank, "outcome": "value"}.items()
        assert not asked.links
    for span in spans.all():
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        assert span.status.status_code is StatusCode.UNSET


def test_a_call_elsewhere_belongs_to_its_own_request_and_is_linked(spans: Spans, together: Together) -> None:
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2)
    try:

        def asks() -> Any:
            with spans.user.start_as_current_span("own request"):
                return objects[1].broadcast()

        assert together(lambda: objects[0].broadcast(5), asks) == [5, 5]
    finally:
        close(objects, together)
    asked, call = spans.one("lazycast.receive"), spans.one("lazycast.broadcast")
    assert below(asked, spans.one("own request"))
    (link,) = asked.links
    assert call.context is not None
    assert link.context.span_id == call.context.span_id
    assert call.parent is None, "nothing was current on the root"


def test_each_call_has_the_context_of_its_own_time(spans: Spans, together: Together) -> None:
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2)
    try:
        futures = []
        for name in ("a", "b", "c"):
            with spans.user.start_as_current_span(f"request {name}"):
                futures.append(objects[0].broadcast_async(name, key=name))
        for name in ("c", "a", "b"):
            assert objects[1].broadcast(key=name) == name
        assert [future.result(20) for future in futures] == ["a", "b", "c"]
    finally:
        close(objects, together)
    for call in spans.named("lazycast.broadcast"):
        key = attributes(call)["key"]
        assert below(call, spans.one(f"request {key}"))
        part = [p for p in spans.named("lazycast.part", 1) if attributes(p)["key"] == key]
        assert len(part) == 1
        assert below(part[0], call)
        assert attributes(call)["blocking"] is False


users: list[trace.Tracer] = []  # of the test that runs: a materializer travels by its path


def develop(payload: int) -> int:
    with users[-1].start_as_current_span("in the materializer"):
        return payload + 1


def refuse(payload: object) -> object:
    raise ValueError("no")


def test_failures_are_errors_on_every_rank(spans: Spans, together: Together) -> None:
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2)
    try:
        together(
            lambda: raises(MaterializeError, "no", lambda: objects[0].broadcast(1, materialize=refuse, key="bad")),
            lambda: raises(MaterializeError, "no", lambda: objects[1].broadcast(key="bad")),
        )
        together(
            lambda: raises(TypeError, "callable", lambda: objects[0].broadcast(1, materialize=5, key="refused")),  # type: ignore[arg-type]
            lambda: raises(RemoteError, "callable", lambda: objects[1].broadcast(key="refused")),
        )
        raises(CastTimeoutError, "no value", lambda: objects[1].broadcast(key="never", timeout_s=0.1))
    finally:
        close(objects, together)
    calls = {(attributes(s)["rank"], attributes(s)["key"]): s for s in spans.all() if s.kind is not SpanKind.INTERNAL}
    errors = {
        (0, "bad"): "MaterializeError",
        (1, "bad"): "MaterializeError",
        (0, "refused"): "TypeError",
        (1, "refused"): "RemoteError",
        (1, "never"): "CastTimeoutError",
    }
    assert calls.keys() == errors.keys()
    for which, error in errors.items():
        span = calls[which]
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["outcome"] == "error"
        (event,) = span.events
        assert (event.name, dict(event.attributes or {})["exception.type"]) == ("exception", error)
    assert "ValueError: no" in (calls[1, "bad"].status.description or "")
    assert below(calls[1, "refused"], calls[0, "refused"]), "the failure that is cast has the context too"
    parts = [spans.one("lazycast.part", rank) for rank in (0, 1)]
    assert StatusCode.ERROR in {part.status.status_code for part in parts}
    failed = [s for s in spans.named("lazycast.materialize") if s.status.status_code is StatusCode.ERROR]
    assert failed
    assert all(dict(s.events[0].attributes or {})["exception.type"] == "ValueError" for s in failed)


def test_a_withdrawn_cast_is_no_error(spans: Spans, together: Together) -> None:
    gate = threading.Event()
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2, placement="root")
    try:
        held = objects[0].broadcast_async(1, materialize=lambda payload: gate.wait(20), key="held")
        withdrawn = objects[0].broadcast_async(2, key="held not")
        unkeyed = [objects[0].broadcast_async(3, materialize=lambda payload: gate.wait(20)), None]
        unkeyed[1] = objects[0].broadcast_async(4)
        assert unkeyed[1].cancel()  # type: ignore[union-attr]
        gate.set()
        assert objects[1].broadcast(key="held") is True
        assert objects[1].broadcast(key="held not") == 2
        assert objects[1].broadcast() is True
        raises(CancelledError, "", objects[1].broadcast)
        assert (held.result(20), withdrawn.result(20)) == (True, 2)
    finally:
        gate.set()
        close(objects, together)
    cancelled = [s for s in spans.all() if attributes(s).get("outcome") == "cancelled"]
    assert sorted(attributes(span)["rank"] for span in cancelled) == [0, 1]
    assert {span.status.status_code for span in cancelled} == {StatusCode.UNSET}


def test_one_rank_alone(spans: Spans) -> None:
    with LazyBroadcast(develop, name="solo") as lazy:
        otel.instrument(lazy, tracer_provider=spans.provider)
        with spans.user.start_as_current_span("request"):
            assert lazy.broadcast(1, key=b"\x01\xff") == 2
    call = spans.one("lazycast.broadcast")
    assert below(call, spans.one("request"))
    assert below(spans.one("lazycast.materialize"), call)
    assert below(spans.one("in the materializer"), spans.one("lazycast.materialize"))
    assert attributes(call)["key"] == "01ff"


def test_only_the_chosen_ones_are_spans_and_only_as_long_as_wanted(spans: Spans, together: Together) -> None:
    one, other = group(together, 2), group(together, 2)
    try:
        otel.instrument(one[0], tracer_provider=spans.provider)
        everywhere(one, together, 1)
        everywhere(other, together, 1)
        assert {attributes(s)["rank"] for s in spans.all()} == {0}, "the others are not instrumented"
        count = len(spans.all())
        assert count > 0
        otel.uninstrument()
        everywhere(one, together, 1)
        assert len(spans.all()) == count
        otel.instrument(tracer_provider=spans.provider)
        everywhere(other, together, 1)
        assert {attributes(s)["rank"] for s in spans.all()[count:]} == {0, 1}
    finally:
        close(one, together)
        close(other, together)


def sent(objects: list[LazyBroadcast[Any, Any]], together: Together) -> list[dict[str, str] | None]:
    """What travels with two casts, one of which fails on the root."""
    lane: Any = objects[1]._lane
    took, seen = lane.on_message, []

    def on_message(message: Any, body: memoryview) -> None:
        if isinstance(message, wire.Cast):
            seen.append(message.trace)
        took(message, body)

    lane.on_message = on_message
    everywhere(objects, together, 1)
    together(
        lambda: raises(TypeError, "callable", lambda: objects[0].broadcast(1, materialize=5)),  # type: ignore[arg-type]
        lambda: raises(RemoteError, "callable", objects[1].broadcast),
    )
    return seen


def test_nothing_travels_without_tracing(together: Together) -> None:
    objects = group(together, 2)
    try:
        assert sent(objects, together) == [None, None]
        assert objects[0]._engine.spans is None
        assert objects[0]._lane.casts.making.own_part.within is None  # type: ignore[union-attr]
    finally:
        close(objects, together)


def test_the_context_travels_with_tracing(spans: Spans, together: Together) -> None:
    objects = group(together, 2)
    try:
        otel.instrument(objects[0], tracer_provider=spans.provider)
        carriers = sent(objects, together)
    finally:
        close(objects, together)
    calls = spans.named("lazycast.broadcast")
    assert [set(carrier or ()) for carrier in carriers] == [{"traceparent"}] * 2
    for carrier, call in zip(carriers, calls, strict=True):
        assert carrier is not None
        assert call.context is not None
        ids = f"{call.context.trace_id:032x}-{call.context.span_id:016x}"
        assert carrier["traceparent"] == f"00-{ids}-{call.context.trace_flags:02x}"


def test_what_is_not_sampled_on_the_root_is_nowhere(together: Together) -> None:
    exporter = InMemorySpanExporter()
    silent, eager = (TracerProvider(sampler=ALWAYS_OFF), TracerProvider(sampler=ParentBased(ALWAYS_OFF)))
    eager.add_span_processor(SimpleSpanProcessor(exporter))
    objects = group(together, 2)
    try:
        otel.instrument(objects[0], tracer_provider=silent)
        otel.instrument(objects[1], tracer_provider=eager)
        assert everywhere(objects, together, 1) == [1, 1]
    finally:
        close(objects, together)
        otel.uninstrument()
        silent.shutdown()
        eager.shutdown()
    assert exporter.get_finished_spans() == ()


def test_without_an_sdk_nothing_happens(together: Together) -> None:
    objects = group(together, 2)
    try:
        otel.instrument(tracer_provider=trace.NoOpTracerProvider())
        assert sent(objects, together) == [None, None]
    finally:
        close(objects, together)
        otel.uninstrument()


class Broken(SpanProcessor):
    """Of somebody who makes mistakes."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on_start fails")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("on_end fails")


def test_a_processor_that_raises_ends_no_cast(together: Together, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    objects = group(together, 2)
    try:
        otel.instrument(tracer_provider=provider)
        for n in range(3):
            assert everywhere(objects, together, n, materialize=None) == [n, n]
        with caplog.at_level(logging.ERROR, "lazycast"):
            results = everywhere(objects, together, [1], materialize=len)
        assert results == [1, 1]
    finally:
        close(objects, together)
        otel.uninstrument()
        provider.shutdown()
    said = [record.getMessage() for record in caplog.records if "a span could not be written" in record.getMessage()]
    assert 1 <= len(said) <= 2, "once for each object"
    assert "RuntimeError: on_start fails" in said[0]


def test_a_hostile_context_does_no_harm(spans: Spans, together: Together) -> None:
    objects = group(together, 2)
    try:
        otel.instrument(objects[1], tracer_provider=spans.provider)
        lane: Any = objects[1]._lane
        took = lane.on_message
        headers: list[dict[str, str]] = [{}, {"traceparent": "00-zz"}, {"": "\x00"}]
        hostile = iter([*headers, {"traceparent": "x" * 5000, "tracestate": "=,=" * 999}])

        def on_message(message: Any, body: memoryview) -> None:
            if isinstance(message, wire.Cast):
                fields = {name: getattr(message, name) for name in message.__struct_fields__}
                message = wire.Cast(**{**fields, "trace": next(hostile)})
            took(message, body)

        lane.on_message = on_message
        for n in range(4):
            assert everywhere(objects, together, n) == [n, n]
    finally:
        close(objects, together)
    assert len(spans.named("lazycast.receive")) == 4


def test_a_call_that_waits_for_room_in_a_loop_is_one_span(spans: Spans, together: Together) -> None:
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2, tuning=Tuning(max_inflight=1))

    async def casts() -> list[int]:
        found = []
        for n in range(3):
            with spans.user.start_as_current_span(f"request {n}"):
                found.append(asyncio.ensure_future(objects[0].cast(n)))
        await asyncio.sleep(0)
        raises(WouldBlockError, "nothing was cast", lambda: objects[0].broadcast_async(9, block=False))
        waiting.set()
        return list(await asyncio.gather(*found))

    def asks() -> list[int]:
        assert waiting.wait(20)
        return [objects[1].broadcast() for _ in range(3)]

    waiting = threading.Event()
    try:
        assert together(lambda: asyncio.run(casts()), asks) == [[0, 1, 2], [0, 1, 2]]
    finally:
        close(objects, together)
    calls = spans.named("lazycast.broadcast")
    assert [attributes(call)["outcome"] for call in calls] == ["value"] * 3
    for n, call in enumerate(sorted(calls, key=lambda call: attributes(call)["seq"])):
        assert below(call, spans.one(f"request {n}"))


class Payload:
    """Something that can be watched."""


def test_spans_keep_nothing_alive(spans: Spans) -> None:
    with LazyBroadcast(name="light") as lazy:
        otel.instrument(lazy, tracer_provider=spans.provider)
        payload = Payload()
        gone = weakref.ref(payload)
        future = lazy.broadcast_async(payload)
        assert future.result(20) is payload
        del payload, future
        gc.collect()
        assert gone() is None


def test_a_call_that_is_made_first_takes_no_other_calls_span(spans: Spans, together: Together) -> None:
    """What was handed over, by a finalizer say, is made at the beginning of the next call, in its thread."""
    otel.instrument(tracer_provider=spans.provider)
    objects = group(together, 2)
    try:
        lane: Any = objects[0]._lane
        with lane.engine.thread._working:  # the engine does not come first
            later = lane.asks.call_later("first", None, "first", 20.0, None)

            def request() -> Any:
                with spans.user.start_as_current_span("request"):
                    return objects[0].broadcast_async("second", key="second")

            second = contextvars.copy_context().run(request)
        assert objects[1].broadcast(key="first") == "first"
        assert objects[1].broadcast(key="second") == "second"
        assert (later.result(20), second.result(20)) == ("first", "second")
    finally:
        close(objects, together)
    (call,) = spans.named("lazycast.broadcast")
    assert attributes(call)["key"] == "second"
    parts = spans.named("lazycast.part", 1)
    assert [attributes(part)["key"] for part in parts] == ["second"], "the other has no context that could travel"


def test_without_the_library_the_error_says_what_to_install(run_python: Callable[..., str]) -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from lazycast import LazyBroadcast
from lazycast.watch import otel
with LazyBroadcast() as lazy:
    try:
        otel.instrument(lazy)
    except ImportError as exc:
        print(exc)
    print(lazy.broadcast(1))
"""
    said = run_python(code).splitlines()
    assert said == ["opentelemetry is missing; run: pip install 'lazycast[otel]'", "1"]

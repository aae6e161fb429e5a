"""Spans of OpenTelemetry: what a cast does on each rank, as part of the request that it belongs to.

`instrument()` once in each rank's process. On the root a call is a span below the one that was current where the call
was made, and its context travels with the cast. Each rank's part of the cast is a span below that, and so are those
that a materializer begins. A call of another rank is a span below what was current there, with a link to the root's;
if nothing was, below the root's.

Guarantees: without `instrument()` nothing travels, and a cast passes no function more. Spans begin and end without any
lock of lazycast's. What a span processor raises ends no cast; it is logged once. No span keeps a payload, a value, an
error or a future alive.

Needs `opentelemetry-api` (`pip install 'lazycast[otel]'`), which is imported when the first object is instrumented; and
the program sets up the SDK, or all of it does nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lazycast.api import LazyBroadcast
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.lane import Lane
from lazycast.core.performer import Result
from lazycast.core.workers import role_of
from lazycast.errors import LazycastError, WouldBlockError
from lazycast.materialize.materializers import name_of
from lazycast.start import lifetime
from lazycast.tracebacks import log
from lazycast.watch.tracing.tracer import Named

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

logger = logging.getLogger("lazycast")

_MAX_TEXT = 2000  # characters
_Carrier = dict[str, str]
_About = dict[str, str | int]


class Traced:
    """One call of this rank. See `lazycast.core.spans`."""

    __slots__ = ("about", "began_ns", "carrier", "cast", "context", "key", "span")

    def __init__(
        self, key: object, context: Context, began_ns: int, span: Span | None, carrier: _Carrier | None, about: _About
    ) -> None:
        self.key, self.context, self.began_ns = key, context, began_ns
        self.span = span  # on the root
        self.carrier = carrier  # what travels with its cast
        self.about = about
        self.cast: Named | None = None  # its cast, once that is known here


class Spans:
    """The spans of one object on one rank. Called by its engine, without the lock but for `opened`. Threads: safe.

    Args:
        engine: whose calls and parts these are.
        provider: of tracers; None: the global one.
    Raises: ImportError if opentelemetry-api is not installed.
    """

    def __init__(self, engine: Engine, provider: TracerProvider | None) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as exc:
            raise ImportError("opentelemetry is missing; run: pip install 'lazycast[otel]'") from exc
        self._context, self._trace = context, trace
        self._propagator = TraceContextTextMapPropagator()
        self._tracer: Tracer = trace.get_tracer("lazycast", tracer_provider=provider)
        self._engine = engine
        stats = engine.looks.stats()
        self._about: _About = {
            "lazycast.object": stats.name,
            "lazycast.rank": stats.rank,
            "lazycast.size": stats.size,
        }
        if len(engine.lanes) == 1:  # else each call says whose cast it is
            self._about["lazycast.root"] = stats.root
        self._here = threading.local()
        self._parts: dict[int, Span] = {}  # by the cast's number
        self._wall_ns = time.time_ns() - time.monotonic_ns()
        self._told = False

    # Calls

    def around(self, lane: Lane) -> Callable[..., CastFuture[Any]]:
        """Return what makes a call as `call` of a lane does, and notes how it ends."""
        call, is_root, about = lane.call, lane.asks.is_root, {**self._about, "lazycast.root": lane.asks.root}

        def made(
            payload: object, materialize: Callable[[Any], Any] | None, key: Any, *more: Any, **options: Any
        ) -> CastFuture[Any]:
            traced = self._begin(key, about, is_root=is_root, blocking=bool(options.get("here")))
            if traced is None:
                return call(payload, materialize, key, *more, **options)
            self._here.opened = traced
            try:
                future = call(payload, materialize, key, *more, **options)
            except WouldBlockError:
                raise  # it does not count: there was no call, and its span is dropped
            except BaseException as exc:
                self._end(traced, exc, cancelled=False)
                raise
            finally:
                self._here.opened = None
            future._when_done(functools.partial(self._settled, traced))
            return future

        return made

    def opened(self) -> Traced | None:
        """Return the call that this thread is about to make. With the lock held: it only looks."""
        if role_of(self._engine) == "finalizer":
            return None  # what was handed over is made first: that is another call
        found: Traced | None = getattr(self._here, "opened", None)
        return found

    def _begin(self, key: object, about: _About, *, is_root: bool, blocking: bool) -> Traced | None:
        context, began_ns = self._context.get_current(), time.time_ns()
        if not is_root:
            return Traced(key, context, began_ns, None, None, about)
        kind = self._trace.SpanKind.PRODUCER
        carrier: _Carrier = {}
        try:
            span = self._tracer.start_span("lazycast.broadcast", context, kind, about, start_time=began_ns)
            span.set_attribute("lazycast.blocking", blocking)
            self._propagator.inject(carrier, self._trace.set_span_in_context(span, context))
        except Exception as exc:
            self._tell(exc)
            return None
        return Traced(key, context, began_ns, span, carrier or None, about)

    def _settled(self, traced: Traced, future: Any) -> None:
        cancelled = future.cancelled()
        self._end(traced, None if cancelled else future.exception(0), cancelled=cancelled)

    def _end(self, traced: Traced, exc: BaseException | None, *, cancelled: bool) -> None:
        with self._guarded():
            span = traced.span if traced.span is not None else self._receiving(traced)
            span.set_attributes(_attributes(traced.key, traced.cast))
            outcome = "cancelled" if cancelled else "error" if exc is not None else "value"
            span.set_attribute("lazycast.outcome", outcome)
            if exc is not None:
                text = exc.message if isinstance(exc, LazycastError) else ""
                self._failed(span, type(exc).__name__, text)
            span.end()

    def _receiving(self, traced: Traced) -> Span:
        """Begin, after the fact, the span of a call on another rank than the root: by now it is known what it got."""
        parent, links = traced.context, []
        sent = self._sent(traced.cast)
        if sent is not None:
            of_root = self._trace.get_current_span(sent).get_span_context()
            if self._trace.get_current_span(parent).get_span_context().is_valid:
                links.append(self._trace.Link(of_root))
            else:
                parent = sent
        kind = self._trace.SpanKind.CONSUMER
        return self._tracer.start_span(
            "lazycast.receive", parent, kind, traced.about, links=links, start_time=traced.began_ns
        )

    # Parts

    def began(self, cast: Any) -> None:
        """This rank's part of a cast begins. Again, if it had to wait for code."""
        parent = self._sent(cast)
        if parent is None or cast.seq in self._parts:
            return
        with self._guarded():
            attributes = {**self._about, **_attributes(cast.key, cast)}
            self._parts[cast.seq] = self._tracer.start_span("lazycast.part", parent, attributes=attributes)

    def ended(self, cast: Any, result: Result) -> None:
        """And is done."""
        span = self._parts.pop(cast.seq, None)
        if span is None:
            return
        with self._guarded():
            failure = result.failure
            if failure is not None:
                self._failed(span, failure.kind, failure.message)
            span.end()

    def took(self, what: str, began_s: float, ended_s: float, of: Any) -> None:
        """Something that this rank does for a cast took from `began_s` to `ended_s` (monotonic seconds)."""
        parent = self._within(of) if what != "materialize" else None  # that one is a span while it runs
        if parent is None:
            return
        with self._guarded():
            began_ns, ended_ns = (int(seconds * 1e9) + self._wall_ns for seconds in (began_s, ended_s))
            span = self._tracer.start_span(f"lazycast.{what}", parent, attributes=self._about, start_time=began_ns)
            span.end(ended_ns)

    def within(self, of: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls `fn` in a span of its own: what it begins itself lies below that."""
        parent = self._within(of)
        if parent is None:
            return fn

        def materialize(*arguments: Any) -> Any:
            span: Span | None = None
            with self._guarded():
                span = self._tracer.start_span("lazycast.materialize", parent, attributes=self._about)
                span.set_attribute("lazycast.materializer", name_of(fn))
                # For good: materializers run in a context of their own, which ends with them.
                self._context.attach(self._trace.set_span_in_context(span, self._context.Context()))
            error: str | None = None
            try:
                return fn(*arguments)
            except BaseException as exc:
                error = type(exc).__name__
                raise
            finally:
                if span is not None:
                    self._end_span(span, error)

        materialize.__qualname__ = name_of(fn)
        return materialize

    def _end_span(self, span: Span, error: str | None) -> None:
        with self._guarded():
            if error is not None:
                self._failed(span, error, "")
            span.end()

    def _within(self, of: Any) -> Context | None:
        """Return below what a phase of a cast belongs: the part, else what has travelled."""
        span = self._parts.get(of.seq)
        return self._trace.set_span_in_context(span) if span is not None else self._sent(of)

    def _sent(self, of: Any) -> Context | None:
        """Return the context that travels with a cast: `of` is that, a call of the root, or nothing."""
        carrier = getattr(of, "trace", None)
        if carrier is None and (traced := getattr(getattr(of, "ask", None), "traced", None)) is not None:
            carrier = traced.carrier
        try:
            return self._propagator.extract(carrier, self._context.Context()) if carrier else None
        except Exception as exc:
            self._tell(exc)
            return None

    def _failed(self, span: Span, error: str, text: str) -> None:
        text = text[:_MAX_TEXT]
        span.add_event("exception", {"exception.type": error, "exception.message": text})
        span.set_status(self._trace.StatusCode.ERROR, text or error)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Samplers, processors and exporters are somebody's code: what they raise must not end the engine."""
        try:
            yield
        except Exception as exc:
            self._tell(exc)

    def _tell(self, exc: Exception) -> None:
        if not self._told:
            self._told = True
            name = self._about["lazycast.object"]
            log(logger, f"lazycast {name!r}: a span could not be written; more such errors are not logged", exc)


def _attributes(key: object, cast: Any) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if key is not None:
        found["lazycast.key"] = key.hex() if isinstance(key, bytes) else str(key)
    if cast is not None:
        found["lazycast.seq"] = cast.seq
        if cast.placement:
            found["lazycast.placement"] = cast.placement
        nbytes = getattr(cast, "nbytes", None)
        if nbytes is not None:
            found["lazycast.payload_nbytes"] = nbytes
    return found


class _Everything:
    """Instruments what is opened."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider

    def began(self, thing: lifetime.Closable) -> None:
        if isinstance(thing, Engine):
            _instrument(thing, self._provider)

    def ended(self, thing: lifetime.Closable) -> None:
        """Its spans end with its calls."""


_everything: _Everything | None = None
_lock = threading.Lock()


def _instrument(engine: Engine, provider: TracerProvider | None) -> None:
    spans = Spans(engine, provider)
    with _lock:
        if engine.spans is None:
            engine.follow(spans)


def instrument(*objects: LazyBroadcast[Any, Any], tracer_provider: TracerProvider | None = None) -> None:
    """Write spans of OpenTelemetry for these objects from their next call on.

    Args:
        objects: without any, all that are open in this process, now or later.
        tracer_provider: instead of OpenTelemetry's global one. Choose processors that do not block (a
            `BatchSpanProcessor`): spans end on the threads that move casts.
    Raises: ImportError if opentelemetry-api is not installed.
    Collective: no; each rank whose spans are wanted calls it, the root among them: its context is what travels.
    Blocking: never. Threads: safe. What is instrumented already stays as it is.
    """
    global _everything
    if objects:
        for lazy in objects:
            _instrument(lazy._engine, tracer_provider)
        return
    watcher = _Everything(tracer_provider)
    with _lock:
        if _everything is None:
            _everything = watcher
            lifetime.tell(watcher)
    for thing in lifetime.open_now():
        watcher.began(thing)


def uninstrument() -> None:
    """Begin no spans any more, for any object of this process. Those that have begun end. Threads: safe."""
    global _everything
    with _lock:
        if _everything is not None:
            lifetime.tell_no_more(_everything)
        _everything = None
        for thing in lifetime.open_now():
            if isinstance(thing, Engine):
                thing.follow(None)

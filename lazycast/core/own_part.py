"""A rank's part of a cast: get payload and hint, by decoding, from the caller or from the owner; run the stages; share.

Guarantees:

* Runs in the calling thread, a worker's mostly, and without locks. What goes wrong comes back as data.
* An owner shares before it hands its value to anybody: what the others get is what the materializer made.
* A value that cannot be shared, or that a rank cannot rebuild, costs time only: whoever lacks it makes its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from lazycast.codec.fingerprint import fingerprint, first_difference
from lazycast.codec.pickling import Layout, as_it_arrives
from lazycast.codec.trust import Policy
from lazycast.core.arrival import Arrival, Material, Own
from lazycast.core.encoder import laid_out
from lazycast.core.failures import clip
from lazycast.core.helpers.maker import HelpedValue
from lazycast.core.helpers.process import Unmade
from lazycast.core.performer import Performer, Result
from lazycast.core.workers import unforked
from lazycast.errors import TrustError
from lazycast.materialize.held import Watch, Watching
from lazycast.materialize.materializers import CodeMissing, Loader, Materializer, name_of
from lazycast.materialize.staged import each_of
from lazycast.missing import MISSING
from lazycast.net.relay import Relay
from lazycast.net.wire import Cast, Cost, Failure, Value
from lazycast.options import HELPERS
from lazycast.tracebacks import describe
from lazycast.watch.tracing.tracer import Named

MAX_REASON = 500


class Stages(msgspec.Struct, frozen=True):
    """What is left to run: `prepare` makes the value, or the hint with which `finish` does.

    With `helped` that is what helpers do, in the place of `prepare`: it gets the payload's bytes and their layout.
    `instead` then gives the `prepare` with which this rank makes itself what a helper could not give away, if it is to.
    """

    prepare: Materializer | None
    finish: Callable[[Any, Any], Any] | None
    helped: Callable[[memoryview, Layout], HelpedValue] | None = None
    instead: Callable[[], Materializer | None] | None = None


class OwnPart:
    """What one rank does of its casts.

    Args:
        policy: by which codec objects travel, and which materializers may be loaded.
        chosen: whether placements are chosen, so that none may fail a value that another one would not.
        watches: whether it matters for how long materializers keep the interpreter.
        took: notes how long something took, until now: ("decode" | "materialize" | "share", since when, which cast).
    """

    def __init__(
        self,
        rank: int,
        performer: Performer,
        relay: Relay,
        policy: Policy,
        *,
        readonly: bool,
        took: Callable[..., None],
        chosen: bool = False,
        watches: bool = False,
    ) -> None:
        self._rank, self._performer, self._relay = rank, performer, relay
        self._readonly, self._took = readonly, took
        self.chosen = chosen
        self._watching = Watching() if watches else None
        self.within: Callable[[Any, Callable[..., Any]], Callable[..., Any]] | None = None  # what follows materializers
        self.codec = policy.codec
        self._encode, self._decode = unforked(policy.codec.encode), unforked(policy.codec.decode)
        self.loader = Loader(policy)

    def stages(self, arrival: Arrival) -> Stages:
        """Return the callables of a cast. Runs imports and unpickling. Raises CodeMissing, and whatever those raise."""
        own, message = arrival.own, arrival.message
        if own is not None and (own.prepare is not None or own.finish is not None):
            return Stages(own.prepare, own.finish)
        load = self.loader.load
        finish: Any = load(message.finish) if message.finish is not None else None
        return Stages(load(message.ref) if message.ref is not None else None, finish)

    def first_stage(self, message: Cast, own: Own | None) -> Materializer | None:
        """Return what makes the value of a cast, or the hint. As `stages`."""
        if own is not None and own.prepare is not None:
            return own.prepare
        return self.loader.load(message.ref) if message.ref is not None else None

    def finish(self, arrival: Arrival) -> Callable[[Any, Any], Any] | None:
        """Return the second stage of a cast alone. As `stages`."""
        own, message = arrival.own, arrival.message
        finish: Any = None
        if own is not None and (own.prepare is not None or own.finish is not None):
            finish = own.finish
        elif message.finish is not None:
            finish = self.loader.load(message.finish)
        return cast(Callable[[Any, Any], Any] | None, finish)

    def join(self, arrival: Arrival) -> Callable[[list[Any]], Any]:
        """Return what joins the results of a cast that several make. As `stages`."""
        each = each_of(arrival.own.prepare) if arrival.own is not None else None
        if each is not None:
            return each.join
        ref = arrival.message.join
        return list if ref is None else self.loader.load(ref)

    def run(self, message: Cast, material: Material, stages: Stages, value: Value | None) -> tuple[Result, Cost]:
        """Do this rank's part; if it is the owner, share the result as `value`."""
        part = _Part(self, message, material, stages, value)
        began_s = time.thread_time()
        try:
            result = Result(part.value())
        except _Failed as exc:
            result = exc.result
        if value is not None and not part.told:
            # Without a failure the verdict was one, and came before this part began.
            why = None if result.failure is not None else "the cast had failed already"
            failure = result.failure
            if stages.helped is not None and failure is None:  # nobody is to make what helpers were to
                why, failure = None, Failure("refused", self._rank, "", "the cast had failed before a helper was done")
            self.tell(msgspec.structs.replace(value, failure=failure, unshared=why))
        busy_s = time.thread_time() - began_s + part.helper_cpu_s
        cost = Cost(busy_s, part.materialize_s, part.materialize_cpu_s, part.shared_nbytes, part.unshared)
        return result, cost if part.held_s is None else msgspec.structs.replace(cost, held_s=part.held_s)

    def tell(self, message: Value) -> None:
        """Tell this host why there is nothing to share."""
        self._relay.share(message)

    def share_helped(self, of: Cast, message: Value, made: HelpedValue) -> None:
        """Send what a helper made to the others of this host."""
        nbytes, layout = made.nbytes, made.layout
        message = msgspec.structs.replace(
            message, nbytes=nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames
        )
        self._relay.share(message, made.room)
        self._took("share", made.ended_s, of)

    def helped_body(self, made: HelpedValue) -> memoryview:
        """Return what a helper made as this rank's own."""
        return self._relay.own(made.room)[: made.nbytes]

    def encode(self, payload: object) -> tuple[memoryview, Layout]:
        """Put a payload that nobody has sent into a form in which a helper gets it."""
        encoded = self._encode(payload)
        room = laid_out(encoded, self._relay, host=True)
        return room.view[: encoded.nbytes], encoded.layout

    def noted(self, of: Cast, made: HelpedValue) -> None:
        """Note how long a helper took."""
        self._took("materialize", made.ended_s - made.seconds, of, helper=made.helper)

    def share(self, of: Cast, message: Value, value: object) -> tuple[int, str | None, object]:
        """Send what the owner made to the others of its host.

        Returns its bytes, or why it could not be sent, and the owner's value: its own, or what the others get if that
        is less.
        """
        began_s = time.monotonic()
        try:
            encoded = self._encode(value)
            room = laid_out(encoded, self._relay, host=True)
            if encoded.cut:
                value = as_it_arrives(encoded, self.codec)
        except BaseException as exc:  # MemoryError, and whatever a value's own code raises
            unshared = clip(f"rank {self._rank} could not share its value: {describe(exc)}", MAX_REASON)
            self.tell(msgspec.structs.replace(message, unshared=unshared))
            return 0, unshared, value
        nbytes, layout = encoded.nbytes, encoded.layout
        message = msgspec.structs.replace(
            message, nbytes=nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames
        )
        self._relay.share(message, room)
        self._took("share", began_s, of)
        return nbytes, None, value

    def decode(self, of: Cast, body: memoryview, nbytes: int, layout: Layout, *, plain: bool = False) -> Result:
        """Rebuild an object that has arrived. What is `plain` runs nobody's code: see `Codec.is_plain`."""
        began_s = time.monotonic()
        try:
            if body.nbytes != nbytes:
                raise self.short(nbytes)
            if self._readonly:
                body = body.toreadonly()
            value = (self.codec.decode if plain else self._decode)(body, layout)
        except BaseException as exc:
            return self.failed("decode", "what arrived could not be decoded", exc)
        self._took("decode", began_s, of)
        return Result(value)

    def short(self, nbytes: int) -> MemoryError:
        """Return the error for a body that came, and that this rank could not take."""
        return MemoryError(f"{nbytes} bytes could not be allocated: {self._relay.shortage()}")

    def failed(self, kind: Any, what: str, exc: BaseException) -> Result:
        if isinstance(exc, TrustError):
            kind = "untrusted"
        return Result(failure=self._performer.failure(kind, what, exc), cause=exc)

    def materialize(
        self, of: Named, fn: Callable[..., Any], *args: object, watches: bool = False
    ) -> tuple[Result, float, float | None]:
        """Call a stage. Return also how long it took, and, if that was watched, how long it kept the interpreter."""
        watch = Watch() if watches and self._watching is not None and self._watching.due(name_of(fn)) else None
        began_s = time.monotonic()
        if (within := self.within) is not None:
            fn = within(of, fn)
        if watch is None:
            result = self._performer.materialize(fn, *args)
        else:
            with watch:
                result = self._performer.materialize(fn, *args)
        seconds = time.monotonic() - began_s
        self._took("materialize", began_s, of)
        return result, seconds, watch.held_s if watch is not None else None


class _Failed(Exception):
    """Ends a part early."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


class _Part(msgspec.Struct, eq=False):
    """One run."""

    _own_part: OwnPart
    _message: Cast
    _material: Material
    _stages: Stages
    _to_share: Value | None
    told: bool = False
    materialize_s: float = 0.0
    materialize_cpu_s: float = 0.0
    helper_cpu_s: float = 0.0
    held_s: float | None = None
    shared_nbytes: int = 0
    unshared: str | None = None

    def value(self) -> Any:
        """Return what this rank gets. Raises _Failed."""
        if self._message.fingerprint is not None:
            self._check_payload(self._message.fingerprint)
        prepare, finish, helped = self._stages.prepare, self._stages.finish, self._stages.helped
        if prepare is None and finish is None and helped is None:
            return self._payload()
        if prepare is None and helped is None:
            payload, hint = self._payload_and_hint()
        else:
            payload = MISSING
            hint = self._taken() if self._material.shared is not None else MISSING
            if hint is MISSING and helped is not None:
                hint, prepare = self._made_by(helped)
            if hint is MISSING:
                assert prepare is not None
                payload = self._payload()
                hint = self._materialize(prepare, payload)
                if self._to_share is not None and not self.told:
                    hint = self._share(self._to_share, hint)
            if finish is None:
                return hint
            if payload is MISSING:
                payload = self._payload()
        assert finish is not None
        return self._materialize(finish, payload, hint)

    def _check_payload(self, expected: bytes) -> None:
        """Where every rank brings its own payload, make sure that it is the root's."""
        own = self._material.own
        if own is None or own.of_root:
            return
        try:
            if own.payload is MISSING:
                raise TypeError("this rank has passed no payload; with replicated=True every rank passes its own")
            mark = fingerprint(own.payload) if own.mark is None else own.mark
            if isinstance(mark, Exception):
                raise mark
            if mark != expected:
                where = first_difference(own.payload, expected)
                text = "its payload is not the root's; the ranks' calls are out of step, or payloads differ"
                raise ValueError(f"{text}: {where}" if where else text)
        except Exception as exc:
            raise _Failed(self._own_part.failed("mismatch", "a replicated payload was refused", exc)) from exc

    def _taken(self) -> Any:
        """Return what the owner has shared; MISSING if that cannot be used."""
        assert self._material.shared is not None
        value, body = self._material.shared
        if value.unshared is not None:
            return MISSING
        self._material.shared = None
        if value.failure is not None:
            raise _Failed(Result(failure=value.failure))
        result = self._own_part.decode(self._message, body, value.nbytes, Layout(value.stream_nbytes, value.frames))
        if result.failure is None:
            return result.value
        if self._message.placement == HELPERS and not self._own_part.chosen:  # it was made there so that no rank does
            raise _Failed(result)
        self.unshared = result.failure.message[:MAX_REASON]
        return MISSING

    def _made_by(self, helped: Callable[[memoryview, Layout], HelpedValue]) -> tuple[Any, Materializer | None]:
        """Return what helpers make of the payload, once the others of this host have been given it.

        Or MISSING, and what makes it here, once the others know that they are to make it too.
        """
        own_part, message, own = self._own_part, self._message, self._material.own
        try:
            if message.fingerprint is not None:
                assert own is not None
                body, layout = own_part.encode(own.payload)
            else:
                body, layout = self._given_body(), Layout(message.stream_nbytes, message.frames)
            made = helped(body, layout)
        except Unmade as exc:
            if exc.failure is not None and exc.of_helpers and self._stages.instead is not None:
                return self._not_by_helper(body, exc.failure.message)
            raise _Failed(Result(failure=exc.failure, cause=exc.cause)) from None
        except _Failed:
            raise
        except CodeMissing:  # it will be done again
            if message.fingerprint is None:
                self._material.body = body
            raise
        except Exception as exc:  # a payload's own code; what is registered elsewhere, or cannot leave this process
            if self._stages.instead is not None:
                return self._not_by_helper(body, f"a payload could not be given to a helper: {describe(exc)}")
            kind = "decode" if isinstance(exc, LookupError) else "encode"
            raise _Failed(own_part.failed(kind, "a payload could not be given to a helper", exc)) from exc
        finally:
            body = memoryview(b"")
        own_part.noted(message, made)
        self.materialize_s, self.materialize_cpu_s = made.seconds, made.cpu_s
        self.helper_cpu_s = made.cpu_s
        body = own_part.helped_body(made)  # before it is shared: a segment of its own is handed over then
        if self._to_share is not None:
            self.told, self.shared_nbytes = True, made.nbytes
            own_part.share_helped(message, self._to_share, made)
        result = own_part.decode(message, body, made.nbytes, made.layout)
        del body
        if result.failure is not None:
            raise _Failed(result)
        return result.value, None

    def _not_by_helper(self, body: memoryview, why: str) -> tuple[Any, Materializer | None]:
        """A chosen placement does not work out: every rank of this host makes its own. Raises what loading does."""
        assert self._stages.instead is not None
        if self._message.fingerprint is None:
            self._material.body = body
        prepare = self._stages.instead()  # before the others are told: it may be missing, and this be done again
        self.unshared = clip(why, MAX_REASON)
        if self._to_share is not None:
            self.told = True
            self._own_part.tell(msgspec.structs.replace(self._to_share, unshared=self.unshared))
        return MISSING, prepare

    def _given_body(self) -> memoryview:
        """Return the payload as it came, which stays for the second stage, if there is one."""
        body, nbytes = self._material.body, self._message.nbytes
        if body is None:
            raise _Failed(Result())  # the verdict was a failure and came first
        if body.nbytes != nbytes:
            what = "what arrived could not be taken"
            raise _Failed(self._own_part.failed("decode", what, self._own_part.short(nbytes)))
        if self._stages.finish is None:
            self._material.body = None
        return body

    def _decoded_body(self) -> Any:
        message, body = self._message, self._material.body
        self._material.body = None
        if body is None:
            raise _Failed(Result())  # the verdict was a failure and came first
        result = self._own_part.decode(message, body, message.nbytes, Layout(message.stream_nbytes, message.frames))
        if result.failure is not None:
            raise _Failed(result)
        return result.value

    def _payload(self) -> Any:
        """Return the payload, or the value where it is what was sent."""
        own, message = self._material.own, self._message
        if own is None or (not own.of_root and message.stream_nbytes):
            return self._decoded_body()
        return own.payload

    def _payload_and_hint(self) -> tuple[Any, Any]:
        """Return what the root has prepared."""
        own = self._material.own
        if own is None:
            payload, hint = self._decoded_body()
            return payload, hint
        if own.hint is not MISSING:
            return own.payload, own.hint
        return own.payload, self._decoded_body()

    def _materialize(self, fn: Callable[..., Any], *args: object) -> Any:
        cpu_s = time.thread_time()
        result, seconds, held_s = self._own_part.materialize(self._message, fn, *args, watches=True)
        self.materialize_cpu_s += time.thread_time() - cpu_s
        self.materialize_s += seconds
        if held_s is not None:
            self.held_s = (self.held_s or 0.0) + held_s
        if result.failure is not None:
            raise _Failed(result)
        return result.value

    def _share(self, message: Value, value: object) -> object:
        self.told = True
        self.shared_nbytes, self.unshared, value = self._own_part.share(self._message, message, value)
        return value

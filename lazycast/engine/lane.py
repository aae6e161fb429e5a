"""What every rank does with a cast: perform its part, report, obey the verdict, and learn of those who are gone.

Guarantees:

* Receivers always listen: messages are handled on the link's threads as they come, whether or not anybody asks.
* User code runs on workers; only small payloads without a materializer are unpickled where they arrive.
* A rank that has been told of a cast always reports on it, unless it closes or dies.
* After `close` has returned nothing of the lane is left but the values it handed out.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from dataclasses import dataclass, field

from lazycast import codec
from lazycast.backend import Context
from lazycast.codec import Layout
from lazycast.engine.desk import Ask, Desk
from lazycast.engine.performer import Group, Result
from lazycast.fanout.mesh import Mesh
from lazycast.materializers import CodeMissing, Loader, Materializer
from lazycast.options import Options
from lazycast.relay import Relay
from lazycast.topology import Topology
from lazycast.wire import AnyMessage, Cast, Failure, Gone, Need, Report, Verdict

logger = logging.getLogger("lazycast")

#: A pickle stream up to this size, of builtin types and arrays and without a materializer, is decoded where it arrives:
#: a worker would cost more. Anything else may run user code, or import a library, while other messages wait.
INLINE_NBYTES = 64 << 10

SPENT = Result()  # stands for a value that has been handed over: the future alone keeps it alive


@dataclass(eq=False)
class Arrival:
    """One cast as this rank sees it."""

    message: Cast
    body: memoryview | None
    ask: Ask | None = None
    begun: bool = False
    local: Result | None = None  # this rank's own part is done
    final: Result | None = None
    told_read: bool = False
    reported_s: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether anybody here may still want the value."""
        return self.ask is None or not self.ask.taken


@dataclass
class _End:
    """Why nothing more can come, once that is so."""

    failure: Failure | None = None
    gone: dict[int, Gone] = field(default_factory=dict)  # by rank


class Lane(Desk):
    """The engine of one object on one rank of a group of at least two."""

    def __init__(self, group: Group, options: Options, context: Context, topology: Topology, mesh: Mesh | None) -> None:
        super().__init__(group, options)
        self._context = context
        self._topology = topology
        self._relay = Relay(topology, self, mesh)
        self._loader = Loader()
        self._agreeing: dict[int, Arrival] = {}  # by seq: casts whose verdict has not come
        self._parked: dict[str, list[Arrival]] = {}  # by materializer: casts that wait for its code
        self._end = _End()

    def start(self, *, timeout_s: float) -> None:
        """Connect and begin. Collective."""
        self._relay.connect(self._context, timeout_s=timeout_s, name=self._options.name)
        self._clock.start()

    # This rank's part of a cast

    def _decode(self, arrival: Arrival) -> Result:
        message = arrival.message
        began_s = time.monotonic()
        with self._lock:
            body, arrival.body = arrival.body, None  # from here on the object alone keeps its memory alive
        if body is None:
            return Result()  # the verdict was a failure and came first
        try:
            if body.nbytes != message.nbytes:
                raise MemoryError(f"{message.nbytes} bytes could not be allocated")
            if self._options.values == "readonly":
                body = body.toreadonly()
            value = codec.decode(body, Layout(message.stream_nbytes, message.frames))
        except BaseException as exc:
            return Result(
                failure=self._performer.failure("decode", "what arrived could not be decoded", exc), cause=exc
            )
        with self._lock:
            self._counters.took("decode", time.monotonic() - began_s)
        return Result(value)

    def _begin(self, arrival: Arrival) -> None:
        """Start this rank's part of a cast that has arrived, once."""
        with self._lock:
            if arrival.begun:
                return
            arrival.begun = True
        self._performer.run(
            lambda: self._part(arrival), lambda result: self._part_done(arrival, result), here=self._is_quick(arrival)
        )

    @staticmethod
    def _is_quick(arrival: Arrival) -> bool:
        """Whether a cast is decoded at once where it has arrived: arrays of any size are only looked at, not copied."""
        message, body = arrival.message, arrival.body
        if message.ref is not None or message.stream_nbytes > INLINE_NBYTES:
            return False
        return not body or codec.is_plain(body, Layout(message.stream_nbytes, message.frames))

    def _part(self, arrival: Arrival) -> Result:
        ref = arrival.message.ref
        if not arrival.wanted:  # nobody here will look at it: nothing to object
            return Result()
        if ref is None:
            return self._decode(arrival)
        try:
            fn = self._loader.load(ref)
        except CodeMissing as exc:
            return Result(cause=exc)
        except BaseException as exc:
            what = f"materializer {ref.name!r} could not be loaded"
            return Result(failure=self._performer.failure("decode", what, exc), cause=exc)
        decoded = self._decode(arrival)
        return decoded if decoded.failure is not None else self._materialize(fn, decoded.value)

    def _materialize(self, fn: Materializer, payload: object) -> Result:
        began_s = time.monotonic()
        result = self._performer.materialize(fn, payload)
        with self._lock:
            self._counters.took("materialize", time.monotonic() - began_s)
        return result

    def _part_done(self, arrival: Arrival, result: Result) -> None:
        if isinstance(result.cause, CodeMissing):
            self._park(arrival)
        else:
            self._local_done(arrival, result)

    def _park(self, arrival: Arrival) -> None:
        """The code of this cast's materializer is not here: ask for it, and go on when it comes."""
        ref = arrival.message.ref
        assert ref is not None
        with self._lock:
            end = self._end.failure
            waiting = self._parked.setdefault(ref.ident, [])
            if end is None:
                waiting.append(arrival)
            first = len(waiting) == 1
            arrival.begun = False
        if end is not None:
            self._conclude(arrival, Result(failure=end))
        elif first:
            self._relay.up(Need(self._group.rank, ref.ident))

    def _local_done(self, arrival: Arrival, result: Result) -> None:
        """This rank's part is done: report it, or settle if nobody waits for reports."""
        message = arrival.message
        if not message.agree:
            self._conclude(arrival, result)
            return
        with self._lock:
            arrival.local = result
            arrival.reported_s = time.monotonic()
            read = arrival.ask is not None
            arrival.told_read |= read
        self._relay.up(Report(self._group.rank, message.seq, read, result.failure))

    def _on_verdict(self, verdict: Verdict) -> None:
        with self._lock:
            arrival = self._agreeing.pop(verdict.seq, None)
            if arrival is None:
                return
            local = arrival.local
            if local is not None:
                self._counters.took("agree", time.monotonic() - arrival.reported_s)
        if verdict.failure is None:
            assert local is not None, "the root has all reports, so also ours"
            self._conclude(arrival, local)
        else:
            mine = local is not None and local.failure is not None and verdict.failure.rank == self._group.rank
            self._conclude(arrival, Result(failure=verdict.failure, cause=local.cause if local and mine else None))

    def _conclude(self, arrival: Arrival, result: Result) -> None:
        with self._lock:
            if arrival.final is not None:
                return
            arrival.local = arrival.body = None
            ask = arrival.ask
            # Once it is handed over, the future alone keeps a value alive.
            arrival.final = result if ask is None else SPENT
        if ask is not None:
            self._settle(ask, result)

    # Messages

    @abstractmethod
    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        """Take a message from the relay."""

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        host = self._group.hosts[peer]
        if reason is None:
            failure = Failure("closed", peer, host, f"rank {peer} ({host}) has closed its object")
        else:
            failure = Failure("lost", peer, host, f"rank {peer} ({host}) was lost: {reason}")
        # All ranks of a host hear of its ends by themselves. Only those whose messages come by way of this rank are
        # passed on from here: by another way the news could overtake a report that the rank has sent.
        topology = self._topology
        self._on_gone(Gone(peer, failure), flood=peer == topology.parent or peer in topology.children)

    def _on_gone(self, message: Gone, *, flood: bool = True) -> None:
        with self._lock:
            if message.rank in self._end.gone:
                return
            self._end.gone[message.rank] = message
        if flood:
            self._relay.flood(message)
        if message.failure.kind == "lost":
            logger.warning("lazycast %r: %s", self._options.name, message.failure.message)
        self._handle_gone(message)

    @abstractmethod
    def _handle_gone(self, message: Gone) -> None:
        """React to the news that a rank closed or was lost."""

    def _end_with(self, failure: Failure) -> None:
        """Nothing more can come: fail what depends on it, and, after a loss, all that is not done."""
        with self._lock:
            if self._end.failure is None:
                self._end.failure = failure
            asks = self._waits.waiting()
            parked = [arrival for waiting in self._parked.values() for arrival in waiting]
            if failure.kind == "closed":  # what has arrived and needs nobody's word still gets done
                asks = [ask for ask in asks if ask.arrival is None or ask.arrival.message.agree]
            self._agreeing.clear()
            self._parked.clear()
            self._changed.notify_all()
        for arrival in parked:  # the code they wait for will not come
            self._conclude(arrival, Result(failure=failure))
        for ask in asks:
            self._settle(ask, Result(failure=failure))

    # The end

    def _engine_failed(self, exc: Exception) -> None:
        self._on_gone(Gone(self._group.rank, self._performer.failure("lost", "the engine failed", exc)))

    def _disconnect(self, timeout_s: float) -> None:
        rank = self._group.rank
        host = self._group.hosts[rank]
        # Others may hear of our end before they notice the loss that brought it about: tell them that first.
        with self._lock:
            losses = [gone for gone in self._end.gone.values() if gone.failure.kind == "lost"]
        for loss in losses:
            self._relay.flood(loss)
        self._relay.flood(Gone(rank, Failure("closed", rank, host, f"rank {rank} ({host}) has closed its object")))
        self._relay.close(timeout_s=timeout_s)
        self._context.close()

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        self._relay.close_after_fork()

    def _hosts(self) -> tuple[tuple[int, ...], ...]:
        return self._topology.hosts

    def _shared(self) -> tuple[int, int]:
        return self._relay.in_use()

    def _nbytes(self) -> tuple[int, int]:
        return self._relay.nbytes_sent, self._relay.nbytes_received

    def _dump_lines(self) -> list[str]:
        end = self._end.failure
        return [] if end is None else [f"  ended: {end.message}"]

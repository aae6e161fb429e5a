"""What can be seen of one rank: names of its calls, counts, traces, and the whole state as text.

Guarantees:

* What is said of a call is looked up when it is said, under the lock.
* Nothing here sends or settles anything.
* A dump never blocks for long, whatever the thread that asks for it has interrupted.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from lazycast.core import failures
from lazycast.core.ask import Ask
from lazycast.core.dump import Row, layout, named, seen, trying, written
from lazycast.core.engine import Engine
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.memo.store import Store
from lazycast.core.performer import Group, Result
from lazycast.core.situation import Situation
from lazycast.core.waits import Waits
from lazycast.errors import ClosedError, LazycastError
from lazycast.materialize.placement.chooser import Standing
from lazycast.net.wire import Key
from lazycast.options import Options
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.tracing.tracer import Named, Tracer


def _prefixed(prefix: str, row: Row) -> Row:
    return f"{prefix}{row}" if isinstance(row, str) else lambda: f"{prefix}{row()}"


class Records(ABC):
    """See the module's text. Whoever derives from it changes the state."""

    def __init__(self, group: Group, options: Options, engine: Engine | None = None) -> None:
        self.engine = engine = Engine(group, options) if engine is None else engine
        self._group = group
        self._options = options
        self._lock = engine.lock
        self._counters = engine.counters
        self.notices = engine.notices
        self._performer = engine.performer
        self._callbacks = engine.callbacks
        self._clock = engine.clock
        self._store: Store | None = None  # where values are remembered
        self._waits: Waits[Ask] = Waits()

    def refuse_after_fork(self) -> None:
        """Raise in a forked child. Without the lock, which another thread may have held at the fork."""
        if self.engine.forked:
            raise ClosedError(f"lazycast {self._options.name!r} belongs to the parent of this forked process")

    @property
    def closed(self) -> bool:
        return self.engine.closed.is_set()

    @property
    def lanes(self) -> list[Records]:
        """All lanes of the object, of which this is one; by root where every rank is one."""
        return cast("list[Records]", self.engine.lanes)

    @property
    def own(self) -> Records:
        """The lane of this rank's own casts, if it makes any."""
        return self if len(self.lanes) == 1 else self.lanes[self._group.rank]

    # Naming things

    def _label(self, key: Key | None, seq: int | None, nth: int | None = None, operation: str = "cast") -> str:
        which = f" #{seq}" if seq is not None else ""
        if key is not None:
            which += f" key {key!r}"
        elif nth is not None:
            which += f" (unkeyed call number {nth} here)"
        rank, size, root = self._group[:3]
        return f"lazycast {self._options.name!r}: {operation}{which} on rank {rank} of {size}, root {root}"

    def _seq_of(self, ask: Ask) -> int | None:
        return ask.arrival.message.seq if ask.arrival is not None else None

    def _ask_label(self, ask: Ask) -> str:
        return self._label(ask.key, self._seq_of(ask), ask.nth, ask.operation)

    def _explain(self, ask: Ask, exc: LazycastError, situation: Situation) -> LazycastError:
        """Note on an error what became of which call."""
        age_s = time.monotonic() - ask.since_s
        return situation.explain(exc, operation=ask.operation, key=ask.key, seq=self._seq_of(ask), age_s=age_s)

    def _exception(self, ask: Ask, result: Result) -> LazycastError:
        failure = result.failure
        assert failure is not None
        situation, more = Situation.of(failure), ""
        if failure.kind in ("lost", "closed"):
            situation = self._situation(ask)
            more = f"; this call had waited {time.monotonic() - ask.since_s:.1f} s"
        label, rank = self._ask_label(ask), self._group.rank
        exc = failures.to_exception(failure, label=label, rank=rank, cause=result.cause, more=more)
        return self._explain(ask, exc, situation)

    def _situation(self, ask: Ask) -> Situation:
        """Say in which phase an ask is, and for whom it waits. Without the lock."""
        with self._lock:
            situation = self._look(ask)
        return self._worded(situation)

    @abstractmethod
    def _look(self, ask: Ask) -> Situation:
        """The same with the lock held, and no words yet for those who are silent."""

    def _worded(self, situation: Situation) -> Situation:
        """Put into words who is silent, and why. Without the lock: it may ask the kernel."""
        return situation

    # Counting

    def _took(self, what: str, began_s: float, of: Named, *, helper: int | None = None) -> None:
        """Count how long something took, of this cast, that ends now; and who did it, if that was no rank."""
        ended_s = time.monotonic()
        with self._lock:
            self._counters.noted.append((what, ended_s - began_s))
        if (tracer := self.engine.tracer) is not None:
            if helper is None:
                tracer.took(what, began_s, ended_s, of)
            else:
                tracer.took(what, began_s, ended_s, of, track=f"helper {helper}")
        if (spans := self.engine.spans) is not None:
            spans.took(what, began_s, ended_s, of)

    def _count(self, what: str, began_s: float, ended_s: float, of: Named) -> None:
        """With the lock held: count how long something took."""
        self._counters.noted.append((what, ended_s - began_s))
        tracer = self.engine.tracer
        if tracer is not None:
            tracer.took(what, began_s, ended_s, of)

    def _named(self, ask: Ask) -> Named | None:
        """With the lock held: say which cast an ask is for, if that is known."""
        return ask.arrival.message if ask.arrival is not None else None

    def _trace_end(self, tracer: Tracer, ask: Ask, exc: LazycastError | None) -> None:
        """With the lock held: note how a call ends."""
        of = self._named(ask)
        tracer.took("total", ask.since_s, time.monotonic(), of, call=ask.number)
        if exc is not None:
            tracer.happened("failed", of, call=ask.number, error=type(exc).__name__, text=str(exc))

    def trace(self, folder: Path) -> Tracer:
        """Begin to write what happens here to a new file in `folder`."""
        self.refuse_after_fork()
        rank, size, root, hosts = self._group[:4]
        about: dict[str, Any] = {"object": self._group.ident, "name": self._options.name, "rank": rank, "size": size}
        about |= {"root": root, "roots": "one"} if len(self.lanes) == 1 else {"root": 0, "roots": "any"}
        about |= {"host": hosts[rank], "clock": self._group.clock_of(rank), "hosts": self._hosts()}
        return self.engine.trace(folder, about)

    # Looking

    def stats(self) -> Stats:
        self.refuse_after_fork()
        with Uninterrupted():
            return self._stats()

    def _stats(self) -> Stats:
        lanes, own, maker = self.lanes, self.own, self.engine.maker
        shared_slots, shared_nbytes, arena_nbytes = own._shared()
        placement, reason = own._placement()
        values, values_nbytes, hits = map(sum, zip(*(lane._remembered() for lane in lanes), strict=True))
        ready, busy, lost = maker.pool.figures() if maker is not None else (0, 0, 0)
        with self._lock:
            counters, now_s = self._counters, time.monotonic()
            loaded = [lane._materializers() for lane in lanes]
            nbytes_sent, nbytes_received, nbytes_from_host = self._all_nbytes()
            return Stats(
                name=self._options.name,
                rank=self._group.rank,
                size=self._group.size,
                root=own._group.root,
                age_s=now_s - counters.since_s,
                qps=counters.qps(now_s),
                placement=placement,
                placement_reason=reason,
                placements=dict(counters.placements),
                standings=own._standings(),
                casts=counters.casts,
                asked=counters.asked,
                pending=sum(len(lane._waits) for lane in lanes),
                unasked=sum(lane._unasked() for lane in lanes),
                resolved=counters.resolved,
                cancelled=counters.cancelled,
                aborted=counters.aborted,
                lost=counters.lost,
                blocking=counters.blocking,
                materializer_hits=sum(found for found, _ in loaded),
                materializer_loads=sum(loads for _, loads in loaded),
                unshared=counters.unshared,
                unshared_reason=counters.unshared_reason,
                failed=dict(counters.failed),
                nbytes_sent=nbytes_sent,
                nbytes_received=nbytes_received,
                nbytes_from_host=nbytes_from_host,
                hosts=own._hosts(),
                shared_slots=shared_slots,
                shared_nbytes=shared_nbytes,
                arena_nbytes=arena_nbytes,
                memo_hits=hits,
                memo_values=values,
                memo_nbytes=values_nbytes,
                helpers=ready,
                helpers_busy=busy,
                helpers_lost=lost,
                **{phase: counters.timing(phase) for phase in PHASES},
            )

    def group_stats(self) -> GroupStats:
        mine = self.stats()
        with Uninterrupted(), self._lock:
            return self._group_stats(mine)

    def _group_stats(self, mine: Stats) -> GroupStats:
        """With the lock held: what is known of all ranks."""
        rank, size, root = self._group[:3]
        if rank != root:
            raise ValueError(f"only the root, rank {root}, knows of the group; this is rank {rank}, which has stats()")
        return GroupStats(self._options.name, size, root, {rank: mine}, {rank: 0.0})

    def _placement(self) -> tuple[str, str]:
        """How the last cast was placed, and why."""
        return self._options.placement, "asked for"

    def _standings(self) -> tuple[Standing, ...]:
        """With the lock held: how each kind of cast is placed now, where that is chosen."""
        return ()

    def _materializers(self) -> tuple[int, int]:
        """How often a materializer was loaded already, and how often it had to be."""
        return 0, 0

    def _unasked(self) -> int:
        """With the lock held: casts that nobody here has asked for."""
        return 0

    def dump(self) -> str:
        self.refuse_after_fork()
        rank, size, root, hosts = self._group[:4]
        roots = f"root {root}" if len(self.lanes) == 1 else "every rank a root"
        title = f"lazycast {self._options.name!r}: rank {rank} of {size} on {hosts[rank]}, {roots}"
        with Uninterrupted(), trying(self._lock) as held:
            looks = [(name, seen(look)) for name, look in self._dump_sections().items()]
        return layout(title, [(name, rows if rows is None else written(rows)) for name, rows in looks], held=held)

    def _dump_sections(self) -> dict[str, Callable[[], Sequence[Row] | None]]:
        more: dict[str, Callable[[], Sequence[Row] | None]] = {}
        if self.engine.maker is not None:
            more["helpers"] = self.engine.maker.pool.lines
        if self._store is not None:
            more["memo"] = lambda: self._of_all(lambda lane: lane._dump_memo())
        return {
            "state": self._dump_state,
            "calls that wait": lambda: self._of_all(lambda lane: [lane._dump_ask(a) for a in lane._waits.waiting()]),
            "queue": lambda: self._of_all(lambda lane: lane._dump_queue()),
            "books": lambda: self._of_all(lambda lane: lane._dump_books()),
            "mailbox": lambda: self._of_all(lambda lane: lane._dump_mailbox()),
            "under way": lambda: self._of_all(lambda lane: lane._dump_casts()),
            "shared memory": self._dump_leases,
            "links": self._dump_links,
            **more,
            "threads": lambda: [self._clock.state(), *self._performer.state(), self._callbacks.state()],
            "counters": lambda: [self._counters.text()],
            "bytes": lambda: [
                "sent to other hosts {}, received {}, {} of it from this host".format(*self._all_nbytes())
            ],
        }

    def _of_all(self, look: Callable[[Records], Sequence[Row]]) -> list[Row]:
        """What is seen in all lanes; with several, each row says which root's casts it is about."""
        lanes = self.lanes
        if len(lanes) == 1:
            return list(look(lanes[0]))
        return [_prefixed(f"root {lane._group.root}: ", row) for lane in lanes for row in look(lane)]

    def _remembered(self) -> tuple[int, int, int]:
        """Values that are remembered, their bytes, and how often one was had again."""
        return self._store.figures() if self._store is not None else (0, 0, 0)

    def _dump_memo(self) -> list[str]:
        """What is remembered."""
        return [self._store.line()] if self._store is not None else []

    def _dump_state(self) -> list[Row]:
        state = "closed" if self.engine.closed.is_set() else "closing" if self.engine.closing else "open"
        placement = "placement {} ({})".format(*self._placement())
        ended = self._of_all(lambda lane: [f"ended: {why}"] if (why := lane._dump_ended()) is not None else [])
        return [state, placement, *ended]

    def _dump_ask(self, ask: Ask) -> Row:
        seq = self._seq_of(ask)
        which = named(ask.key) or f" (number {ask.nth} without a key)"
        waited = f"waiting {time.monotonic() - ask.since_s:.3f} s of {ask.timeout_s:g} s"
        said, situation = f"{ask.operation}{'' if seq is None else f' #{seq}'}{which}: {waited}", self._look(ask)
        return lambda: f"{said}: {self._worded(situation).text()}"

    # What there is to see, in lines. With the lock held if it can be had: nothing here takes it, changes anything, or
    # goes through a container that may change meanwhile.

    def _dump_ended(self) -> str | None:
        """Why nothing more can come, once that is so."""
        return None

    def _dump_queue(self) -> list[str]:
        """Calls that have not been sent."""
        return []

    def _dump_books(self) -> list[str]:
        """What the other ranks have not read, or reported."""
        return []

    def _dump_mailbox(self) -> list[str]:
        """Casts and calls that have not met."""
        return []

    def _dump_casts(self) -> list[str]:
        """What is under way here, beside what somebody has asked for."""
        return []

    def _dump_leases(self) -> list[str] | None:
        """Who holds what of this rank's shared memory; None if that cannot be told just now."""
        return []

    def _dump_links(self) -> list[str]:
        """Who was heard when, and what waits to be sent."""
        return []

    def _hosts(self) -> tuple[tuple[int, ...], ...]:
        return ((self._group.rank,),)

    def _shared(self) -> tuple[int, int, int]:
        """Slots and bytes of this rank's shared memory that somebody holds, and all that it has taken."""
        return 0, 0, 0

    def _all_nbytes(self) -> tuple[int, int, int]:
        """The same of all lanes."""
        sent, received, from_host = zip(*(lane._nbytes() for lane in self.lanes), strict=True)
        return sum(sent), sum(received), sum(from_host)

    def _nbytes(self) -> tuple[int, int, int]:
        """Bytes sent to other hosts, received from anybody, and received from this host."""
        return 0, 0, 0

"""What can be seen of an object on one rank: counts, traces, and the whole state as text.

Guarantees:

* Nothing here sends or settles anything.
* A dump never blocks for long, whatever the thread that asks for it has interrupted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazycast.core.dump import Row, layout, seen, trying, written
from lazycast.core.interrupts import Uninterrupted
from lazycast.errors import ClosedError
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.tracing.tracer import Tracer

if TYPE_CHECKING:
    from lazycast.core.engine import Engine
    from lazycast.core.seen import Rows


def _prefixed(prefix: str, row: Row) -> Row:
    return f"{prefix}{row}" if isinstance(row, str) else lambda: f"{prefix}{row()}"


def _ended(rows: Rows) -> list[Row]:
    return [f"ended: {rows.ended}"] if rows.ended is not None else []


class Looks:
    """See the module's text. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # Counts

    def stats(self) -> Stats:
        """Return what has been counted here."""
        self._engine.refuse_after_fork()
        with Uninterrupted():
            return self._stats()

    def _stats(self) -> Stats:
        engine, counters = self._engine, self._engine.counters
        lanes, own, maker = engine.lanes, engine.own, engine.maker
        looks = [lane.seen() for lane in lanes]
        mine = looks[lanes.index(own)]
        shared_slots, shared_nbytes, arena_nbytes = mine.shared
        placement, reason = mine.placement
        values, values_nbytes, hits, saved_s = map(sum, zip(*(look.remembered for look in looks), strict=True))
        ready, busy, lost = maker.pool.figures() if maker is not None else (0, 0, 0)
        with engine.lock:
            now_s = time.monotonic()
            counts = [lane.counted() for lane in lanes]
            nbytes_sent, nbytes_received, nbytes_from_host = map(sum, zip(*(c.nbytes for c in counts), strict=True))
            return Stats(
                name=engine.name,
                rank=engine.rank,
                size=engine.group.size,
                root=own.asks.root,
                age_s=now_s - counters.since_s,
                qps=counters.qps(now_s),
                placement=placement,
                placement_reason=reason,
                placements=dict(counters.placements),
                standings=counts[lanes.index(own)].standings,
                casts=counters.casts,
                asked=counters.asked,
                pending=sum(len(lane.asks.waits) for lane in lanes),
                unasked=sum(count.unasked for count in counts),
                resolved=counters.resolved,
                cancelled=counters.cancelled,
                aborted=counters.aborted,
                lost=counters.lost,
                blocking=counters.blocking,
                materializer_hits=sum(count.loaded[0] for count in counts),
                materializer_loads=sum(count.loaded[1] for count in counts),
                unshared=counters.unshared,
                unshared_reason=counters.unshared_reason,
                failed=dict(counters.failed),
                nbytes_sent=nbytes_sent,
                nbytes_received=nbytes_received,
                nbytes_from_host=nbytes_from_host,
                hosts=mine.hosts,
                shared_slots=shared_slots,
                shared_nbytes=shared_nbytes,
                arena_nbytes=arena_nbytes,
                memo_hits=hits,
                memo_saved_s=saved_s,
                memo_values=values,
                memo_nbytes=values_nbytes,
                helpers=ready,
                helpers_busy=busy,
                helpers_lost=lost,
                **{phase: counters.timing(phase) for phase in PHASES},
            )

    def group_stats(self) -> GroupStats:
        """Return what is known of all ranks.

        Raises: ValueError on a rank that is no root.
        """
        engine, mine = self._engine, self.stats()
        rank, size, root = engine.group[:3]
        with Uninterrupted(), engine.lock:
            if rank != root:
                raise ValueError(
                    f"only the root, rank {root}, knows of the group; this is rank {rank}, which has stats()"
                )
            group = engine.own.counted().group
            return GroupStats(engine.name, size, root, {rank: mine}, {rank: 0.0}) if group is None else group(mine)

    # Traces

    def trace(self, folder: Path) -> Tracer:
        """Begin to write what happens here to a new file in `folder`.

        Raises: ValueError if that is done already, ClosedError once the object is closed.
        """
        engine = self._engine
        engine.refuse_after_fork()
        group, (rank, size, root, hosts) = engine.group, engine.group[:4]
        about: dict[str, Any] = {"object": group.ident, "name": engine.name, "rank": rank, "size": size}
        about |= {"root": root, "roots": "one"} if len(engine.lanes) == 1 else {"root": 0, "roots": "any"}
        about |= {"host": hosts[rank], "clock": group.clock_of(rank), "hosts": engine.own.seen().hosts}
        tracer = Tracer(folder, about, self._forget)
        with Uninterrupted(), engine.lock:
            earlier, ended = engine.tracer, engine.closing
            if earlier is None and not ended:
                engine.tracer = tracer
                return tracer
        tracer.stop()
        tracer.path.unlink()
        if earlier is not None:
            raise ValueError(f"lazycast {engine.name!r} is being traced to {earlier.path}; stop that first")
        raise ClosedError(f"lazycast {engine.name!r} is closed on this rank", rank=rank)

    def _forget(self, tracer: Tracer) -> None:
        if self._engine.tracer is tracer:
            self._engine.tracer = None

    # The state as text

    def dump(self) -> str:
        """Return the state as text."""
        engine = self._engine
        engine.refuse_after_fork()
        rank, size, root, hosts = engine.group[:4]
        roots = f"root {root}" if len(engine.lanes) == 1 else "every rank a root"
        title = f"lazycast {engine.name!r}: rank {rank} of {size} on {hosts[rank]}, {roots}"
        with Uninterrupted(), trying(engine.lock) as held:
            rows = [lane.rows() for lane in engine.lanes]
            looks = [(name, seen(look)) for name, look in self._sections(rows).items()]
        return layout(title, [(name, rows if rows is None else written(rows)) for name, rows in looks], held=held)

    def _sections(self, rows: list[Rows]) -> dict[str, Callable[[], Sequence[Row] | None]]:
        engine = self._engine
        own = rows[engine.lanes.index(engine.own)]
        books = [lane.asks for lane in engine.lanes]
        more: dict[str, Callable[[], Sequence[Row] | None]] = {}
        if engine.maker is not None:
            more["helpers"] = engine.maker.pool.lines
        if own.memo is not None:
            more["memo"] = lambda: self._of_all([one.memo for one in rows if one.memo is not None])
        return {
            "state": lambda: self._state(rows, own),
            "calls that wait": lambda: self._of_all([asks.rows for asks in books]),
            "queue": lambda: self._of_all([one.queue for one in rows]),
            "books": lambda: self._of_all([one.books for one in rows]),
            "mailbox": lambda: self._of_all([one.mailbox for one in rows]),
            "under way": lambda: self._of_all([one.casts for one in rows]),
            "shared memory": own.leases,
            "links": own.links,
            **more,
            "threads": lambda: [engine.thread.state(), *engine.performer.state(), engine.callbacks.state()],
            "counters": lambda: [engine.counters.text()],
            "bytes": lambda: [
                "sent to other hosts {}, received {}, {} of it from this host".format(
                    *map(sum, zip(*(one.nbytes for one in rows), strict=True))
                )
            ],
        }

    def _of_all(self, looks: Sequence[Callable[[], Sequence[Row]]]) -> list[Row]:
        """What is seen in all lanes; with several, each row says which root's casts it is about."""
        if len(looks) == 1:
            return list(looks[0]())
        roots = [lane.asks.root for lane in self._engine.lanes]
        return [_prefixed(f"root {root}: ", row) for root, look in zip(roots, looks, strict=True) for row in look()]

    def _state(self, rows: list[Rows], own: Rows) -> list[Row]:
        engine = self._engine
        state = "closed" if engine.closed.is_set() else "closing" if engine.closing else "open"
        placement = "placement {} ({})".format(*own.placement)
        ended = self._of_all([functools.partial(_ended, one) for one in rows])
        return [state, placement, *ended]

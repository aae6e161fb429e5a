"""What ranks tell the root they have counted: from `Stats` to a message, and from messages to `GroupStats`."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from lazycast.net.wire import Figures, Spread
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.timing import restored, trimmed

_KNOWN = {"rank", "size", "root"}
_COUNTS = tuple(field.name for field in fields(Stats) if field.type == "int" and field.name not in _KNOWN)
_MAX_ERRORS = 50  # classes
_NOTHING = Spread(0.0, 0.0, 0, [])


def of(stats: Stats) -> Figures:
    """Put what a rank has counted into a message, which stays far below the limit of a header."""
    timings = {}
    for phase in PHASES:
        timing = getattr(stats, phase)
        if timing.count:
            timings[phase] = Spread(timing.total_s, timing.max_s, *trimmed(timing))
    return Figures(
        stats.rank,
        stats.age_s,
        stats.qps,
        {name: getattr(stats, name) for name in _COUNTS},
        stats.placements,
        dict(list(stats.failed.items())[:_MAX_ERRORS]),
        timings,
        stats.memo_saved_s,
        stats.unshared_reason,
    )


class Reported:
    """What the ranks have told the root last. Guarded by the lane's lock."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, Figures]] = {}

    def note(self, message: Figures) -> None:
        """Keep a rank's word instead of the one before."""
        self._last[message.rank] = time.monotonic(), message

    def group(self, root: Stats) -> GroupStats:
        """Put them beside what the root has counted itself."""
        now_s = time.monotonic()
        ranks, age_s = {root.rank: root}, {root.rank: 0.0}
        for rank, (heard_s, said) in sorted(self._last.items()):
            ranks[rank] = _stats(said, root)
            age_s[rank] = now_s - heard_s
        return GroupStats(root.name, root.size, root.root, dict(sorted(ranks.items())), age_s)


def _stats(said: Figures, root: Stats) -> Stats:
    spreads = {phase: said.timings.get(phase, _NOTHING) for phase in PHASES}
    timings: dict[str, Any] = {phase: restored(s.total_s, s.max_s, s.first, s.counts) for phase, s in spreads.items()}
    counts: dict[str, Any] = {name: said.counts.get(name, 0) for name in _COUNTS}
    return Stats(
        name=root.name,
        rank=said.rank,
        size=root.size,
        root=root.root,
        age_s=said.age_s,
        qps=said.qps,
        placement=root.placement,
        placement_reason=root.placement_reason,
        placements=said.placements,
        standings=(),
        failed=said.failed,
        unshared_reason=said.unshared_reason,
        memo_saved_s=said.memo_saved_s,
        hosts=root.hosts,
        **counts,
        **timings,
    )

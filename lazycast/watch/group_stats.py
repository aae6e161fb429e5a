"""What all ranks of an object have counted, as the root knows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lazycast.materialize.placement.chooser import duration
from lazycast.watch.stats import PHASES, Stats, nbytes_text
from lazycast.watch.timing import Timing, merged


@dataclass(frozen=True)
class GroupStats:
    """What `LazyBroadcast.stats(group=True)` returns on the root: the last word of every rank. `str()` is a table.

    A rank tells the root what it has counted two seconds after a cast has arrived there, and again as long as casts
    come, and once more when it closes (which reaches the root if the ranks on the way are there still). So what is here
    may be older than what the ranks would say now; nobody is asked and nobody waits.

    Attributes:
        name, size, root: of the object.
        ranks: by rank, in order, those that have been heard of: the root always. `placement`, `placement_reason` and
            `hosts` are the root's for all of them.
        age_s: by rank: how long ago it said so (seconds); what is older than a few seconds saw no cast since, or is
            from a rank that has closed or was lost.
    """

    name: str
    size: int
    root: int
    ranks: dict[int, Stats]
    age_s: dict[int, float]

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    @property
    def unheard(self) -> tuple[int, ...]:
        """The ranks that have said nothing yet."""
        return tuple(rank for rank in range(self.size) if rank not in self.ranks)

    @property
    def qps(self) -> float:
        """Calls that got a value per second on the slowest rank heard of: what the group gets done."""
        return min(stats.qps for stats in self.ranks.values())

    @property
    def nbytes_sent(self) -> int:
        """Bytes sent between hosts, relaying included."""
        return sum(stats.nbytes_sent for stats in self.ranks.values())

    @property
    def nbytes_received(self) -> int:
        """Bytes received by all ranks."""
        return sum(stats.nbytes_received for stats in self.ranks.values())

    @property
    def nbytes_from_host(self) -> int:
        """Of these, bytes that ranks have received from others of their host."""
        return sum(stats.nbytes_from_host for stats in self.ranks.values())

    @property
    def failed(self) -> dict[str, int]:
        """Calls that failed, by class of error: a cast that fails everywhere counts once for each rank."""
        found: dict[str, int] = {}
        for stats in self.ranks.values():
            for name, count in stats.failed.items():
                found[name] = found.get(name, 0) + count
        return found

    def timing(self, phase: str) -> Timing:
        """Return how long a phase took on all ranks together. Raises ValueError if there is no such phase."""
        if phase not in PHASES:
            raise ValueError(f"no phase {phase!r}; there are {', '.join(PHASES)}")
        return merged(getattr(stats, phase) for stats in self.ranks.values())


#: How many ranks, and classes of errors, `str()` shows at most.
_SHOWN = 16


def _lines(group: GroupStats) -> Iterator[str]:
    """Yield a summary for people: a line for each rank, those that failed most first if not all can be shown."""
    unheard = ""
    if group.unheard:
        more = f" and {len(group.unheard) - _SHOWN} more" if len(group.unheard) > _SHOWN else ""
        unheard = f"; nothing yet of {', '.join(map(str, group.unheard[:_SHOWN]))}{more}"
    yield f"{group.name!r}: {len(group.ranks)} of {group.size} ranks heard, root {group.root}{unheard}"
    away_nbytes = group.nbytes_received - group.nbytes_from_host
    yield f"network: {nbytes_text(group.nbytes_sent)} sent, {nbytes_text(away_nbytes)} received"
    if group.failed:
        failed = sorted(group.failed.items(), key=lambda item: (-item[1], item[0]))
        yield f"failures: {', '.join(f'{count} {name}' for name, count in failed[:_SHOWN])}"
    columns = ("rank", "heard", "calls", "values", "failed", "cancelled", "pending", "per s", "p50", "p99")
    widths = (6, 14, 9, 9, 9, 11, 9, 9, 11, 11)
    yield "".join(map(str.rjust, columns, widths))
    shown = sorted(group.ranks, key=lambda rank: -sum(group.ranks[rank].failed.values()))[:_SHOWN]  # stable
    for rank in sorted(shown):
        stats, total = group.ranks[rank], group.ranks[rank].total
        counts = (stats.asked, stats.resolved, sum(stats.failed.values()), stats.cancelled, stats.pending)
        times = (f"{stats.qps:.3g}", duration(total.p50_s), duration(total.p99_s))
        row = (str(rank), f"{group.age_s[rank]:.1f} s ago", *map(str, counts), *times)
        yield "".join(map(str.rjust, row, widths))
    if len(group.ranks) > _SHOWN:
        yield f"and {len(group.ranks) - _SHOWN} more ranks"

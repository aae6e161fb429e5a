"""What all ranks of an object have counted, as the root knows it."""

from __future__ import annotations

from dataclasses import dataclass

from lazycast.watch.stats import PHASES, Stats
from lazycast.watch.timing import Timing, merged


@dataclass(frozen=True)
class GroupStats:
    """What `LazyBroadcast.stats(group=True)` returns on the root: the last word of every rank.

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

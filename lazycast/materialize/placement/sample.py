"""What one cast cost, as the root has learned it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazycast.net.wire import Spent


@dataclass(frozen=True)
class Sample:
    """What one cast cost.

    Attributes:
        placement: "every", "root", "shard" or "helpers".
        depth: casts under way at the root when it was placed; 0: it was alone.
        latency_s: from its placing to its end.
        busy_s: CPU seconds that each rank and its helpers spent on it. Ranks that are not known are absent (without
            agreement only the root's host's are known); a rank that did nothing is present with 0. A host counts if
            all its ranks are known.
        materialize_s: the longest time that one call of the materializer took on any known rank.
        value_nbytes: what an owner or the root shared, if it did.
        materialize_cpu_s: CPU seconds of one such call, if they were measured: they tell a call that waits for a core
            from one that computes. Else they are inferred from `busy_s`.
        held_s: for how long one such call kept its rank's interpreter from other threads, if that was watched.
        hosts: what the ranks of a host spent, where one spoke for all of them; they are not in `busy_s` then.
    """

    placement: str
    depth: int
    latency_s: float
    busy_s: dict[int, float]
    materialize_s: float | None
    value_nbytes: int | None
    materialize_cpu_s: float | None = None
    hosts: Sequence[Spent] = ()
    held_s: float | None = None

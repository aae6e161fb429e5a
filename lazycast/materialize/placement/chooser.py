"""What the root asks where to place a cast, and tells what it cost. Plain data, no threads, no clock.

Guarantees:

* The same calls give the same answers: nothing is random.
* `choose` and `learn` never raise for what they are told of a cast, and take some ten microseconds each (more with
  hundreds of ranks). Once much is known, `choose` thinks again, and `learn` adds up what it was told, for every eighth
  cast only, or when the load changes.
* Memory is bounded: the records of the 256 kinds of cast used last are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from lazycast.materialize.placement.model import CostModel, Traffic
from lazycast.materialize.placement.record import Judged, Record
from lazycast.materialize.placement.sample import Sample
from lazycast.materialize.placement.site import Site

_KEPT: Final = 256
_DEPTH_WEIGHT: Final = 1 / 8
_SHOWN: Final = 120  # characters of somebody else's text


class Choice(NamedTuple):
    """Where a cast goes, and why: a short text for people, with the numbers that decided."""

    placement: str
    reason: str


@dataclass(frozen=True)
class PlacementCost:
    """What is believed of one placement for one kind of cast.

    Attributes:
        casts: how many were placed so.
        samples: measurements that the figures rest on; 0: they are predicted from other placements' measurements.
        latency_s: how long a cast takes that is alone.
        bottleneck_s: how long one cast takes up the busiest host; a saturated group ends one cast in that time.
        stall_s: for how long one cast keeps a rank's interpreter from other work; 0 where there are no helpers.
    """

    casts: int
    samples: int
    latency_s: float
    bottleneck_s: float
    stall_s: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How casts of one materializer and size are placed now.

    Attributes:
        materializer: its name.
        payload_nbytes: smallest and largest payload of the size class.
        placement, reason: as `choose` would return them, trials aside.
        casts: how many were placed.
        switches: how often the placement has changed.
        costs: per placement that may be chosen.
    """

    materializer: str
    payload_nbytes: tuple[int, int]
    placement: str
    reason: str
    casts: int
    switches: int
    costs: dict[str, PlacementCost]


def duration(seconds: float) -> str:
    """Return a duration for people: three figures at most."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


class Chooser:
    """Chooses placements for one group. Not thread-safe. `host_of[rank]` is the index of its host in `site`."""

    def __init__(self, site: Site, host_of: Sequence[int]) -> None:
        counted = tuple(sum(host == index for host in host_of) for index in range(len(site.ranks)))
        if counted != site.ranks or len(host_of) != sum(site.ranks):
            raise ValueError(f"host_of places {counted} ranks on the hosts, the site says {site.ranks}")
        self._placements = site.placements
        self.helped = True  # whether helpers have begun, where there are some; once they have, that stays so
        self._model = CostModel(site, tuple(host_of))
        self._records: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._depth: float | None = None  # mean
        self._last_depth = 0
        self._told: tuple[list[Judged], Choice] = ([], Choice("every", ""))  # the last text, and what it is about

    def choose(self, materializer: str, payload_nbytes: int, depth: int, *, staged: bool, replicated: bool) -> Choice:
        """Return where to place a cast.

        Args:
            materializer: its name; "" if there is none, and the value is the payload.
            depth: casts under way at the root, without this one.
            staged: only a small hint is shared.
            replicated: every rank has the payload already.
        """
        under_way = self._under_way(depth)
        if not materializer:
            return Choice("every", "every: no materializer, the value is the payload")
        record = self._record(materializer, payload_nbytes, Traffic(payload_nbytes, staged, replicated))
        record.helped = self.helped
        placement, judged = record.choose(under_way)
        if placement != record.placement:
            return Choice(placement, _reason_to_try(placement, judged, under_way))
        if judged is not self._told[0]:
            self._told = (judged, Choice(placement, _reason(record, judged, under_way)))
        return self._told[1]

    def learn(self, materializer: str, payload_nbytes: int, sample: Sample) -> None:
        """Take into account what a cast has cost. A cast that failed tells nothing: do not call this for it."""
        record = self._records.get((materializer, payload_nbytes.bit_length()))
        if record is not None:
            # A cast that found no other was alone to its end if it is the last that was placed. (Or if those placed
            # since did not meet it either, and the news of it is late.)
            alone = sample.depth == 0 and self._last_depth == 0
            record.learn(sample, payload_nbytes, alone=alone)

    def unshareable(self, materializer: str, payload_nbytes: int, reason: str) -> None:
        """Note that a value could not be shared, and each rank had to make its own: for a while, do not ask for it."""
        record = self._records.get((materializer, payload_nbytes.bit_length()))
        if record is not None:
            record.unshareable(reason)

    def current(self) -> list[Standing]:
        """Return how each kind of cast stands, the one used last at the end."""
        under_way = 1.0 + (self._depth or 0.0)
        standings = []
        for (materializer, bits), record in self._records.items():
            judged = record.judge(under_way)
            costs = {j.placement: PlacementCost(record.tried(j.placement), j.samples, *j.cost) for j in judged}
            size = (1 << bits >> 1, (1 << bits) - 1)
            reason = _reason(record, judged, under_way)
            standing = Standing(materializer, size, record.placement, reason, record.casts, record.switches, costs)
            standings.append(standing)
        return standings

    def _under_way(self, depth: int) -> float:
        """Return how many casts there are at a time: a mean, since the first of a burst finds nobody before it."""
        self._last_depth = depth = max(depth, 0)
        self._depth = depth if self._depth is None else self._depth + (depth - self._depth) * _DEPTH_WEIGHT
        return 1 + self._depth

    def _record(self, materializer: str, payload_nbytes: int, traffic: Traffic) -> Record:
        key = (materializer, payload_nbytes.bit_length())
        record = self._records.get(key)
        if record is None:
            record = Record(self._model, self._placements, self._first(key, traffic), traffic)
            self._records[key] = record
            if len(self._records) > _KEPT:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(key)
            record.traffic = traffic
        return record

    def _first(self, key: tuple[str, int], traffic: Traffic) -> str:
        """Return what to begin with: what a neighbouring size has come to, else what cannot be far off.

        "shard" takes at most the copy of the value longer than "every", which is less than making it takes, or than
        sending the payload that it is a view of; "every" may take as many times longer as a host has ranks. Only with a
        replicated payload may the value cost nothing at all, and its copy much.
        """
        materializer, bits = key
        for neighbour in (bits - 1, bits + 1):
            record = self._records.get((materializer, neighbour))
            if record is not None and record.samples and not record.banned_for and record.traffic[1:] == traffic[1:]:
                return record.placement
        if "shard" not in self._placements or (traffic.replicated and not traffic.staged):
            return "every"
        return "shard"


def _compared(judged: list[Judged], under_way: float) -> str:
    """Say how the present placement compares with the best of the others."""
    present, *others = judged
    other = min(others, key=lambda entry: entry.time_s)
    if present.cost.stall_s or other.cost.stall_s:
        what, mine, its = "until done, and of a rank's time", present.time_s, other.time_s
    elif present.cost.latency_s >= present.time_s and other.cost.latency_s >= other.time_s:
        what, mine, its = "until done when alone", present.cost.latency_s, other.cost.latency_s
    elif present.cost.latency_s < present.time_s and other.cost.latency_s < other.time_s:
        what, mine, its = "of the busiest host per cast", present.cost.bottleneck_s, other.cost.bottleneck_s
    else:
        what, mine, its = f"until done with {under_way:.3g} under way", present.time_s, other.time_s
    guess = "" if other.samples else " (predicted)"
    return f"{duration(mine)} {what} against {duration(its)} for {other.placement}{guess}"


def _reason(record: Record, judged: list[Judged], under_way: float) -> str:
    placement = record.placement
    if len(judged) == 1:
        when = f"in {record.banned_for} casts" if record.banned_for else "with the next cast"
        return f"{placement}: the value could not be shared ({record.refused[:_SHOWN]}); tried again {when}"
    if not record.samples:
        known = "nothing measured yet"
        if placement == "shard":
            return f"shard: {known}; each host does the work once"
        return f"{placement}: {known}"
    return f"{placement}: {_compared(judged, under_way)} ({record.samples} casts seen)"


def _reason_to_try(placement: str, judged: list[Judged], under_way: float) -> str:
    tried = next(entry for entry in judged if entry.placement == placement)
    how = "last known as" if tried.samples else "predicted as"
    return (
        f"{placement}: tried, {how} {duration(tried.time_s)} against {duration(judged[0].time_s)} "
        f"for {judged[0].placement} with {under_way:.3g} under way"
    )

"""What a cast costs under each placement, computed from what one call of its materializer costs.

The model is a prior: it compares placements that nobody has tried yet, and carries what was measured over to a
materializer whose cost has changed. What was measured corrects it (see `record`), so its constants need only be right
within a factor of two or so.

Two figures describe a placement:

* `latency_s`: how long a cast takes that is alone;
* `bottleneck_s`: how long one cast takes up the busiest host: its CPU seconds there over the cores it may use, or over
  the threads that the placement gives work to, if those are fewer. A saturated group ends one cast in that time.

With `n` casts under way, one takes `max(latency_s, n * bottleneck_s)`: no less than alone, and no less than the busiest
host needs for all of them (the two bounds of operational analysis). This is what placements are compared by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from lazycast.placement.sample import Sample
from lazycast.placement.site import Site

COPY_BYTES_PER_S: Final = 5e9  # one core copying into shared memory
NET_BYTES_PER_S: Final = 1.2e9  # between hosts: 10 Gbit/s
HOP_S: Final = 300e-6  # a message to the ranks of a host, until they act on it
_LEAST_S: Final = 1e-6  # no figure is smaller, so that ratios of them stay sane


class Cost(NamedTuple):
    """What a cast costs under one placement: see the module's text."""

    latency_s: float
    bottleneck_s: float

    def with_under_way(self, casts: float) -> float:
        """Return how long a cast takes when so many are under way, itself included."""
        return max(self.latency_s, casts * self.bottleneck_s)


class Traffic(NamedTuple):
    """What a kind of cast brings with it, whoever materializes."""

    payload_nbytes: int
    staged: bool  # only a small hint is shared; each rank finishes for itself
    replicated: bool  # every rank has the payload already

    @property
    def moved_nbytes(self) -> int:
        """Bytes of payload that travel wherever it travels at all."""
        return 0 if self.replicated else self.payload_nbytes


class Work(NamedTuple):
    """What one call of the materializer costs."""

    cpu_s: float
    wait_s: float = 0.0  # of its time, what it does not compute (it downloads, say)
    value_nbytes: float = 0.0


class Spent(NamedTuple):
    """CPU seconds of one host's ranks for one cast."""

    total_s: float
    least_s: float
    most_s: float


class _Load(NamedTuple):
    """What one cast asks of one host: CPU seconds, calls of the materializer, threads they are spread over."""

    busy_s: float
    calls: int
    threads: int


class CostModel:
    """Predicts costs at one site. Immutable."""

    def __init__(self, site: Site, host_of: Sequence[int]) -> None:
        self._site = site
        self._host_of = host_of
        self._several = len(site.ranks) > 1
        self._shares = max(site.ranks) > 1
        self._crowd = max(max(1.0, ranks / cores) for ranks, cores in zip(site.ranks, site.cores, strict=True))
        self._alone = max(1.0, 1 / min(site.cores))
        self._alone_at_root = max(1.0, 1 / site.cores[site.root_host])
        kinds: dict[tuple[object, ...], int] = {}  # hosts that are alike are computed once
        for host in range(len(site.ranks)):
            alike = (site.ranks[host], site.cores[host], site.owners[host], host == site.root_host)
            kinds.setdefault(alike, host)
        self._distinct = tuple(kinds.values())

    # Prediction

    def predict(self, placement: str, work: Work, traffic: Traffic) -> Cost:
        """Return what a cast costs under a placement."""
        bottleneck_s = self._encode_s(placement, traffic)
        for host in self._distinct:
            load = self._load(host, placement, work, traffic)
            bottleneck_s = max(bottleneck_s, self._held_s(host, load, load.busy_s, work))
        return Cost(max(self._latency_s(placement, work, traffic), _LEAST_S), max(bottleneck_s, _LEAST_S))

    def _latency_s(self, placement: str, work: Work, traffic: Traffic) -> float:
        latency_s = HOP_S + work.wait_s + work.cpu_s * self._slowdown(placement)
        if placement != "root" or traffic.staged:
            latency_s += self._travel_s(traffic.moved_nbytes)
        if placement == "root" and not traffic.staged:
            latency_s += self._travel_s(work.value_nbytes)
        elif placement == "shard" and self._shares:
            latency_s += HOP_S + (0.0 if traffic.staged else work.value_nbytes / COPY_BYTES_PER_S)
        return latency_s

    def _travel_s(self, nbytes: float) -> float:
        return nbytes / COPY_BYTES_PER_S + (nbytes / NET_BYTES_PER_S if self._several else 0.0)

    def _slowdown(self, placement: str) -> float:
        """How much longer than its CPU time a call takes in a cast that is alone: its ranks compete for cores."""
        if placement == "every":
            return self._crowd
        return self._alone_at_root if placement == "root" else self._alone

    @staticmethod
    def _encode_s(placement: str, traffic: Traffic) -> float:
        """How long the root's one engine thread is held by encoding the payload."""
        if placement == "root" and not traffic.staged:
            return 0.0
        return traffic.moved_nbytes / COPY_BYTES_PER_S

    def _load(self, host: int, placement: str, work: Work, traffic: Traffic) -> _Load:
        site = self._site
        ranks, threads = site.ranks[host], site.threads(host)
        copy_s = self._encode_s(placement, traffic)  # by the root, and by the leaders of other hosts
        share_s = 0.0 if traffic.staged else work.value_nbytes / COPY_BYTES_PER_S
        if placement == "every":
            return _Load(copy_s + ranks * work.cpu_s, ranks, ranks * threads)
        if placement == "shard":
            return _Load(copy_s + work.cpu_s + (share_s if ranks > 1 else 0.0), 1, site.owners[host] * threads)
        if host == site.root_host:
            return _Load(copy_s + share_s + work.cpu_s, 1, threads)
        return _Load(copy_s + share_s, 0, ranks * threads)

    def _held_s(self, host: int, load: _Load, busy_s: float, work: Work) -> float:
        return max(busy_s / self._site.cores[host], (busy_s + load.calls * work.wait_s) / load.threads)

    # Measurement

    def spent(self, sample: Sample) -> list[Spent | None]:
        """Return what each host spent on a cast; None where not all its ranks are known."""
        by_host: list[list[float]] = [[] for _ in self._site.ranks]
        for rank, seconds in sample.busy_s.items():
            if 0 <= rank < len(self._host_of):
                by_host[self._host_of[rank]].append(seconds)
        return [
            Spent(sum(seconds), min(seconds), max(seconds)) if len(seconds) == ranks else None
            for seconds, ranks in zip(by_host, self._site.ranks, strict=True)
        ]

    def work(self, sample: Sample, spent: Sequence[Spent | None], traffic: Traffic) -> Work | None:
        """Return what one call of the materializer has cost in a cast, or None if the sample does not say.

        `wait_s` is what it took beyond its share of the cores, as if the cast had been alone. What was not observed
        (`wait_s`, `value_nbytes`) is NaN.
        """
        cpu_s = self._cpu_s(sample, spent, traffic)
        if cpu_s is None:
            return None
        wait_s = math.nan
        if sample.materialize_s is not None:
            wait_s = sample.materialize_s - cpu_s * self._slowdown(sample.placement)
            if wait_s < cpu_s / 2:  # it has competed for cores with something else
                wait_s = 0.0
        return Work(cpu_s, wait_s, math.nan if sample.value_nbytes is None else sample.value_nbytes)

    def _cpu_s(self, sample: Sample, spent: Sequence[Spent | None], traffic: Traffic) -> float | None:
        """CPU time of one call: as measured, else that of the rank that did little else, less the copy of the value.

        Nothing is subtracted for the payload, although the root (and other hosts' leaders) copied it: with several
        hosts, or ranks that take turns, most casts show a rank that did not.
        """
        if sample.materialize_cpu_s is not None:
            return sample.materialize_cpu_s
        known = [host for host in spent if host is not None]
        if sample.placement == "every":
            busy_s = min((host.least_s for host in known), default=None)
        elif sample.placement == "root":
            root = spent[self._site.root_host]
            busy_s = root.most_s if root is not None else None
        else:
            busy_s = min((host.most_s for host in known), default=None)
        if busy_s is None:
            return sample.materialize_s
        shared_nbytes = 0 if traffic.staged else sample.value_nbytes or 0
        cpu_s = max(busy_s - shared_nbytes / COPY_BYTES_PER_S, busy_s / 2)
        return cpu_s if sample.materialize_s is None else min(cpu_s, sample.materialize_s)

    def bottleneck_s(self, placement: str, spent: Sequence[Spent | None], work: Work, traffic: Traffic) -> float:
        """Return how long a cast took up the busiest host, where hosts that are not known cost what is predicted."""
        held_s = self._encode_s(placement, traffic)
        for host, known in enumerate(spent):
            load = self._load(host, placement, work, traffic)
            busy_s = load.busy_s if known is None else known.total_s
            held_s = max(held_s, self._held_s(host, load, busy_s, work))
        return held_s

"""What a cast costs under each placement, computed from what one call of its materializer costs.

The model is a prior: it compares placements that nobody has tried yet, and carries what was measured over to a
materializer whose cost has changed. What was measured corrects it (see `record`), so its constants need only be right
within a factor of two or so.

Three figures describe a placement:

* `latency_s`: how long a cast takes that is alone;
* `bottleneck_s`: how long one cast takes up the busiest host: its CPU seconds there over the cores it may use, or over
  the threads that the placement gives work to, if those are fewer. A saturated group ends one cast in that time.
* `stall_s`: for how long one cast keeps the interpreter of a rank from its other work. Known where there are helpers.

With `n` casts under way, one takes `max(latency_s, n * bottleneck_s)`: no less than alone, and no less than the busiest
host needs for all of them (the two bounds of operational analysis). Placements are compared by this and the stall
together: what a cast takes, and what it takes from others. Under "helpers" no rank's interpreter is kept from anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from lazycast.materialize.placement.sample import Sample
from lazycast.materialize.placement.site import Site

COPY_BYTES_PER_S: Final = 5e9  # one core copying into shared memory
NET_BYTES_PER_S: Final = 1.2e9  # between hosts: 10 Gbit/s
HOP_S: Final = 300e-6  # a message to the ranks of a host, until they act on it
LEAST_S: Final = 1e-6  # no figure is smaller, so that ratios of them stay sane


class Cost(NamedTuple):
    """What a cast costs under one placement: see the module's text."""

    latency_s: float
    bottleneck_s: float
    stall_s: float = 0.0

    def with_under_way(self, casts: float) -> float:
        """Return how long a cast takes when so many are under way, itself included, and what others lose by it."""
        return max(self.latency_s, casts * self.bottleneck_s) + self.stall_s


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
    held_s: float = 0.0  # for which it keeps its interpreter from other threads


class Spent(NamedTuple):
    """CPU seconds of one host's ranks for one cast."""

    total_s: float
    least_s: float
    most_s: float


def _sum_up(busy_s: list[float], ranks: int) -> Spent | None:
    if len(busy_s) != ranks:
        return None
    total_s = sum(busy_s)
    return Spent(total_s, min(busy_s), max(busy_s)) if total_s else None


class _Load(NamedTuple):
    """What a cast under one placement asks of one host."""

    calls: int  # of the materializer
    per_value_byte_s: float
    per_payload_byte_s: float
    cores: float
    threads: int  # that the calls are spread over, casts taken together

    def held_s(self, busy_s: float, wait_s: float) -> float:
        """Return how long it takes up the host: its cores, or the threads it can use."""
        return max(busy_s / self.cores, (busy_s + self.calls * wait_s) / self.threads)


class _Formula(NamedTuple):
    """The costs of one placement as sums over what is known of a cast."""

    hop_s: float
    slowdown: float  # how much longer than its CPU time a call takes when the cast is alone: ranks compete for cores
    per_value_byte_s: float  # of latency
    per_payload_byte_s: float
    encode_per_payload_byte_s: float  # on the root's one engine thread
    hosts: tuple[_Load, ...]
    distinct: tuple[_Load, ...]  # those that are alike once
    stalls: bool  # whether ranks materialize


def _formula(site: Site, placement: str, *, staged: bool) -> _Formula:
    several, shares = len(site.ranks) > 1, max(site.ranks) > 1
    copy_s = 1 / COPY_BYTES_PER_S
    travel_s = copy_s + (1 / NET_BYTES_PER_S if several else 0.0)
    payload_travels = placement != "root" or staged
    value_travels = placement == "root" and not staged
    value_is_copied = not staged and (placement == "helpers" or (placement == "shard" and shares))
    hops = {"shard": 1 + shares, "helpers": 3 + shares}  # to a helper and back

    def load(host: int) -> _Load:
        ranks, cores, threads = site.ranks[host], site.cores[host], site.threads(host)
        calls, busy_ranks, shared = ranks, ranks, False
        if placement == "shard":
            calls, busy_ranks, shared = 1, site.owners[host], value_is_copied and ranks > 1
        elif placement == "root":
            at_root = host == site.root_host
            calls, busy_ranks, shared = int(at_root), 1 if at_root else ranks, value_travels
        elif placement == "helpers":
            calls, busy_ranks, threads, shared = 1, 1, site.helpers, value_is_copied
        # The root copies what is sent, and so do the leaders of other hosts.
        return _Load(
            calls, copy_s if shared else 0.0, copy_s if payload_travels else 0.0, cores, max(1, busy_ranks * threads)
        )

    crowds = {
        "every": max(ranks / cores for ranks, cores in zip(site.ranks, site.cores, strict=True)),
        "root": 1 / site.cores[site.root_host],
        "shard": 1 / min(site.cores),
        "helpers": 1 / min(site.cores),
    }
    hosts = tuple(load(host) for host in range(len(site.ranks)))
    return _Formula(
        hop_s=HOP_S * hops.get(placement, 1),
        slowdown=max(1.0, crowds[placement]),
        per_value_byte_s=travel_s if value_travels else copy_s if value_is_copied else 0.0,
        per_payload_byte_s=travel_s if payload_travels else 0.0,
        encode_per_payload_byte_s=copy_s if payload_travels else 0.0,
        hosts=hosts,
        distinct=tuple(dict.fromkeys(hosts)),
        stalls=placement != "helpers",
    )


class CostModel:
    """Predicts costs at one site. Immutable."""

    def __init__(self, site: Site, host_of: Sequence[int]) -> None:
        self._site = site
        self._host_of = host_of
        self._formulas = {
            (placement, staged): _formula(site, placement, staged=staged)
            for placement in site.placements
            for staged in (False, True)
        }

    def predict(self, placement: str, work: Work, traffic: Traffic) -> Cost:
        """Return what a cast costs under a placement."""
        formula = self._formulas[placement, traffic.staged]
        cpu_s, wait_s, value_nbytes, held_s = work
        moved = traffic.moved_nbytes
        latency_s = formula.hop_s + wait_s + cpu_s * formula.slowdown
        latency_s += value_nbytes * formula.per_value_byte_s + moved * formula.per_payload_byte_s
        bottleneck_s = moved * formula.encode_per_payload_byte_s
        for (
            calls,
            per_value_byte_s,
            per_payload_byte_s,
            cores,
            threads,
        ) in formula.distinct:  # plain: every cast passes
            busy_s = calls * cpu_s + value_nbytes * per_value_byte_s + moved * per_payload_byte_s
            on_cores_s, on_threads_s = busy_s / cores, (busy_s + calls * wait_s) / threads
            if on_cores_s > bottleneck_s:
                bottleneck_s = on_cores_s
            if on_threads_s > bottleneck_s:
                bottleneck_s = on_threads_s
        return Cost(max(latency_s, LEAST_S), max(bottleneck_s, LEAST_S), held_s if formula.stalls else 0.0)

    # Measurement

    def spent(self, sample: Sample) -> list[Spent | None]:
        """Return what each host spent on a cast; None where not all its ranks are known, or none worked."""
        if len(self._site.ranks) == 1:
            return [_sum_up(list(sample.busy_s.values()), self._site.ranks[0])]
        by_host: list[list[float]] = [[] for _ in self._site.ranks]
        for rank, seconds in sample.busy_s.items():
            if 0 <= rank < len(self._host_of):
                by_host[self._host_of[rank]].append(seconds)
        found = [_sum_up(seconds, ranks) for seconds, ranks in zip(by_host, self._site.ranks, strict=True)]
        for said in sample.hosts:
            host = self._host_of[said.rank] if said.rank < len(self._host_of) else -1
            if host >= 0 and said.ranks == self._site.ranks[host] and said.total_s:
                found[host] = Spent(said.total_s, said.least_s, said.most_s)
        return found

    def work(self, sample: Sample, spent: Sequence[Spent | None], traffic: Traffic) -> Work | None:
        """Return what one call of the materializer has cost in a cast, or None if the sample does not say.

        `wait_s` is what it took beyond its share of the cores, as if the cast had been alone. What was not observed
        (`wait_s`, `value_nbytes`, `held_s`) is NaN.
        """
        cpu_s = self._cpu_s(sample, spent, traffic)
        if cpu_s is None:
            return None
        wait_s = math.nan
        if sample.materialize_s is not None:
            wait_s = sample.materialize_s - cpu_s * self._formulas[sample.placement, traffic.staged].slowdown
            if wait_s < cpu_s / 2:  # it has competed for cores with something else
                wait_s = 0.0
        value_nbytes = math.nan if sample.value_nbytes is None else sample.value_nbytes
        held_s = math.nan if sample.held_s is None else sample.held_s
        if sample.materialize_s is not None:
            held_s = min(sample.materialize_s, held_s) if held_s >= 0 else math.nan
        return Work(cpu_s, wait_s, value_nbytes, held_s)

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
        """Return how long a cast took up the busiest host; those that are not known are left to the prediction."""
        formula = self._formulas[placement, traffic.staged]
        moved = traffic.moved_nbytes
        held_s = max(moved * formula.encode_per_payload_byte_s, LEAST_S)
        for load, known in zip(formula.hosts, spent, strict=True):
            if known is not None:
                busy_s = known.total_s
            else:
                busy_s = load.calls * work.cpu_s + work.value_nbytes * load.per_value_byte_s
                busy_s += moved * load.per_payload_byte_s
            held_s = max(held_s, load.held_s(busy_s, work.wait_s))
        return held_s

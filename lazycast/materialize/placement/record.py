"""What is known of one kind of cast (a materializer and a size class), and the placement that follows from it.

Guarantees:

* Every answer is a function of what was told before. Time is counted in casts.
* A placement that is believed to take more than twice as long as the present one is not tried, unless that belief is
  older than a thousand casts.
* The placement changes only for one that is better by a margin, which shrinks from a half to 5 % with what has been
  measured of it, and not again within eight casts.

How a placement's cost is known. Each sample tells what the call of the materializer has cost (CPU time, waiting, size
of the value). Their running means, common to all placements, go into the model; the median of *measured over
predicted* of a placement's own samples corrects what the model says of it. So a materializer that becomes dearer moves
all placements at once, those not tried lately too, and casts that differ from each other do not blur the comparison. A
correction that was measured when costs were more than four times smaller or larger counts no more.

When others are tried. At first up to three times each, every few casts; then, where two are close, up to nine times;
then every 64th cast. All these intervals grow with the square of how much worse the placement is believed to be: one
that takes `r` times as long then costs (r - 1) / 64 r² more per cast, which is 0.4 % at most whatever `r` is.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lazycast.materialize.placement.estimate import RecentMedian, RunningMean
from lazycast.materialize.placement.model import LEAST_S, Cost, CostModel, Traffic, Work
from lazycast.materialize.placement.sample import Sample

_FEW: Final = 3  # samples from which a placement counts as measured
_MANY: Final = 9  # and from which a close comparison is trusted
_EARLY: Final = 4  # casts between trials of one that is not measured yet
_CLOSE: Final = 16  # ... that is close to the present one
_LATE: Final = 64  # ... that is known
_TOO_BAD: Final = 2.0
_STALE: Final = 256  # instead of _LATE for one that is too bad: 1024 casts at least
_NEAR: Final = 1.25
_OTHER_LEVEL: Final = 4.0
_JUDGED_FOR: Final = 8  # casts, once much is known
_SETTLED: Final = 8  # casts before the placement changes again
_BANNED: Final = 256
_BANNED_AT_MOST: Final = 1 << 16


def _margin(samples: int) -> float:
    """How far below the present placement's cost another must be to replace it, by what has been measured of it."""
    if samples == 0:
        return 0.5
    if samples < _FEW:
        return 0.75
    return 0.9 if samples < _MANY else 0.95


class Judged(NamedTuple):
    """What is believed of one placement now."""

    placement: str
    cost: Cost
    time_s: float  # with the present number of casts under way
    samples: int  # that this rests on; 0: on the model alone


class _Tried:
    """What was measured of one placement, as a multiple of what the model says of it."""

    __slots__ = ("at", "bottleneck", "casts", "cold", "last", "latency", "level", "outstanding")

    def __init__(self) -> None:
        self.casts = 0
        self.last = 0  # cast at which it was last placed
        self.outstanding = False
        self.cold = True
        self.level: Cost | None = None  # what the model says now
        self.at: Cost | None = None  # what it said when this was last measured
        self.latency = RecentMedian()
        self.bottleneck = RecentMedian()

    def corrected(self, predicted: Cost) -> tuple[Cost, int]:
        """Return the cost, and the number of measurements that it rests on: 0 if costs were at another level then."""
        if self.at is None or not self.at.bottleneck_s / _OTHER_LEVEL <= predicted.bottleneck_s <= (
            self.at.bottleneck_s * _OTHER_LEVEL
        ):
            return predicted, 0
        latency_s, bottleneck_s = (
            predicted.latency_s * self.latency.value,
            predicted.bottleneck_s * self.bottleneck.value,
        )
        return Cost(latency_s, bottleneck_s, predicted.stall_s), self.bottleneck.count

    def add(self, bottleneck: float, latency: float | None) -> None:
        """Take a sample into account: multiples of what the model says of that very cast."""
        if self.level is not None and self.at is not self.level:
            if self.at is not None and not self.corrected(self.level)[1]:
                self.latency.clear()
                self.bottleneck.clear()
            self.at = self.level
        self.bottleneck.add(bottleneck)
        if latency is not None:
            self.latency.add(latency)


class Record:
    """See the module's text. `first` is the placement to begin with, one of `placements`. Not thread-safe."""

    def __init__(self, model: CostModel, placements: tuple[str, ...], first: str, traffic: Traffic) -> None:
        self.placement = first
        self.traffic = traffic
        self.casts = 0
        self.switches = 0
        self.refused = ""  # why the value could not be shared
        self.helped = True  # whether there are helpers by now
        self._model = model
        self._tried = {name: _Tried() for name in placements}
        self._news: list[tuple[Sample, int, bool]] = []  # what has been told and not been taken into account yet
        self._cpu_s = RunningMean()
        self._wait_s = RunningMean()
        self._value_nbytes = RunningMean()
        self._held_s = RunningMean()
        self._judged: list[Judged] = []
        self._judged_at = 0
        self._judged_for = 1.0
        self._changed = -_SETTLED
        self._banned_until = 0
        self._ban = _BANNED
        self._doubted = False  # whether a value can be shared: to be tried before it becomes the rule again

    @property
    def banned_for(self) -> int:
        """For how many more casts nothing is chosen that shares a value; 0: it may be."""
        return max(0, self._banned_until - self.casts)

    @property
    def samples(self) -> int:
        """Casts of this kind that told what they cost."""
        return self._cpu_s.count

    def tried(self, placement: str) -> int:
        """Return how many casts were placed so."""
        return self._tried[placement].casts

    # Choosing

    def choose(self, under_way: float) -> tuple[str, list[Judged]]:
        """Return where the next cast goes, and what is believed of every placement (the present one first).

        Args:
            under_way: how many casts there are at a time, this one included.
        """
        choice = self.placement
        judged = self._judged
        if not judged or self._outdated(under_way):
            judged = self.judge(under_way)  # with all that was told before
            if len(judged) > 1 and self._tried[self.placement].at is not None:
                better = self._better(judged)
                if better is not None:
                    self._settle_on(better.placement)
                    judged = self.judge(under_way)
                choice = self._due(judged) or self.placement
            self._judged, self._judged_at, self._judged_for = judged, self.casts, under_way
        self.casts += 1
        tried = self._tried[choice]
        tried.casts += 1
        tried.last = self.casts
        tried.outstanding = True
        return choice, judged

    def _outdated(self, under_way: float) -> bool:
        """Whether to judge anew: for every cast at first, later for every eighth, or when the load changes."""
        if self._cpu_s.count < _LATE or self.casts - self._judged_at >= _JUDGED_FOR or len(self._judged) == 1:
            return True
        return abs(under_way - self._judged_for) * 10 > self._judged_for

    def judge(self, under_way: float) -> list[Judged]:
        """Return what is believed of every placement that may be chosen now, the present one first."""
        self._catch_up()
        work = self._mean_work()
        banned = self.casts < self._banned_until
        judged: list[Judged] = []
        for name, tried in self._tried.items():
            if (banned and name != "every") or (name == "helpers" and not self.helped):
                continue
            predicted = self._model.predict(name, work, self.traffic)
            tried.level = predicted
            cost, samples = tried.corrected(predicted)
            entry = Judged(name, cost, cost.with_under_way(under_way), samples)
            if name == self.placement:
                judged.insert(0, entry)
            else:
                judged.append(entry)
        return judged

    def _settle_on(self, placement: str) -> None:
        self.placement = placement
        self.switches += 1
        self._changed = self.casts
        self._judged = []

    def _better(self, judged: list[Judged]) -> Judged | None:
        """Return the placement that replaces the present one, if any."""
        present, *others = judged
        if self._doubted or self.casts - self._changed < _SETTLED:
            return None
        good = [other for other in others if other.time_s < present.time_s * _margin(other.samples)]
        return min(good, key=lambda other: other.time_s, default=None)

    def _due(self, judged: list[Judged]) -> str | None:
        """Return the placement that this cast is to try, if any."""
        present, *others = judged
        for other in others:
            tried = self._tried[other.placement]
            times = max(1.0, other.time_s / present.time_s)
            if times > _TOO_BAD:
                interval = _STALE
            elif other.samples < _FEW:
                interval = _EARLY
            else:
                interval = _CLOSE if other.samples < _MANY and times < _NEAR else _LATE
            if tried.outstanding:  # its sample is under way, or lost
                interval = max(interval, _LATE)
            if self.casts + 1 - tried.last >= interval * times * times:
                return other.placement
        return None

    # Learning

    def learn(self, sample: Sample, payload_nbytes: int, *, alone: bool) -> None:
        """Take into account what a cast of this kind has cost. What makes no sense is left out.

        Once much is known this is done at the next judgement, for all casts since the last one: together they take a
        tenth of what each takes by itself, between two casts, when the processor has forgotten how.

        Args:
            alone: whether there was no other cast from its placing to its end.
        """
        self._news.append((sample, payload_nbytes, alone))
        if self._cpu_s.count < _LATE or len(self._news) >= _JUDGED_FOR:
            self._catch_up()

    def _catch_up(self) -> None:
        while self._news:
            news, self._news = self._news, []
            for sample, payload_nbytes, alone in news:
                self._take_in(sample, payload_nbytes, alone)

    def _take_in(self, sample: Sample, payload_nbytes: int, alone: bool) -> None:
        tried = self._tried.get(sample.placement)
        if tried is None:
            return
        cold, tried.cold = tried.cold, False
        if cold and sample.placement == "helpers":  # it has loaded what the materializer needs
            tried.outstanding = False
            return
        traffic = Traffic(payload_nbytes, self.traffic.staged, self.traffic.replicated)
        spent = self._model.spent(sample)
        measured = self._model.work(sample, spent, traffic)
        if measured is None or not math.isfinite(measured.cpu_s + sample.latency_s):
            return
        tried.outstanding = False
        if sample.placement != "every" and not self.banned_for:
            self._ban, self._doubted = _BANNED, False
        work = self._add_work(measured, alone=alone)
        if self.samples == 1:  # until now the model had nothing to go by
            self.judge(1.0)
        predicted = self._model.predict(sample.placement, work, traffic)
        bottleneck_s = self._model.bottleneck_s(sample.placement, spent, work, traffic)
        # Beside others a cast takes longer than alone, unless they leave most of the site idle.
        undisturbed = alone or (sample.depth + 1) * bottleneck_s * 2 <= predicted.latency_s
        latency = max(sample.latency_s, LEAST_S) / predicted.latency_s if undisturbed else None
        tried.add(bottleneck_s / predicted.bottleneck_s, latency)

    def _add_work(self, measured: Work, *, alone: bool) -> Work:
        """Add a sample to the means; return its work, what it does not tell filled in from them."""
        cpu_s, wait_s, value_nbytes, held_s = measured
        self._cpu_s.add(cpu_s)
        if alone and not math.isnan(wait_s):
            self._wait_s.add(wait_s)
        else:
            wait_s = self._wait_s.value
        if not math.isnan(value_nbytes):
            self._value_nbytes.add(value_nbytes)
        else:
            value_nbytes = self._mean_work().value_nbytes
        if not math.isnan(held_s):
            self._held_s.add(held_s)
        return Work(cpu_s, wait_s, value_nbytes, self._held_s.value)

    def _mean_work(self) -> Work:
        """What one call costs on average. A value of unknown size is taken to be as large as its payload."""
        known = self._value_nbytes.count
        value_nbytes = self._value_nbytes.value if known else float(self.traffic.payload_nbytes)
        held_s = min(self._held_s.value, self._cpu_s.value)  # that is older than this where helpers make it
        return Work(self._cpu_s.value, self._wait_s.value, value_nbytes, held_s)

    def unshareable(self, reason: str) -> None:
        """Choose nothing that shares a value for some 256 casts; twice as many each time that this recurs."""
        if self.banned_for:  # told of a cast placed before the ban
            return
        self._catch_up()
        self._judged = []
        self.refused = reason
        self._doubted = True
        if self.placement != "every":
            self._settle_on("every")
        self._banned_until = self.casts + self._ban
        self._ban = min(self._ban * 2, _BANNED_AT_MOST)

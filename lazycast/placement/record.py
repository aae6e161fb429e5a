"""What is known of one kind of cast (a materializer and a size class), and the placement that follows from it.

Guarantees:

* Every answer is a function of what was told before. Time is counted in casts.
* A placement that is believed to take more than twice as long as the present one is not tried, unless that belief is
  older than a thousand casts. All trials together cost about 1 % at most once the first hundred casts are over.
* The placement changes only for one that is better by a margin, which shrinks with what has been measured of it.

How a placement's cost is known. Each sample tells what the call of the materializer has cost (CPU time, waiting, size
of the value). Their running means, common to all placements, go into the model; the median of *measured over
predicted* of a placement's own samples corrects what the model says of it. So a materializer that becomes dearer moves
all placements at once, those not tried lately too, and casts that differ from each other do not blur the comparison. A
correction that was measured when costs were more than four times smaller or larger counts no more.

When others are tried. At first up to three times each, every few casts; then, where two are close, up to nine times;
then every 64th cast. All these intervals grow with the square of how much worse the placement is believed to be: one
that takes `r` times as long costs (r - 1) / 64 r² more per cast, which is 0.4 % at most whatever `r` is.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lazycast.placement.estimate import RecentMedian, RunningMean
from lazycast.placement.model import Cost, CostModel, Traffic, Work
from lazycast.placement.sample import Sample

_FEW: Final = 3  # samples from which a placement counts as measured
_MANY: Final = 9  # and from which a close comparison is trusted
_EARLY: Final = 4  # casts between trials of one that is not measured yet
_CLOSE: Final = 16  # ... that is close to the present one
_LATE: Final = 64  # ... that is known
_TOO_BAD: Final = 2.0
_STALE: Final = 256  # instead of _LATE for one that is too bad: 1024 casts at least
_NEAR: Final = 1.25
_OTHER_LEVEL: Final = 4.0
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

    __slots__ = ("at", "bottleneck", "casts", "last", "latency", "outstanding")

    def __init__(self) -> None:
        self.casts = 0
        self.last = 0  # cast at which it was last placed
        self.outstanding = False
        self.at: Cost | None = None  # what the model said when it was last measured
        self.latency = RecentMedian()
        self.bottleneck = RecentMedian()

    def holds_at(self, predicted: Cost) -> bool:
        """Whether costs are still at the level at which this was measured."""
        if self.at is None:
            return False
        ratio = predicted.bottleneck_s / self.at.bottleneck_s
        return 1 / _OTHER_LEVEL <= ratio <= _OTHER_LEVEL

    def corrected(self, predicted: Cost) -> Cost:
        return Cost(predicted.latency_s * self.latency.value, predicted.bottleneck_s * self.bottleneck.value)


class Record:
    """See the module's text. `first` is the placement to begin with, one of `placements`. Not thread-safe."""

    def __init__(self, model: CostModel, placements: tuple[str, ...], first: str, traffic: Traffic) -> None:
        self.placement = first
        self.traffic = traffic
        self.casts = 0
        self.switches = 0
        self.refused = ""  # why the value could not be shared
        self._model = model
        self._tried = {name: _Tried() for name in placements}
        self._cpu_s = RunningMean()
        self._wait_s = RunningMean()
        self._value_nbytes = RunningMean()
        self._changed = -_SETTLED
        self._banned_until = 0
        self._ban = _BANNED
        self._doubted = False  # whether a value can be shared: to be tried before it becomes the rule again

    @property
    def placements(self) -> tuple[str, ...]:
        """What may be chosen now."""
        return ("every",) if self.banned_for else tuple(self._tried)

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
        judged = self.judge(under_way)
        if self.samples and self._tried[self.placement].at is not None and len(judged) > 1:
            better = self._better(judged)
            if better is not None:
                self._settle_on(better.placement)
                judged = self.judge(under_way)
            choice = self._due(judged) or self.placement
        else:
            choice = self.placement
        self.casts += 1
        tried = self._tried[choice]
        tried.casts += 1
        tried.last = self.casts
        tried.outstanding = True
        return choice, judged

    def judge(self, under_way: float) -> list[Judged]:
        """Return what is believed of every placement that may be chosen now, the present one first."""
        work = self._mean_work()
        judged: list[Judged] = []
        for name in self.placements:
            cost, samples = self._model.predict(name, work, self.traffic), 0
            tried = self._tried[name]
            if tried.holds_at(cost):
                cost, samples = tried.corrected(cost), tried.bottleneck.count
            entry = Judged(name, cost, cost.with_under_way(under_way), samples)
            judged.insert(0 if name == self.placement else len(judged), entry)
        return judged

    def _settle_on(self, placement: str) -> None:
        self.placement = placement
        self.switches += 1
        self._changed = self.casts

    def _better(self, judged: list[Judged]) -> Judged | None:
        """Return the placement that replaces the present one, if any."""
        present, *others = judged
        if self.casts - self._changed < _SETTLED:
            return None
        if self._doubted:
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

        Args:
            alone: whether there was no other cast from its placing to its end.
        """
        tried = self._tried.get(sample.placement)
        traffic = self.traffic._replace(payload_nbytes=payload_nbytes)
        spent = self._model.spent(sample)
        measured = self._model.work(sample, spent, traffic)
        if tried is None or measured is None or not math.isfinite(measured.cpu_s + sample.latency_s):
            return
        tried.outstanding = False
        if sample.placement != "every" and not self.banned_for:
            self._ban, self._doubted = _BANNED, False
        work = self._add_work(measured if alone else measured._replace(wait_s=math.nan))
        level = self._model.predict(sample.placement, self._mean_work(), traffic)
        if not tried.holds_at(level):
            tried.latency.clear()
            tried.bottleneck.clear()
        tried.at = level
        predicted = self._model.predict(sample.placement, work, traffic)
        bottleneck_s = self._model.bottleneck_s(sample.placement, spent, work, traffic)
        tried.bottleneck.add(max(bottleneck_s, 1e-6) / predicted.bottleneck_s)
        # Beside others a cast takes longer than alone, unless they leave most of the site idle.
        if alone or (sample.depth + 1) * bottleneck_s * 2 <= predicted.latency_s:
            tried.latency.add(max(sample.latency_s, 1e-6) / predicted.latency_s)

    def _add_work(self, measured: Work) -> Work:
        """Add a sample to the means; return its work, what it does not tell filled in from them."""
        self._cpu_s.add(measured.cpu_s)
        if not math.isnan(measured.wait_s):
            self._wait_s.add(measured.wait_s)
        if not math.isnan(measured.value_nbytes):
            self._value_nbytes.add(measured.value_nbytes)
        mean = self._mean_work()
        wait_s = mean.wait_s if math.isnan(measured.wait_s) else measured.wait_s
        value_nbytes = mean.value_nbytes if math.isnan(measured.value_nbytes) else measured.value_nbytes
        return Work(measured.cpu_s, wait_s, value_nbytes)

    def _mean_work(self) -> Work:
        """What one call costs on average. A value of unknown size is taken to be as large as its payload."""
        known = self._value_nbytes.count
        value_nbytes = self._value_nbytes.value if known else float(self.traffic.payload_nbytes)
        return Work(self._cpu_s.value, self._wait_s.value, value_nbytes)

    def unshareable(self, reason: str) -> None:
        """Choose nothing that shares a value for some 256 casts; twice as many each time that this recurs."""
        if self.banned_for:  # told of a cast placed before the ban
            return
        self.refused = reason
        self._doubted = True
        if self.placement != "every":
            self._settle_on("every")
        self._banned_until = self.casts + self._ban
        self._ban = min(self._ban * 2, _BANNED_AT_MOST)

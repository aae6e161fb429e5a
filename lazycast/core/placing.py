"""The root's choice of a placement for each cast: the one asked for, or what costs least by what ranks have reported.

Guarantees: whatever ranks do or do not report, memory is bounded, and no cast waits for a report on costs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lazycast.core.calls import Call
from lazycast.core.performer import Group
from lazycast.materialize.cores import together
from lazycast.materialize.materializers import Materializer, name_of
from lazycast.materialize.placement.chooser import Chooser, Standing
from lazycast.materialize.placement.sample import Sample
from lazycast.materialize.placement.site import Site
from lazycast.materialize.staged import Staged
from lazycast.net.topology import Topology
from lazycast.net.wire import Cost, Spent, printable
from lazycast.options import Options

_MAX_TRIALS = 1024
_MAX_PROVEN = 256
_PLAIN = "every", "without a materializer the value is the payload"


class Placeable(Protocol):
    """What is to be placed: a call."""

    @property
    def seq(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def materialize(self) -> Materializer | None: ...


@dataclass
class _Trial:
    """A cast whose cost is being added up."""

    materializer: str
    payload_nbytes: int
    placement: str
    depth: int
    began_s: float
    unreported: int  # as a set of ranks: see `net.members`
    busy_s: dict[int, float] = field(default_factory=dict)  # of ranks that spoke for themselves
    hosts: list[Spent] = field(default_factory=list)  # of those that others spoke for
    own_s: float = 0.0  # what the root spent before it sent anything
    materialize_s: float = 0.0
    materialize_cpu_s: float = 0.0
    value_nbytes: int | None = None
    unshared: str | None = None
    held_s: float | None = None

    @property
    def kind(self) -> tuple[str, int]:
        return self.materializer, self.payload_nbytes.bit_length()


def place_name(fn: Materializer) -> str:
    """Return the name under which casts with a materializer are remembered."""
    named = fn.prepare if isinstance(fn, Staged) else fn
    try:
        module = getattr(named, "__module__", "")
    except Exception:  # whatever a callable's attributes do when they are looked at
        module = ""
    return f"{module}.{name_of(named)}"


def site_of(group: Group, topology: Topology, options: Options) -> Site:
    """Describe a group to the chooser. Ranks of one machine that share no memory share its cores all the same."""
    cores = []
    for host in topology.hosts:
        machine = [rank for rank in range(group.size) if group.hosts[rank] == group.hosts[host[0]]]
        cores.append(together([group.cores[rank] for rank in machine]) * len(host) / len(machine))
    owners = [
        len([rank for rank in host if options.owners is None or rank in options.owners]) or len(host)
        for host in topology.hosts
    ]
    root_host = next(index for index, host in enumerate(topology.hosts) if group.root in host)
    # What the root has made is sent before it can be known to be remembered.
    root_makes = options.memo is None and group.size > 1
    helpers = options.helpers.count if options.helpers is not None else 0
    ranks = tuple(map(len, topology.hosts))
    return Site(ranks, tuple(cores), tuple(owners), root_host, root_makes=root_makes, helpers=helpers)


class Placing:
    """See the module's text. Guarded by the lane's lock.

    Args:
        begun: whether there are helpers by now: the first casts need not wait for them.
    """

    def __init__(
        self, group: Group, topology: Topology, options: Options, begun: Callable[[], bool] = lambda: True
    ) -> None:
        self._begun = begun
        self._options, self._root, self._all = options, group.root, (1 << group.size) - 1
        self.trials: OrderedDict[int, _Trial] = OrderedDict()
        self._proven: OrderedDict[tuple[str, int], None] = (
            OrderedDict()
        )  # kinds of cast whose values are known to pickle
        self.given = options.placement, "asked for"
        self.plain = _PLAIN if options.placement == "auto" else self.given  # of a cast without a materializer
        self._chooser: Chooser | None = None
        #: Whether anything is to be decided, so that payloads must be looked at.
        self.chooses = options.placement == "auto"
        if options.placement == "auto":
            host_of = {rank: index for index, host in enumerate(topology.hosts) for rank in host}
            host_list = [host_of[rank] for rank in range(group.size)]
            self._chooser = Chooser(site_of(group, topology, options), host_list)
            self._chooser.helped = False

    def place(self, call: Placeable, payload_nbytes: int, depth: int) -> tuple[str, str]:
        """Return the placement of a cast, and why."""
        chooser, fn = self._chooser, call.materialize
        if chooser is None:
            return self.given
        if fn is None:
            return self.plain
        name = call.name or place_name(fn)
        staged = isinstance(fn, Staged)
        chooser.helped = chooser.helped or self._begun()
        choice = chooser.choose(name, payload_nbytes, depth, staged=staged, replicated=self._options.replicated)
        self.trials[call.seq] = _Trial(name, payload_nbytes, choice.placement, depth, time.monotonic(), self._all)
        if len(self.trials) > _MAX_TRIALS:
            self.trials.popitem(last=False)
        return choice

    def doubts(self, call: Call) -> bool:
        """Whether it is not known yet that a value of this kind, which the root is to make, pickles."""
        trial = self.trials.get(call.seq)
        return trial is not None and trial.kind not in self._proven

    def spent(self, seq: int, cost: Cost) -> None:
        """Note what the root has spent on a cast before it sent it."""
        trial = self.trials.get(seq)
        if trial is not None:
            trial.own_s += cost.busy_s
            self._add(trial, cost)

    @staticmethod
    def _add(trial: _Trial, cost: Cost) -> None:
        if cost.materialize_s > trial.materialize_s:
            trial.materialize_s, trial.materialize_cpu_s = cost.materialize_s, cost.materialize_cpu_s
        if cost.shared_nbytes:
            trial.value_nbytes = cost.shared_nbytes
        if cost.unshared is not None:
            trial.unshared = printable(cost.unshared)
        if cost.held_s is not None:
            trial.held_s = cost.held_s if trial.held_s is None else max(trial.held_s, cost.held_s)

    def reported(self, seq: int, who: int, rank: int, cost: Cost | None) -> None:
        """Note what its part of a cast cost a set of ranks, for which `rank` speaks. Once all have reported, this is
        learnt from.
        """
        trial = self.trials.get(seq)
        if trial is None or not trial.unreported & who:
            return
        if who == 1 << rank:
            trial.busy_s[rank] = cost.busy_s if cost is not None else 0.0
        if cost is not None:
            self._add(trial, cost)
            if cost.hosts:
                trial.hosts += [spent for spent in cost.hosts if who >> spent.rank & 1]
        trial.unreported &= ~who
        if trial.unreported:
            return
        del self.trials[seq]
        assert self._chooser is not None
        kind = trial.kind
        self._proven.pop(kind, None)
        if trial.placement != "every" and trial.unshared is None:
            self._proven[kind] = None
            if len(self._proven) > _MAX_PROVEN:
                self._proven.popitem(last=False)
        if trial.unshared is not None:
            self._chooser.unshareable(trial.materializer, trial.payload_nbytes, trial.unshared)
            return
        trial.busy_s[self._root] += trial.own_s
        known = trial.materialize_s > 0
        sample = Sample(
            trial.placement,
            trial.depth,
            time.monotonic() - trial.began_s,
            trial.busy_s,
            trial.materialize_s if known else None,
            trial.value_nbytes,
            trial.materialize_cpu_s if known else None,
            trial.hosts,
            trial.held_s,
        )
        self._chooser.learn(trial.materializer, trial.payload_nbytes, sample)

    def failed(self, seq: int) -> None:
        """Forget a cast: what failed tells nothing about costs."""
        self.trials.pop(seq, None)

    def standings(self) -> tuple[Standing, ...]:
        """Return how each kind of cast stands."""
        return tuple(self._chooser.current()) if self._chooser is not None else ()

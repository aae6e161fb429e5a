"""A group that exists on paper: casts run on hosts with few cores, and what they cost is told to whoever places them.

Discrete events. The threads of a host's ranks share its cores fairly; a rank has an engine thread and its share of
workers, each with a queue. What the chooser's model takes for granted differs here (speed of copies, hops, the network,
pages touched for the first time), and every cost has noise from a seed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lazycast.materialize.placement.chooser import Choice, Chooser
from lazycast.materialize.placement.sample import Sample
from lazycast.materialize.placement.site import Site

COPY_BYTES_PER_S = 3.6e9
NET_BYTES_PER_S = 2e9
HOP_S = 400e-6
MESSAGE_CPU_S = 60e-6


@dataclass(frozen=True)
class Workload:
    """One kind of cast. `finish_s` is what each rank computes for itself from a shared hint."""

    payload_nbytes: int
    materialize_s: float
    value_nbytes: int
    staged: bool = False
    replicated: bool = False
    finish_s: float = 0.0
    held: bool = False  # it keeps its interpreter from other threads
    spread: float = 0.15  # of the materializer's cost from cast to cast: sigma of its logarithm


@dataclass
class _Task:
    left_s: float
    then: Callable[[], None]


@dataclass
class _Thread:
    """One thread, or several that take from one queue."""

    host: int
    threads: int
    running: list[_Task] = field(default_factory=list)
    queue: deque[_Task] = field(default_factory=deque)


@dataclass
class _Cast:
    placement: str
    depth: int
    began_s: float
    busy_s: dict[int, float]
    work_s: float
    payload_nbytes: int
    waited_for: int = 0
    materialize_s: float = 0.0


class Group:
    """Runs casts of a workload, so many at a time, each placed by `choose(depth)`; tells `learn` of each.

    Args:
        agree: whether the CPU time of all ranks is known, or that of the root's host only.
    """

    def __init__(self, site: Site, workload: Workload, seed: int, *, agree: bool = True) -> None:
        self.site = site
        self.workload = workload
        self.now_s = 0.0
        self.host_of = [host for host, ranks in enumerate(site.ranks) for _ in range(ranks)]
        self.root = self.host_of.index(site.root_host)
        self._agree = agree
        self._random = random.Random(seed)
        self._workers = [_Thread(host, site.threads(host)) for host in self.host_of]
        self._engine = _Thread(site.root_host, 1)
        self._helpers = [_Thread(host, site.helpers) for host in range(len(site.ranks))]
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._turn = 0
        self._shared = 0

    def run(
        self,
        casts: int,
        at_a_time: int,
        choose: Callable[[int], str],
        learn: Callable[[Sample, int], None] = lambda sample, payload_nbytes: None,
    ) -> list[float]:
        """Return the times at which casts ended, counted from now."""
        began_s, ended, started = self.now_s, [], 0
        under_way = 0

        def start() -> None:
            nonlocal started, under_way
            started += 1
            self._place(choose(under_way), under_way, done)
            under_way += 1

        def done(cast: _Cast) -> None:
            nonlocal under_way
            under_way -= 1
            ended.append(self.now_s - began_s)
            learn(self._sample(cast), cast.payload_nbytes)
            if started < casts:
                start()

        for _ in range(min(at_a_time, casts)):
            start()
        while len(ended) < casts:
            self._step()
        return ended

    # What a cast does

    def _place(self, placement: str, depth: int, done: Callable[[_Cast], None]) -> None:
        load, noise = self.workload, self._random.lognormvariate
        work_s = load.materialize_s * noise(0, load.spread)
        payload_nbytes = max(1, int(load.payload_nbytes * self._random.uniform(0.9, 1.1)))
        cast = _Cast(placement, depth, self.now_s, dict.fromkeys(range(len(self.host_of)), 0.0), work_s, payload_nbytes)
        moved = 0 if load.replicated or (placement == "root" and not load.staged) else payload_nbytes

        def arrived() -> None:
            if placement == "every":
                ranks = range(len(self.host_of))
                self._all(cast, [(rank, True, load.finish_s) for rank in ranks], lambda: self._end(cast, done))
            elif placement == "helpers":
                self._after(self._hop_s(0), helped)
            else:
                owners = [self.root] if placement == "root" else self._owners()
                self._all(cast, [(rank, True, self._share_s(rank, placement)) for rank in owners], shared)

        def helped() -> None:
            leaders = [self.host_of.index(host) for host in range(len(self.site.ranks))]
            parts = [(rank, True, MESSAGE_CPU_S + load.value_nbytes / COPY_BYTES_PER_S) for rank in leaders]
            self._all(cast, parts, lambda: self._after(self._hop_s(0), shared), self._helpers)

        def shared() -> None:
            alone = placement == "shard" and max(self.site.ranks) == 1
            value_nbytes = load.value_nbytes if placement == "root" and not load.staged else 0
            self._after(0.0 if alone else self._hop_s(value_nbytes), finish)

        def finish() -> None:
            if load.finish_s:
                ranks = range(len(self.host_of))
                self._all(cast, [(rank, False, load.finish_s) for rank in ranks], lambda: self._end(cast, done))
            else:
                self._end(cast, done)

        def encoded() -> None:
            if placement == "root" and not load.staged:
                arrived()
            else:
                self._after(self._hop_s(moved), arrived)

        copy_s = MESSAGE_CPU_S + moved / COPY_BYTES_PER_S
        cast.busy_s[self.root] += copy_s
        self._add(self._engine, copy_s, encoded)

    def _owners(self) -> list[int]:
        self._turn += 1
        first = [self.host_of.index(host) for host in range(len(self.site.ranks))]
        return [rank + self._turn % self.site.owners[host] for host, rank in enumerate(first)]

    def _share_s(self, rank: int, placement: str) -> float:
        if self.workload.staged or (placement == "shard" and self.site.ranks[self.host_of[rank]] == 1):
            return MESSAGE_CPU_S
        self._shared += 1
        warm = 1.0 if self._shared > 4 else 6.0  # pages of shared memory touched for the first time
        return MESSAGE_CPU_S + self.workload.value_nbytes / COPY_BYTES_PER_S * warm

    def _hop_s(self, nbytes: int) -> float:
        late_s = 0.005 if self._random.random() < 0.01 else 0.0  # a thread that did not wake in time
        network_s = nbytes / NET_BYTES_PER_S if len(self.site.ranks) > 1 else 0.0
        return HOP_S * self._random.lognormvariate(0, 0.3) + network_s + late_s

    def _all(
        self,
        cast: _Cast,
        parts: list[tuple[int, bool, float]],
        then: Callable[[], None],
        helpers: list[_Thread] | None = None,
    ) -> None:
        """Run, on each rank named, the materializer (or not) and so many seconds more; go on when all are done.

        With `helpers` (by host) those of the ranks' hosts run it.
        """
        cast.waited_for = len(parts)

        def part_done(materialize_s: float) -> None:
            cast.materialize_s = max(cast.materialize_s, materialize_s)
            cast.waited_for -= 1
            if not cast.waited_for:
                then()

        for rank, materializes, more_s in parts:
            work_s = cast.work_s * self._random.lognormvariate(0, 0.05) if materializes else 0.0
            cast.busy_s[rank] += work_s + more_s

            def started(rank: int = rank, work_s: float = work_s, more_s: float = more_s) -> None:
                began_s = self.now_s

                def ended() -> None:
                    part_done((self.now_s - began_s) * work_s / max(work_s + more_s, 1e-12))

                thread = self._workers[rank] if helpers is None else helpers[self.host_of[rank]]
                self._add(thread, work_s + more_s, ended)

            started()

    def _end(self, cast: _Cast, done: Callable[[_Cast], None]) -> None:
        self._after(self._hop_s(0) / 2, lambda: done(cast))

    def _sample(self, cast: _Cast) -> Sample:
        known = range(len(self.host_of))
        busy_s = {r: cast.busy_s[r] for r in known if self._agree or self.host_of[r] == self.site.root_host}
        shared = None if cast.placement == "every" else 40 if self.workload.staged else self.workload.value_nbytes
        held_s = None if cast.placement == "helpers" else cast.work_s if self.workload.held else 0.0
        took_s = self.now_s - cast.began_s
        return Sample(cast.placement, cast.depth, took_s, busy_s, cast.materialize_s, shared, held_s=held_s)

    # Events

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (self.now_s + seconds, self._count, then))

    def _add(self, thread: _Thread, seconds: float, then: Callable[[], None]) -> None:
        task = _Task(seconds, then)
        (thread.running if len(thread.running) < thread.threads else thread.queue).append(task)

    def _step(self) -> None:
        """Go on to the next event: a timer, or the end of a task."""
        threads = [thread for thread in (*self._workers, *self._helpers, self._engine) if thread.running]
        rates = []
        for host, cores in enumerate(self.site.cores):
            busy = sum(len(thread.running) for thread in threads if thread.host == host)
            rates.append(min(1.0, cores / busy) if busy else 1.0)
        timer_s = self._timers[0][0] if self._timers else float("inf")
        task_s = min(
            (self.now_s + task.left_s / rates[thread.host] for thread in threads for task in thread.running),
            default=float("inf"),
        )
        passed_s = min(timer_s, task_s) - self.now_s
        self.now_s += passed_s
        ended = []
        for thread in threads:
            for task in thread.running[:]:
                task.left_s -= passed_s * rates[thread.host]
                if task.left_s <= 1e-12:
                    thread.running.remove(task)
                    if thread.queue:
                        thread.running.append(thread.queue.popleft())
                    ended.append(task)
        for task in ended:
            task.then()
        while self._timers and self._timers[0][0] <= self.now_s:
            heapq.heappop(self._timers)[2]()


class Player:
    """A chooser that places a group's casts, and remembers what it chose."""

    def __init__(self, group: Group, name: str = "decode") -> None:
        self.group = group
        self.name = name
        self.chooser = Chooser(group.site, group.host_of)
        self.choices: list[Choice] = []

    def choose(self, depth: int) -> str:
        load = self.group.workload
        choice = self.chooser.choose(
            self.name, load.payload_nbytes, depth, staged=load.staged, replicated=load.replicated
        )
        self.choices.append(choice)
        return choice.placement

    def learn(self, sample: Sample, payload_nbytes: int) -> None:
        self.chooser.learn(self.name, self.group.workload.payload_nbytes, sample)

    def run(self, casts: int, at_a_time: int) -> list[float]:
        return self.group.run(casts, at_a_time, self.choose, self.learn)


def fixed(site: Site, workload: Workload, placement: str, casts: int, at_a_time: int, seed: int = 0) -> list[float]:
    """Return when casts end that are all placed alike."""
    return Group(site, workload, seed).run(casts, at_a_time, lambda depth: placement)

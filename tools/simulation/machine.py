"""Hosts, cores and links whose time is simulated: a heap of what is to happen. Knows nothing of casts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Speeds:
    """What machines and networks cost.

    Attributes:
        send_s: CPU time to send one message, in seconds; so for `receive_s`.
        latency_s: from one rank to another of its host, in seconds; `far_latency_s`: of another host.
        bandwidth: of what a host sends to others, in bytes a second.
        cores: per host. A rank handles one message at a time.
        one_machine: whether all hosts share these cores, as labels for processes of one machine do.
        notice_s: from the death of a rank to when its neighbours see that its sockets are closed.
        frame_nbytes: what a message takes on the network beside its header and body.
    """

    send_s: float = 10e-6
    receive_s: float = 20e-6
    latency_s: float = 20e-6
    far_latency_s: float = 50e-6
    bandwidth: float = 3e9
    cores: int = 8
    one_machine: bool = False
    notice_s: float = 1e-3
    frame_nbytes: int = 66


class Machines:
    """The hosts of a group, and simulated time. What happens at the same time happens in the order of `at`.

    Args: `hosts`: the ranks of each.
    """

    def __init__(self, hosts: Sequence[Sequence[int]], speeds: Speeds) -> None:
        self.now_s = 0.0
        self.speeds = speeds
        self._host_of = {rank: index for index, host in enumerate(hosts) for rank in host}
        # When each is free: heaps, or one heap for all.
        self._cores = [[0.0] * speeds.cores for _ in hosts]
        if speeds.one_machine:
            self._cores = self._cores[:1] * len(hosts)
        self._rank_free_s = dict.fromkeys(self._host_of, 0.0)
        self._uplink_free_s = [0.0] * len(hosts)
        self.cpu_s = dict.fromkeys(self._host_of, 0.0)  # by rank: what its messages took
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when_s, next(self._count), what))

    def run(self) -> None:
        """Let everything happen until nothing is left to happen."""
        while self._heap:
            self.now_s, _, what = heapq.heappop(self._heap)
            what()

    def spend(self, rank: int, cost_s: float) -> float:
        """Let the thread of a rank that handles messages work, after what it has to do; return when it is done."""
        done_s = self._rank_free_s[rank] = self._on_a_core(rank, self._rank_free_s[rank], cost_s)
        self.cpu_s[rank] += cost_s
        return done_s

    def work(self, rank: int, cost_s: float) -> float:
        """Let another thread of a rank work from now on; return when it is done."""
        return self._on_a_core(rank, self.now_s, cost_s)

    def _on_a_core(self, rank: int, from_s: float, cost_s: float) -> float:
        cores = self._cores[self._host_of[rank]]
        done_s = max(self.now_s, from_s, cores[0]) + cost_s
        heapq.heapreplace(cores, done_s)
        return done_s

    def arrives_s(self, sender: int, to: int, nbytes: int, leaves_s: float) -> float:
        """Return when a message is there. Those to other hosts share what their host can send."""
        here = self._host_of[sender]
        if here == self._host_of[to]:
            return leaves_s + self.speeds.latency_s
        took_s = (nbytes + self.speeds.frame_nbytes) / self.speeds.bandwidth
        self._uplink_free_s[here] = max(leaves_s, self._uplink_free_s[here]) + took_s
        return self._uplink_free_s[here] + self.speeds.far_latency_s

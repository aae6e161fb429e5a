"""Casts between real ranks, processes of this machine, whose hosts are labels or namespaces: what is predicted."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import lazycast
from lazycast.core.root import RootLane
from lazycast.net.wire import AnyMessage, Report
from tests.children import die_with_parent
from tests.namespaces import End, hosts_at_a_switch

REST_S = 0.02
TIMEOUT_S = 120


@dataclass(frozen=True)
class Seen:
    """What one rank saw; times in seconds by the machine's monotonic clock, by cast.

    Attributes:
        begun_s: when the call was made, `valued_s` when this rank had made its value, `told_s` when the call returned.
        reports: of other ranks, that came to this one, of all casts.
        cpu_s: processor time of this rank's process for all casts, in seconds.
    """

    begun_s: list[float]
    valued_s: list[float]
    told_s: list[float]
    reports: int
    cpu_s: float


class Reports:
    """Counts the reports of other ranks that come to this one, of all objects made after it."""

    def __init__(self) -> None:
        self.count = 0
        lock, take = threading.Lock(), RootLane.on_message

        def counted(lane: RootLane, message: AnyMessage, body: memoryview) -> None:
            if isinstance(message, Report) and message.rank != 0:
                with lock:
                    self.count += 1
            take(lane, message, body)

        RootLane.on_message = counted  # type: ignore[method-assign]


def on_host(per_host: int) -> None:
    """Give this rank the label of its host, of so many ranks each."""
    os.environ["LAZYCAST_HOST"] = f"h{int(os.environ['LAZYCAST_RANK']) // per_host}"


def cast(casts: int) -> Seen:
    """Cast 1 KiB after a rest, again and again: what every rank runs."""
    got = Reports()
    before, cpu_before_s = 0, 0.0
    begun_s, valued_s, told_s = [], [], []
    with lazycast.LazyBroadcast(made, placement="every", agree=True) as lazy:
        for seq in range(casts + 1):
            if lazy.is_root:
                time.sleep(REST_S)  # all others have asked meanwhile
            begun = time.monotonic()
            value_s = lazy.broadcast(bytes(1024) if lazy.is_root else None)
            told = time.monotonic()
            if seq == 0:  # in which code and connections are new
                before, cpu_before_s = got.count, time.process_time()
                continue
            begun_s.append(begun)
            valued_s.append(value_s)
            told_s.append(told)
        reports, cpu_s = got.count - before, time.process_time() - cpu_before_s
    return Seen(begun_s, valued_s, told_s, reports, cpu_s)


def cast_on_label(per_host: int, casts: int) -> Seen:
    """`cast` on hosts that are labels, of so many ranks each."""
    on_host(per_host)
    return cast(casts)


def made(_payload: bytes) -> float:
    """Say when this rank made its value."""
    return time.monotonic()


def medians(seen: Sequence[Seen]) -> dict[str, float]:
    """Return medians over casts of the seconds until the last rank had its value, and its verdict.

    And of the root, per cast: the reports that came to it, and its processor time in seconds.
    """
    root = seen[0]

    def median_s(ends_s: list[list[float]]) -> float:
        last_s = [max(of_ranks) for of_ranks in zip(*ends_s, strict=True)]
        return statistics.median(last - begun for last, begun in zip(last_s, root.begun_s, strict=True))

    return {
        "value_s": median_s([rank.valued_s for rank in seen]),
        "verdict_s": median_s([rank.told_s for rank in seen]),
        "reports": root.reports / len(root.begun_s),
        "root_cpu_s": root.cpu_s / len(root.begun_s),
    }


def measure(ranks: int, per_host: int, casts: int) -> dict[str, float]:
    """Return the medians of ranks on the local backend, whose hosts are labels.

    Raises:
        LaunchError: a rank raised or died.
        CastTimeoutError: the ranks took longer than `TIMEOUT_S`.
    """
    took = lazycast.launch(cast_on_label, ranks=ranks, backend="local", args=(per_host, casts), timeout_s=TIMEOUT_S)
    return medians(took)


def measure_apart(ranks: int, per_host: int, casts: int) -> dict[str, float]:
    """Return the medians of ranks on torch, whose hosts are network namespaces at a switch. Needs root and iproute2.

    Raises:
        RuntimeError: a rank failed; with what it said.
        subprocess.TimeoutExpired: a rank took longer than `TIMEOUT_S`.
    """
    with hosts_at_a_switch(ranks // per_host) as hosts, contextlib.ExitStack() as started:
        running: list[subprocess.Popen[str]] = []
        for rank in range(ranks):
            running.append(_start(rank, ranks, hosts, per_host, casts))
            started.callback(running[-1].wait)
            started.callback(running[-1].kill)
        said = [process.communicate(timeout=TIMEOUT_S) for process in running]
    for rank, (process, (_, errors)) in enumerate(zip(running, said, strict=True)):
        if process.returncode != 0:
            raise RuntimeError(f"rank {rank} ended with {process.returncode}: {errors}")
    return medians([Seen(**json.loads(out)) for out, _ in said])


def _start(rank: int, ranks: int, hosts: Sequence[End], per_host: int, casts: int) -> subprocess.Popen[str]:
    host = hosts[rank // per_host]
    group = {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29581"}
    return subprocess.Popen(
        [*host.within, sys.executable, "-m", "tools.simulation.torch_rank", "--casts", str(casts)],
        env={**os.environ, **group, "GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )

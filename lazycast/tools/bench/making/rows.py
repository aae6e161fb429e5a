"""How each row is measured: what the ways are, and what a round of them is. Each function is collective.

Each round takes every way in turn and begins with another one; what is brought back are the figures of each round.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lazycast.codec.pickling import encode
from lazycast.tools.bench.making import lru, strangers
from lazycast.tools.bench.making.ways import CHAT_NBYTES, QUIET, STRANGERS
from lazycast.tools.bench.making.workloads import WORKLOADS, chat_sequence
from lazycast.tools.bench.qps.ways import Way

if TYPE_CHECKING:
    from lazycast.tools.bench.making.measure import Bench

Said = Callable[[int], None]
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")

SCHEDULED = ("lazycast-helpers", "lazycast-shard", "lazycast-every", "executor", "shared-pool")
ALBUMS = ("lazycast-shard", "lazycast-each", "lazycast-each-shard", "lazycast-helpers", "executor")
VALUED = ("lazycast-helpers", "lazycast-shard", "executor", "pool", "shared-pool")


def _turned(names: Sequence[str], turn: int) -> list[str]:
    turn %= len(names)
    return [*names[turn:], *names[:turn]]


@contextlib.contextmanager
def _opened(bench: Bench, workload: str, names: tuple[str, ...]) -> Iterator[dict[str, Way]]:
    """Ways that have made a value of each payload, so that all that begins with a first request has begun."""
    ways = bench.open(workload, names)
    for way in ways.values():
        for index, payload in enumerate(bench.pool(workload)[:4]):
            bench.verify(way, index, bench.single(way, payload)[1])
    yield ways
    bench.close(ways)


def watched(bench: Bench, said: Said) -> dict[str, Any]:
    """The scheduler's steps with nothing beside it, beside strangers, and beside each way: [round][rank]."""
    plan = bench.plan
    with contextlib.ExitStack() as stack:
        ways = stack.enter_context(_opened(bench, "tokens", SCHEDULED))
        others: Any = None
        if bench.is_root:
            others = stack.enter_context(strangers.at_work("tokens", plan.rate, plan.seconds, plan.helpers))
        names = (QUIET, STRANGERS, *ways)
        found: dict[str, Any] = {name: [] for name in names}
        for turn in range(plan.rounds):
            said(turn)
            for name in _turned(names, turn):
                found[name].append(bench.watched(name, ways.get(name), others, turn))
    return found


def photos(bench: Bench, said: Said) -> dict[str, Any]:
    """Photos a second in a closed loop, and what all cores could make if they did nothing else."""
    names = ("lazycast-helpers", "lazycast-shard", "executor", "shared-pool")
    with _opened(bench, "photo", names) as ways:
        found: dict[str, Any] = {name: [] for name in (*ways, "ideal")}
        for turn in range(bench.plan.rounds):
            said(turn)
            found["ideal"].append(_ideal(bench))
            for name in _turned(tuple(ways), turn):
                found[name].append(bench.closed(ways[name], bench.plan.photos))
    return found


def _ideal(bench: Bench) -> float:
    """Make photos on as many ranks at once as there are cores; return how many a second all cores could make."""
    cores, calls = len(os.sched_getaffinity(0)), 8
    bench.sync.gather()
    cpu_s = 0.0
    if bench.place.rank < cores:
        began_s = time.thread_time()
        for call in range(calls):
            WORKLOADS["photo"].materialize(bench.pool("photo")[call % 4])
        cpu_s = (time.thread_time() - began_s) / calls
    spent = [float(blob) for blob in bench.sync.gather(repr(cpu_s).encode())]
    return cores * len([one for one in spent if one]) / sum(spent)


def value(bench: Bench, said: Said) -> dict[str, Any]:
    """What a request for 10 MB takes beside the making: seconds, of single requests."""
    with _opened(bench, "value", VALUED) as ways:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(bench.plan.rounds):
            said(turn)
            for name in _turned(tuple(ways), turn):
                for number in range(bench.plan.singles):
                    took_s, (array, made_s) = bench.single(ways[name], number)
                    found[name].append(took_s - made_s)
                    del array
    return found


def album(bench: Bench, said: Said) -> dict[str, Any]:
    """One request of eight photos: seconds."""
    with _opened(bench, "album", ALBUMS) as ways:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(bench.plan.rounds):
            said(turn)
            for name in _turned(tuple(ways), turn):
                found[name] += [bench.single(ways[name], bench.pool("album")[index])[0] for index in range(2)]
    return found


def hit(bench: Bench, said: Said) -> dict[str, Any]:
    """10 MB that all ranks remember, and a small cast, one after the other: seconds."""
    with _opened(bench, "value", ("lazycast-memo",)) as ways:
        ways |= bench.open("value", ("lazycast-small",))
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(bench.plan.rounds):
            said(turn)
            for number in range(4 * bench.plan.singles):
                for name in _turned(tuple(ways), number):
                    found[name].append(bench.single(ways[name], number % 4)[0])
        bench.close({"lazycast-small": ways.pop("lazycast-small")})
    return found


def killed(bench: Bench, said: Said) -> dict[str, Any]:
    """A helper that is killed in its work: seconds until another's value is there, beside the work, and from its death
    until a new helper is ready.
    """
    ways = bench.open("killed", ("lazycast-helpers",))
    marks = [bench.folder / f"mark-{number}" for number in range(bench.plan.rounds + 1)]
    way = ways["lazycast-helpers"]
    found: dict[str, list[float]] = {"lazycast-helpers": [], "replaced": []}
    for turn, mark in enumerate(marks):
        said(turn)
        _until_ready(bench, way)
        took_s, worked_s = bench.single(way, str(mark))
        replaced_s = _until_ready(bench, way)
        if turn:  # at the first one helpers have only just begun
            found["lazycast-helpers"].append(took_s - worked_s)
            if bench.is_root:
                found["replaced"].append(replaced_s - mark.stat().st_mtime)
    bench.close(ways)
    return found


def _until_ready(bench: Bench, way: Way) -> float:
    """Wait until a helper that was killed has been replaced: what is measured is one death. Return when that was."""
    stats = way.stats()
    while bench.is_root and stats is not None and stats.helpers < bench.plan.helpers:
        time.sleep(0.002)
        stats = way.stats()
    ready_s = time.time()
    bench.sync.gather()
    return ready_s


def chat(bench: Bench, said: Said) -> dict[str, Any]:
    """Photos that are asked for again and again: how many are made a second, and what is remembered in the end."""
    sequence = chat_sequence(bench.plan.chat)
    sequence.append(sequence[-1])  # what goes is said with the next cast
    pool = bench.pool("chat")
    found: dict[str, Any] = {}
    for name in ("lazycast-memo", "lazycast-shard"):
        ways = bench.open("chat", (name,))
        began_s = time.monotonic()
        for at, index in enumerate(sequence):
            said(bench.plan.rounds * at // len(sequence))
            value = bench.single(ways[name], pool[index])[1]
            if at % 100 == 0:
                bench.verify(ways[name], index, value)
        took_s = time.monotonic() - began_s
        stats = ways[name].stats()
        assert stats is not None
        found[name] = {"qps": len(sequence) / took_s}
        if name == "lazycast-memo":
            hits, values = stats.memo_hits, stats.memo_values
            evictions = len(sequence) - hits - values
            found[name] |= {"hits": hits, "values": values, "nbytes": stats.memo_nbytes, "evictions": evictions}
        bench.close(ways)
    found["simulated"] = simulated(bench, sequence)._asdict()
    return found


def simulated(bench: Bench, sequence: Sequence[int]) -> lru.Remembered:
    """What a memory of that size should have come to. A value takes its encoding, in whole pages."""
    sizes: dict[int, int] = {}
    for index in set(sequence):
        nbytes = encode(WORKLOADS["chat"].materialize(bench.pool("chat")[index])).nbytes
        sizes[index] = -(-nbytes // _PAGE_NBYTES) * _PAGE_NBYTES
    return lru.simulate(((index, sizes[index]) for index in sequence), CHAT_NBYTES)


ROWS: dict[str, Callable[[Bench, Said], dict[str, Any]]] = {
    "scheduler": watched,
    "photos": photos,
    "value": value,
    "album": album,
    "hit": hit,
    "killed": killed,
    "chat": chat,
}

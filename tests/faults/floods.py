"""What a rank that has been taken over sends to the root without end, though each message by itself is well formed."""

from __future__ import annotations

import mmap
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazycast import LazyBroadcast, Tuning
from lazycast.net import wire
from lazycast.net.host import mesh as mesh_module

ATTACKER = 2
MIB = 1 << 20
#: How much a flood is: so many messages, or so many bytes.
MESSAGES, NBYTES = 4_000, 24 * MIB
#: What a rank may take beside, which is far less than the flood.
ALLOWED_NBYTES = 12 * MIB
NONE_SUCH = 10**6  # no cast has this number
LONG = wire.Failure("decode", ATTACKER, "h", "x" * 8000)

Floods = dict[str, Callable[[int], wire.AnyMessage]]
#: By name: the n-th message. The root answers none of these, and each of those below.
UNANSWERED: Floods = {
    "reports on casts that are none": lambda n: wire.Report(ATTACKER, NONE_SUCH + n, True, LONG),
    "reads of casts that are none": lambda n: wire.Read(ATTACKER, list(range(NONE_SUCH + n, NONE_SUCH + n + 500))),
    "reads of casts to come": lambda n: wire.Read(ATTACKER, list(range(n, n + 500))),
    "answers to no roll call": lambda n: wire.Present(ATTACKER),
    "figures": lambda n: wire.Figures(ATTACKER, 1.0, 1.0, {f"x{n}": 1}, {"y" * 4000 + str(n): 1}, {f"e{n}": 1}, {}),
}
ANSWERED: Floods = {
    "queries": lambda n: wire.Query(ATTACKER, n, None, "k" * 1000, 0.0),
    "needs of code that is none": lambda n: wire.Need(ATTACKER, f"{n}"),
}


def resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def send_all(lazy: LazyBroadcast[Any, Any], make: Callable[[int], wire.AnyMessage]) -> int:
    """Send to the root as fast as the kernel takes it, past this rank's own outbox; return how many."""
    sock = lazy._lane.near.relay._mesh._peers[0].sock  # type: ignore[union-attr]
    sent = nbytes = 0
    while sent < MESSAGES and nbytes < NBYTES:
        header = wire.encode(make(sent))
        packet = mesh_module._PREFIX.pack(mesh_module._MESSAGE, len(header), 0, 0, 0, 0) + header
        try:
            sock.send(packet, mesh_module._SEND_FLAGS)
        except BlockingIOError:
            if not select.select([], [sock], [], 5.0)[1]:
                break  # the root takes no more: that is a bound as well
            continue
        sent, nbytes = sent + 1, nbytes + len(packet)
    return sent


def stop_reading(lazy: LazyBroadcast[Any, Any]) -> None:
    """From here on nothing that the others send to this rank is taken off its sockets."""
    mesh: Any = lazy._lane.near.relay._mesh  # type: ignore[union-attr]
    mesh._closing = True
    os.eventfd_write(mesh._wake_fd, 1)
    mesh._thread.join(30)
    assert not mesh._thread.is_alive()


def flooded(floods: Floods, folder: str, *, reads: bool) -> dict[str, tuple[int, int]]:
    """One group for each flood. Returns the bytes that this rank has taken meanwhile, and the casts that it got; of the
    attacker, what it has sent.
    """
    return {name: flooded_with(make, Path(folder, name), reads=reads) for name, make in floods.items()}


def wait_for(path: Path) -> None:
    end_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end_s, f"there is no {path.name}"
        time.sleep(0.005)


def flooded_with(make: Callable[[int], wire.AnyMessage], over: Path, *, reads: bool) -> tuple[int, int]:
    with LazyBroadcast(timeout_s=20, agree=reads, tuning=Tuning(max_inflight=10**6)) as lazy:
        lazy.broadcast(1)
        before, casts, sent, more = resident_nbytes(), 0, 0, True
        if lazy.rank == ATTACKER:
            if not reads:
                stop_reading(lazy)
            sent = send_all(lazy, make)
            over.touch()
            if not reads:
                wait_for(over.with_suffix(".done"))  # who closes before fails a cast that the root has begun meanwhile
                return 0, sent
        while more:
            more = lazy.broadcast(not over.exists() if lazy.is_root else None)
            casts += 1
            time.sleep(0.002 if lazy.is_root else 0)
        if lazy.is_root:
            over.with_suffix(".done").touch()
        return resident_nbytes() - before, sent if lazy.rank == ATTACKER else casts

"""The contract of `lazycast.net.backend`, checked on the backend itself."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from lazycast.errors import CastTimeoutError
from lazycast.net.backend import Context, Link
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same


@dataclass
class Recorder:
    """A sink that keeps what it is given: (peer, header, body) in order, then (peer, reason) of the end."""

    messages: queue.Queue[tuple[int, bytes, bytes]] = field(default_factory=queue.Queue)
    ends: queue.Queue[tuple[int, str | None]] = field(default_factory=queue.Queue)
    bodies: dict[int, bytearray] = field(default_factory=dict)

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        self.bodies[peer] = bytearray(nbytes)
        return memoryview(self.bodies[peer])

    def deliver(self, peer: int, header: bytes) -> None:
        self.messages.put((peer, header, bytes(self.bodies.pop(peer, b""))))

    def gone(self, peer: int, reason: str | None) -> None:
        self.ends.put((peer, reason))

    def take(self, count: int) -> dict[int, list[tuple[bytes, bytes]]]:
        """Wait for `count` messages; return them by peer, in order."""
        got: dict[int, list[tuple[bytes, bytes]]] = {}
        for _ in range(count):
            peer, header, body = self.messages.get(timeout=TIMEOUT_S)
            got.setdefault(peer, []).append((header, body))
        return got


def _connect(rank: Rank, sink: Recorder | None = None) -> tuple[Context, Link, Recorder, list[int]]:
    """Connect everybody with everybody."""
    others = [r for r in range(rank.size) if r != rank.rank]
    context, sink = rank.backend.open(timeout_s=TIMEOUT_S), sink or Recorder()
    return context, context.connect(others, sink, timeout_s=TIMEOUT_S), sink, others


def _close(context: Context, link: Link, sink: Recorder, others: list[int]) -> None:
    link.close(timeout_s=TIMEOUT_S)
    context.close()
    ends = sorted((sink.ends.get(timeout=TIMEOUT_S) for _ in others), key=lambda end: end[0])
    same(ends, [(peer, None) for peer in others], "ends")
    check(sink.messages.empty() and sink.ends.empty(), "something came after the farewells")


def _body(sender: int, receiver: int, nbytes: int) -> bytes:
    return np.random.default_rng([sender, receiver, nbytes]).bytes(nbytes)


@behaviour()
def exchange_gives_every_blob_to_every_rank(rank: Rank) -> None:
    context = rank.backend.open(timeout_s=TIMEOUT_S)
    for nbytes in (0, 1, 1000, 64 << 10):
        got = context.exchange(_body(rank.rank, 0, nbytes), timeout_s=TIMEOUT_S)
        same([bytes(blob) for blob in got], [_body(r, 0, nbytes) for r in range(rank.size)], f"{nbytes} bytes")
    context.close()


@behaviour()
def messages_of_all_sizes_arrive_whole_and_in_order(rank: Rank) -> None:
    context, link, sink, others = _connect(rank)
    limit = link.max_body_nbytes
    sizes = [0, 1, 63, 1000, 32 << 10, 65535, 65536, 65537, min(limit, 1 << 20), 3, min(limit, 4 << 20), 0, 7]
    for index, nbytes in enumerate(sizes):
        for peer in others:
            body = _body(rank.rank, peer, nbytes)
            link.send(peer, b"%d" % index + b"h" * (index * 2000), memoryview(body) if nbytes else None)
    got = sink.take(len(sizes) * len(others))
    for peer in others:
        for index, (nbytes, (header, arrived)) in enumerate(zip(sizes, got[peer], strict=True)):
            same(header, b"%d" % index + b"h" * (index * 2000), f"header {index} from {peer}")
            same(arrived, _body(peer, rank.rank, nbytes), f"body {index} from {peer}")
    _close(context, link, sink, others)


class Busy(Recorder):
    """A sink whose first delivery takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck, self.free = threading.Event(), threading.Event()

    def deliver(self, peer: int, header: bytes) -> None:
        self.stuck.set()
        self.free.wait(TIMEOUT_S)
        super().deliver(peer, header)


@behaviour(min_size=2)
def send_does_not_wait_for_a_peer_that_is_busy(rank: Rank) -> None:
    busy = rank.rank == rank.last
    sink = Busy() if busy else Recorder()
    context, link, _, others = _connect(rank, sink)
    if isinstance(sink, Busy):
        check(sink.stuck.wait(TIMEOUT_S), "the first message did not arrive")
    else:
        body = bytes(min(link.max_body_nbytes, 1 << 20))
        for _ in range(17):
            link.send(rank.last, b"more", memoryview(body))
    rank.meet()  # nobody got stuck in send()
    if isinstance(sink, Busy):
        sink.free.set()
        got = sink.take(17 * len(others))
        same({peer: len(messages) for peer, messages in sorted(got.items())}, dict.fromkeys(others, 17), "messages")
    rank.meet()
    _close(context, link, sink, others)


@behaviour(min_size=2)
def contexts_do_not_see_each_other(rank: Rank) -> None:
    both = [_connect(rank), _connect(rank)]
    for number, (_, link, _, others) in enumerate(both):
        for peer in others:
            link.send(peer, b"context %d" % number)
    for number, (_, _, sink, others) in reversed(list(enumerate(both))):
        got = sink.take(len(others))
        same(got, {peer: [(b"context %d" % number, b"")] for peer in got}, f"context {number}")
    for parts in reversed(both):
        _close(*parts)


@behaviour(min_size=2)
def a_farewell_is_answered_by_a_rank_that_does_not_close(rank: Rank) -> None:
    context, link, sink, others = _connect(rank)
    if rank.rank == 0:
        began_s = time.monotonic()
        link.close(timeout_s=TIMEOUT_S)
        check(time.monotonic() - began_s < TIMEOUT_S / 2, "close() waited for the others' own close")
    else:
        same(sink.ends.get(timeout=TIMEOUT_S), (0, None), "end of rank 0")
        link.send(0, b"into the void")
    rank.meet()
    link.close(timeout_s=TIMEOUT_S)
    link.close(timeout_s=TIMEOUT_S)
    context.close()
    context.close()
    if rank.rank != 0:
        others.remove(0)
    ends = sorted(sink.ends.get(timeout=TIMEOUT_S)[0] for _ in others)
    same(ends, others, "ends")


@behaviour(min_size=2)
def a_rank_that_does_not_come_is_named(rank: Rank) -> None:
    context = rank.backend.open(timeout_s=TIMEOUT_S)
    rank.meet()  # the others come within that time of each other
    if rank.rank != rank.last:
        raises(CastTimeoutError, rf"rank {rank.last}\b", lambda: context.exchange(b"", timeout_s=2.0))
    rank.meet()
    context.close()


@behaviour()
def fifty_contexts_in_a_row(rank: Rank) -> None:
    rank.meet()
    threads = threading.active_count()
    rank.meet()  # ranks may be threads of one process: all have counted before any begins
    for _ in range(50):
        _close(*_connect(rank))
    rank.meet()
    deadline_s = time.monotonic() + TIMEOUT_S
    while threading.active_count() > threads and time.monotonic() < deadline_s:
        time.sleep(0.01)
    check(threading.active_count() <= threads, f"threads left: {threading.enumerate()}")

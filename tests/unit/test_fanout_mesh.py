"""Two or three meshes in one process: order, full sockets, bodies of each kind, farewells and losses, descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lazycast.net.host.arena import Slot
from lazycast.net.host.memory import PAGE
from lazycast.net.host.mesh import (
    _BRINGS_ARENA,
    _IN_ARENA,
    _IN_SEGMENT,
    _MESSAGE,
    _PREFIX,
    COPY_NBYTES,
    INLINE_NBYTES,
    Mesh,
)
from tests.locking import waits_for

WAIT_S = 30.0
ARENA_NBYTES = 1 << 20


class Sink:
    """Keeps what comes. Its thread can be held up, so that a mesh does not read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.entered = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.messages: list[tuple[int, bytes, memoryview]] = []
        self.ended: dict[int, str | None] = {}
        self.failure: Exception | None = None

    def host_message(self, peer: int, header: bytes, body: memoryview) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure
        with self._changed:
            assert peer not in self.ended, "a message after the end"
            self.messages.append((peer, header, body))
            self._changed.notify_all()

    def gone(self, peer: int, reason: str | None) -> None:
        with self._changed:
            assert peer not in self.ended, "a second end"
            self.ended[peer] = reason
            self._changed.notify_all()

    def wait(self, true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(true, WAIT_S), (len(self.messages), self.ended)

    def take(self, count: int) -> list[tuple[int, bytes, memoryview]]:
        self.wait(lambda: len(self.messages) >= count)
        with self._changed:
            taken, self.messages[:] = self.messages[:count], self.messages[count:]
        return taken

    def end_of(self, peer: int) -> str | None:
        self.wait(lambda: peer in self.ended)
        return self.ended[peer]


class Hosted:
    """Meshes of `ranks`, connected to each other."""

    def __init__(self, ranks: list[int], *, arena_nbytes: int, copy_all: bool) -> None:
        self.sockets: dict[int, dict[int, socket.socket]] = {rank: {} for rank in ranks}
        for high in ranks:
            for low in [rank for rank in ranks if rank < high]:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.sockets[high][low], self.sockets[low][high] = pair
        self.meshes = {rank: Mesh(ranks, rank, self.sockets[rank], arena_nbytes, copy_all=copy_all) for rank in ranks}
        self.sinks = {rank: Sink() for rank in ranks}

    def start(self) -> Hosted:
        for rank, mesh in self.meshes.items():
            mesh.start(self.sinks[rank], f"mesh-{rank}")
        return self


@contextlib.contextmanager
def hosted(*ranks: int, arena_nbytes: int = ARENA_NBYTES, copy_all: bool = False) -> Iterator[Hosted]:
    host = Hosted(list(ranks), arena_nbytes=arena_nbytes, copy_all=copy_all).start()
    try:
        yield host
    finally:
        for sink in host.sinks.values():
            sink.open.set()
        closers = [threading.Thread(target=mesh.close, kwargs={"timeout_s": 10}) for mesh in host.meshes.values()]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(WAIT_S)
            assert not closer.is_alive()
        for sink in host.sinks.values():
            sink.messages.clear()


def pattern(nbytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8).tobytes()


def share(mesh: Mesh, peers: list[int], header: bytes, body: bytes) -> None:
    slot = mesh.allocate(len(body))
    slot.view[:] = body
    mesh.share(peers, header, slot)


def until_free(mesh: Mesh, slots: int = 0) -> None:
    """Wait until the thread that has handed over a message has let go of it too."""
    deadline_s = time.monotonic() + WAIT_S
    while mesh.in_use()[0] != slots:
        assert time.monotonic() < deadline_s, mesh.in_use()
        time.sleep(0.001)


def numbers(messages: list[tuple[int, bytes, memoryview]]) -> list[int]:
    return [struct.unpack("<I", header)[0] for _, header, _ in messages]


# Messages


def test_all_that_is_said_to_a_peer_waits_for_its_lock() -> None:
    with hosted(0, 1) as host:
        mesh = host.meshes[0]
        for call in (
            lambda: mesh.send(1, b"small"),
            lambda: share(mesh, [1], b"in the arena", bytes(ARENA_NBYTES // 2)),
            lambda: share(mesh, [1], b"in a segment", bytes(ARENA_NBYTES + 1)),
        ):
            assert waits_for(mesh._peers[1].lock, call)
        assert [header for _, header, _ in host.sinks[1].take(3)] == [b"small", b"in the arena", b"in a segment"]


@pytest.mark.parametrize("nbytes", [0, 1, 63, 4096, INLINE_NBYTES])
def test_a_body_in_a_packet_arrives_as_memory_of_ones_own(nbytes: int) -> None:
    body = pattern(nbytes)
    with hosted(0, 1) as host:
        host.meshes[0].send(1, b"header", memoryview(body))
        ((peer, header, got),) = host.sinks[1].take(1)
        assert (peer, header, bytes(got)) == (0, b"header", body)
        if nbytes:
            got[:] = bytes(nbytes)


@pytest.mark.parametrize(
    ("nbytes", "copy_all", "held"),
    [
        (INLINE_NBYTES + 1, False, 0),
        (COPY_NBYTES - 1, False, 0),
        (COPY_NBYTES, False, 1),
        (300_001, False, 1),
        (300_001, True, 0),
    ],
)
def test_a_body_in_shared_memory_is_copied_or_keeps_its_slot(nbytes: int, copy_all: bool, held: int) -> None:
    with hosted(2, 5, 7, copy_all=copy_all) as host:
        for seed in range(3):
            body = pattern(nbytes, seed)
            share(host.meshes[5], [2, 7], b"h", body)
            ((_, _, low),), ((_, _, high),) = host.sinks[2].take(1), host.sinks[7].take(1)
            assert bytes(low) == bytes(high) == body
            until_free(host.meshes[5], held)
            low[:] = bytes(nbytes)
            assert bytes(high) == body
            del low
            assert host.meshes[5].in_use()[0] == held
            del high
            until_free(host.meshes[5])


def test_segments_arrive_and_leave_nothing_behind() -> None:
    with hosted(0, 1, arena_nbytes=64 * PAGE) as host:
        descriptors = len(os.listdir("/proc/self/fd")) + 2  # the arena and its ledger, which the first message brings
        share(host.meshes[0], [1], b"first", bytes(40 * PAGE))
        held = []
        for seed in range(2):
            body = pattern(30 * PAGE - seed, seed)
            share(host.meshes[0], [1], b"", body)
            held.append(body)
        got = host.sinks[1].take(3)
        assert [bytes(body) for _, _, body in got[1:]] == held
        assert host.meshes[0].in_use()[0] == 3
        del got
        until_free(host.meshes[0])
        deadline_s = time.monotonic() + WAIT_S
        while len(os.listdir("/proc/self/fd")) != descriptors:
            assert time.monotonic() < deadline_s, sorted(os.listdir("/proc/self/fd"))
            time.sleep(0.001)


def test_the_writers_own_value_is_private() -> None:
    with hosted(0, 1) as host:
        slot = host.meshes[0].allocate(COPY_NBYTES)
        slot.view[:] = b"\1" * COPY_NBYTES
        mine = host.meshes[0].own_view(slot)
        host.meshes[0].share([1], b"", slot)
        del slot
        ((_, _, theirs),) = host.sinks[1].take(1)
        mine[:] = b"\2" * COPY_NBYTES
        assert bytes(theirs) == b"\1" * COPY_NBYTES
        del theirs
        assert host.meshes[0].in_use()[0] == 1
        del mine
        until_free(host.meshes[0])


@pytest.mark.parametrize("nbytes", [40_000, 100_000, 1_000_000])
def test_a_header_of_any_size_arrives_or_is_refused_where_it_is_sent(nbytes: int) -> None:
    header = pattern(nbytes)
    with hosted(0, 1) as host:
        try:
            host.meshes[0].send(1, header)
        except ValueError:
            expected = []
        else:
            expected = [header]
        host.meshes[0].send(1, b"after")
        got = host.sinks[1].messages
        host.sinks[1].wait(lambda: bool(got and got[-1][1] == b"after") or 0 in host.sinks[1].ended)
        assert not host.sinks[1].ended, host.sinks[1].ended
        assert [header for _, header, _ in got] == [*expected, b"after"]


# Order, and peers that do not read


def test_messages_to_a_peer_that_does_not_read_wait_and_arrive_in_order() -> None:
    count = 5_000
    with hosted(0, 1, 2) as host:
        host.sinks[1].open.clear()
        for n in range(count):  # returns at once each time, or this test never ends
            host.meshes[0].send(1, struct.pack("<I", n), memoryview(bytes(n % 500)))
        host.meshes[0].send(2, b"meanwhile")
        assert host.sinks[2].take(1)[0][1] == b"meanwhile"
        assert host.sinks[1].messages == []
        host.sinks[1].open.set()
        got = host.sinks[1].take(count)
        assert numbers(got) == list(range(count))
        assert all(body.nbytes == n % 500 for n, (_, _, body) in enumerate(got))
        host.meshes[0].send(1, b"last")
        assert host.sinks[1].take(1)[0][1] == b"last"


def test_bodies_and_their_descriptors_wait_too() -> None:
    with hosted(0, 1, arena_nbytes=32 * PAGE) as host:
        host.sinks[1].open.clear()
        for n in range(2_000):
            host.meshes[0].send(1, struct.pack("<I", n))
        descriptors = len(os.listdir("/proc/self/fd"))
        bodies = [pattern(20 * PAGE + n, n) for n in range(2)]  # the first in the arena, the second in a segment
        for n, body in enumerate(bodies):
            share(host.meshes[0], [1], struct.pack("<I", 2_000 + n), body)
        host.meshes[0].send(1, struct.pack("<I", 2_002))
        host.sinks[1].open.set()
        got = host.sinks[1].take(2_003)
        assert numbers(got) == list(range(2_003))
        assert [bytes(body) for _, _, body in got[2_000:2_002]] == bodies
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2  # the arena and its ledger
        del got
        until_free(host.meshes[0])


def test_each_of_many_threads_is_heard_in_its_order() -> None:
    threads_n, each = 6, 400
    with hosted(0, 1) as host:

        def send(thread: int) -> None:
            for n in range(each):
                if n % 40 == 0:
                    share(host.meshes[0], [1], struct.pack("<I", thread * each + n), bytes([thread]) * 20_000)
                else:
                    host.meshes[0].send(1, struct.pack("<I", thread * each + n))

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(threads_n)]
        for thread in threads:
            thread.start()
        got = host.sinks[1].take(threads_n * each)
        for thread in threads:
            thread.join(WAIT_S)
        for index in range(threads_n):
            mine = [n for n in numbers(got) if n // each == index]
            assert mine == list(range(index * each, (index + 1) * each))


def test_two_that_flood_each_other_both_get_everything() -> None:
    count = 3_000
    with hosted(0, 1) as host:

        def flood(me: int) -> None:
            for n in range(count):
                host.meshes[me].send(1 - me, struct.pack("<I", n), memoryview(bytes(700)))

        threads = [threading.Thread(target=flood, args=(me,)) for me in (0, 1)]
        for thread in threads:
            thread.start()
        for me in (0, 1):
            assert numbers(host.sinks[me].take(count)) == list(range(count))
        for thread in threads:
            thread.join(WAIT_S)


# Ends


def test_close_is_a_farewell_after_all_that_was_sent() -> None:
    with hosted(0, 1, 2) as host:
        for n in range(100):
            host.meshes[0].send(1, struct.pack("<I", n))
        share(host.meshes[0], [1, 2], b"body", b"\7" * 200_000)
        host.meshes[0].close(timeout_s=10)
        host.meshes[0].close(timeout_s=10)
        for rank in (1, 2):
            assert host.sinks[rank].end_of(0) is None
            assert bytes(host.sinks[rank].messages[-1][2]) == b"\7" * 200_000  # it outlives its writer
        assert numbers(host.sinks[1].messages[:-1]) == list(range(100))
        host.meshes[1].send(0, b"to nobody")
        share(host.meshes[1], [0, 2], b"", bytes(100_000))
        assert host.sinks[2].take(2)[1][0] == 1
        until_free(host.meshes[1])


def test_close_waits_for_a_peer_that_begins_to_read() -> None:
    count = 3_000
    with hosted(0, 1) as host:
        host.sinks[1].open.clear()
        for n in range(count):
            host.meshes[0].send(1, struct.pack("<I", n))
        share(host.meshes[0], [1], struct.pack("<I", count), bytes(100_000))
        closer = threading.Thread(target=host.meshes[0].close, kwargs={"timeout_s": WAIT_S})
        closer.start()
        host.sinks[1].open.set()
        closer.join(WAIT_S)
        assert not closer.is_alive()
        assert host.sinks[1].end_of(0) is None
        assert numbers(host.sinks[1].messages) == list(range(count + 1))


def test_close_gives_up_on_a_peer_that_never_reads_and_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with hosted(0, 1, arena_nbytes=32 * PAGE) as host:
        host.sinks[1].open.clear()
        for n in range(2_000):
            host.meshes[0].send(1, struct.pack("<I", n))
        for _ in range(2):  # one with the arena's descriptors, one with its own
            share(host.meshes[0], [1], b"", bytes(20 * PAGE))
        host.meshes[0].close(timeout_s=0.05)
        host.sinks[1].open.set()
        assert host.sinks[1].end_of(0) == "it ended without a farewell"
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:lazycast")


def test_a_closed_mesh_keeps_no_memory_but_what_values_keep() -> None:
    gc.collect()
    before = mappings()
    with hosted(0, 1) as host:
        for n in range(2):
            share(host.meshes[0], [1], b"", pattern(COPY_NBYTES, n))
        slot = host.meshes[0].allocate(COPY_NBYTES)
        slot.view[:] = b"\3" * COPY_NBYTES
        mine = host.meshes[0].own_view(slot)
        del slot
        value = host.sinks[1].take(2)[1][2]
    assert mappings() > before  # two values, each in a mapping of its whole arena
    assert bytes(value) == pattern(COPY_NBYTES, 1)
    assert bytes(mine) == b"\3" * COPY_NBYTES
    with pytest.raises(MemoryError, match="closed"):
        host.meshes[0].allocate(1)
    del value, mine
    gc.collect()
    assert mappings() == before
    assert len(host.meshes) == 2  # though these objects live


def test_what_is_shared_while_the_mesh_closes_goes_nowhere() -> None:
    """A worker may be about to share its value: that is no reason for an error."""
    with hosted(0, 1) as host:
        mesh = host.meshes[0]
        slot = mesh.allocate(COPY_NBYTES)
        booked = mesh._arena.share

        def closes_then(slot: Slot, readers: list[int]) -> None:
            booked(slot, readers)
            mesh.close(timeout_s=1.0)

        mesh._arena.share = closes_then  # type: ignore[method-assign]
        mesh.share([1], b"late", slot)
        assert host.sinks[1].end_of(0) is None
        assert host.sinks[1].messages == []


def test_a_thread_that_is_in_a_sink_keeps_its_descriptors_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers may be others' as soon as they are closed."""
    monkeypatch.setattr("lazycast.net.host.mesh._JOIN_S", 0.01)
    with hosted(0, 1) as host:
        mesh, sink = host.meshes[1], host.sinks[1]
        sink.open.clear()
        host.meshes[0].send(1, b"held up")
        assert sink.entered.wait(30)
        mesh.close(timeout_s=0.0)
        os.fstat(mesh._wake_fd)  # it is open
        thread = mesh._thread
        assert thread is not None
        sink.open.set()
        thread.join(30)
        assert not thread.is_alive()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(mesh._wake_fd)
        assert host.sinks[0].end_of(1) is None


def test_an_end_without_a_farewell_is_a_loss() -> None:
    with hosted(0, 1) as host:
        host.meshes[0].send(1, b"last words")
        host.sockets[0][1].shutdown(socket.SHUT_RDWR)
        assert host.sinks[1].end_of(0) == "it ended without a farewell"
        assert [header for _, header, _ in host.sinks[1].messages] == [b"last words"]
        host.meshes[1].send(0, b"to nobody")


def test_a_loss_frees_what_waited_for_that_peer() -> None:
    with hosted(0, 1, arena_nbytes=32 * PAGE) as host:
        host.sinks[1].open.clear()
        for n in range(2_000):
            host.meshes[0].send(1, struct.pack("<I", n))
        descriptors = len(os.listdir("/proc/self/fd"))
        share(host.meshes[0], [1], b"", bytes(20 * PAGE))
        host.sockets[1][0].shutdown(socket.SHUT_RDWR)
        assert host.sinks[0].end_of(1) == "it ended without a farewell"
        host.sinks[1].open.set()
        host.sinks[1].end_of(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_sink_that_fails_ends_that_peer_alone(caplog: pytest.LogCaptureFixture) -> None:
    with hosted(0, 1, 2) as host:
        host.sinks[1].failure = RuntimeError("no such message")
        host.meshes[0].send(1, b"bad")
        assert host.sinks[1].end_of(0) == "receiving failed here: RuntimeError('no such message')"
        assert "a message of rank 0 could not be taken" in caplog.text
        host.sinks[1].failure = None
        host.meshes[2].send(1, b"good")
        assert host.sinks[1].take(1)[0][1] == b"good"


@pytest.mark.parametrize(
    "packet",
    [b"\1", b"\1" + bytes(39) + b"x" * 70_000, b"\x11" + bytes(39), b"\2 is no farewell", b"\2" + bytes(39)],
)
def test_a_packet_that_makes_no_sense_ends_that_peer(packet: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with hosted(0, 1, 2) as host:
        host.sockets[0][1].send(packet)
        assert host.sinks[1].end_of(0) is not None
        host.meshes[2].send(1, b"good")
        assert host.sinks[1].take(1)[0][1] == b"good"


def memory(nbytes: int, *, sealed: bool = True) -> int:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    if sealed:
        fcntl.fcntl(fd, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
    return fd


def pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


LEDGER_NBYTES = 1 << 20  # more than it takes
BRINGS, SEGMENT = _MESSAGE | _IN_ARENA | _BRINGS_ARENA, _MESSAGE | _IN_ARENA | _IN_SEGMENT
#: What a hostile rank says: kind, row, offset, bytes, the arena's bytes; and the descriptors that it brings.
HOSTILE: dict[str, tuple[tuple[int, int, int, int, int], Callable[[], list[int]], str]] = {
    "no descriptors": ((BRINGS, 0, 0, 65536, 1 << 20), list, "makes no sense"),
    "one too few": ((BRINGS, 0, 0, 65536, 1 << 20), lambda: [memory(1 << 20)], "makes no sense"),
    "descriptors with nothing": ((_MESSAGE, 0, 0, 0, 0), lambda: [pipe()], "makes no sense"),
    "more than can be": ((BRINGS, 0, 0, 65536, 1 << 20), lambda: [pipe() for _ in range(9)], "makes no sense"),
    "a pipe": ((BRINGS, 0, 0, 65536, 1 << 20), lambda: [pipe(), memory(LEDGER_NBYTES)], "no anonymous memory"),
    "zeros without end": (
        (BRINGS, 0, 0, 65536, 1 << 20),
        lambda: [os.open("/dev/zero", os.O_RDWR), memory(LEDGER_NBYTES)],
        "no anonymous memory",
    ),
    "a ledger that is a file": (
        (BRINGS, 0, 0, 65536, 1 << 20),
        lambda: [memory(1 << 20), os.open(__file__, os.O_RDONLY)],
        "no anonymous memory",
    ),
    "memory that can shrink": (
        (BRINGS, 0, 0, 65536, 1 << 20),
        lambda: [memory(1 << 20, sealed=False), memory(LEDGER_NBYTES)],
        "can be cut off",
    ),
    "an arena smaller than said": (
        (BRINGS, 0, 0, 65536, 1 << 30),
        lambda: [memory(1 << 20), memory(LEDGER_NBYTES)],
        "said to be 1073741824",
    ),
    "a ledger too small": ((BRINGS, 0, 0, 65536, 1 << 20), lambda: [memory(1 << 20), memory(1)], "of 1 bytes"),
    "a segment smaller than said": ((SEGMENT, 0, 0, 1 << 30, 0), lambda: [memory(1 << 20)], "said to be 1073741824"),
    "a segment that can shrink": ((SEGMENT, 0, 0, 65536, 0), lambda: [memory(1 << 20, sealed=False)], "cut off"),
    "a slot of memory never brought": ((_MESSAGE | _IN_ARENA, 0, 0, 65536, 0), list, "has not brought"),
    "a slot behind the end": (
        (BRINGS, 0, 1 << 20, 65536, 1 << 20),
        lambda: [memory(1 << 20), memory(LEDGER_NBYTES)],
        "that cannot be",
    ),
    "a slot of more than all": (
        (BRINGS, 0, 0, 1 << 60, 1 << 20),
        lambda: [memory(1 << 20), memory(LEDGER_NBYTES)],
        "that cannot be",
    ),
    "a small slot behind the end": (
        (BRINGS, 0, 1 << 40, 20_000, 1 << 20),
        lambda: [memory(1 << 20), memory(LEDGER_NBYTES)],
        "that cannot be",
    ),
    "a row that is none": (
        (BRINGS, 1 << 30, 0, 65536, 1 << 20),
        lambda: [memory(1 << 20), memory(LEDGER_NBYTES)],
        "that cannot be",
    ),
    "a body that is not there": ((_MESSAGE, 0, 0, 1 << 40, 0), list, "said to be 1099511627776"),
    "a kind that is none": ((_MESSAGE | 128, 0, 0, 0, 0), list, "makes no sense"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_rank_of_the_host_is_lost_and_does_no_harm(name: str) -> None:
    (kind, row, offset, nbytes, arena_nbytes), make, reason = HOSTILE[name]
    descriptors, before = len(os.listdir("/proc/self/fd")), mappings()
    with hosted(0, 1, 2) as host:
        fds = make()
        packet = _PREFIX.pack(kind, 3, row, offset, nbytes, arena_nbytes) + b"abc"
        socket.send_fds(host.sockets[0][1], [packet], fds)
        for fd in fds:
            os.close(fd)
        said = host.sinks[1].end_of(0)
        assert said is not None
        assert reason in said
        assert host.sinks[1].messages == []
        host.meshes[2].send(1, b"good")
        assert host.sinks[1].take(1)[0][1] == b"good"
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert mappings() == before


def test_a_header_longer_than_its_packet_is_no_message() -> None:
    with hosted(0, 1) as host:
        host.sockets[0][1].send(_PREFIX.pack(_MESSAGE, 1 << 31, 0, 0, 0, 0) + b"abc")
        assert "makes no sense" in str(host.sinks[1].end_of(0))


def test_a_mesh_that_was_never_started_closes() -> None:
    host = Hosted([0, 1], arena_nbytes=ARENA_NBYTES, copy_all=False)
    for mesh in host.meshes.values():
        mesh.close(timeout_s=0.1)


def test_a_queue_of_segments_takes_no_descriptors_beside_theirs() -> None:
    """Three readers that are slow, and no descriptor to be had: each gets all bodies in the end."""
    readers = [1, 2, 3]
    body = pattern(2 * ARENA_NBYTES)
    with hosted(0, *readers) as host:
        share(host.meshes[0], readers, b"first", body)
        for rank in readers:
            host.sinks[rank].take(1)
            host.sinks[rank].open.clear()
            host.meshes[0].send(rank, b"held")
            assert host.sinks[rank].entered.wait(WAIT_S)
        for n in range(1000):  # more than sockets take
            host.meshes[0].send_all(readers, struct.pack("<I", n), memoryview(bytes(INLINE_NBYTES)))
        slot = host.meshes[0].allocate(len(body))
        slot.view[:] = body
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, old[1]))  # not lower: `poll` takes no more than that
        try:
            host.meshes[0].share(readers, b"last", slot)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
        del slot
        for rank in readers:
            host.sinks[rank].open.set()
        for rank in readers:
            *_, (_, header, got) = host.sinks[rank].take(1002)
            assert (header, bytes(got)) == (b"last", body)
            del got, _
        until_free(host.meshes[0])

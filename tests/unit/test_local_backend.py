"""The local backend: meeting, exchanging, and links between threads and processes."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazycast.backends import local
from lazycast.backends.local import LocalBackend
from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError

WAIT_S = 10.0
NAMES = ("LAZYCAST_RANK", "LAZYCAST_WORLD_SIZE", "LAZYCAST_RENDEZVOUS")
Together = Callable[..., list[Any]]


class Events:
    """A sink that puts what happens into a queue."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._bodies: dict[int, bytearray] = {}

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        self._bodies[peer] = bytearray(nbytes)
        return memoryview(self._bodies[peer])

    def deliver(self, peer: int, header: bytes) -> None:
        self.events.put((peer, header, bytes(self._bodies.pop(peer, b""))))

    def gone(self, peer: int, reason: str | None) -> None:
        self.events.put(("gone", peer, reason))

    def next(self) -> tuple[Any, ...]:
        return self.events.get(timeout=WAIT_S)


@pytest.fixture
def threads() -> Iterator[Callable[[int], list[LocalBackend]]]:
    made: list[LocalBackend] = []

    def make(size: int) -> list[LocalBackend]:
        backends = LocalBackend.threads(size)
        made.extend(backends)
        return backends

    yield make
    for backend in made:
        backend.close_hub()


# Who am I


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_an_environment_it_is_the_only_rank(bare: pytest.MonkeyPatch) -> None:
    backend = LocalBackend.from_environment()
    assert (backend.rank, backend.size) == (0, 1)
    context = backend.open(timeout_s=30.0)
    assert context.exchange(b"me", timeout_s=30.0) == [b"me"]
    link = context.connect([], Events(), timeout_s=30.0)
    link.close(timeout_s=30.0)
    context.close()
    context.close()


@pytest.mark.parametrize("unset", NAMES)
def test_an_incomplete_environment_names_what_is_missing(bare: pytest.MonkeyPatch, unset: str, tmp_path: Path) -> None:
    for name, value in zip(NAMES, ("0", "2", str(tmp_path)), strict=True):
        if name != unset:
            bare.setenv(name, value)
    with pytest.raises(BackendUnavailableError, match=f"needs all of .*; not set: {unset}"):
        LocalBackend.from_environment()


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", ""), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_quoted(
    bare: pytest.MonkeyPatch, rank: str, size: str, tmp_path: Path
) -> None:
    for name, value in zip(NAMES, (rank, size, str(tmp_path)), strict=True):
        bare.setenv(name, value)
    with pytest.raises(BackendUnavailableError, match=f"LAZYCAST_RANK='{rank}', LAZYCAST_WORLD_SIZE='{size}'"):
        LocalBackend.from_environment()


def test_several_ranks_need_a_folder_to_meet() -> None:
    with pytest.raises(BackendUnavailableError, match=r"2 ranks needs a rendezvous folder .*lazycast.launch"):
        LocalBackend(0, 2)


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_group_is_refused(rank: int, size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not between 0 and {size - 1}"):
        LocalBackend(rank, size, tmp_path)


# Meeting


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_blob_reaches_every_rank_in_rank_order_any_number_of_times(
    size: int, threads: Callable[[int], list[LocalBackend]], together: Together
) -> None:
    def rank(backend: LocalBackend) -> list[list[bytes]]:
        context = backend.open(timeout_s=WAIT_S)
        try:
            return [context.exchange(bytes([backend.rank]) * nbytes, timeout_s=WAIT_S) for nbytes in (1, 0, 64 << 10)]
        finally:
            context.close()

    results = together(*(lambda b=b: rank(b) for b in threads(size)))
    for result in results:
        assert result == [[bytes([r]) * nbytes for r in range(size)] for nbytes in (1, 0, 64 << 10)]


def test_contexts_pair_up_by_order_and_are_private(
    threads: Callable[[int], list[LocalBackend]], together: Together
) -> None:
    def rank(backend: LocalBackend) -> list[bytes]:
        contexts = [backend.open(timeout_s=WAIT_S) for _ in range(2)]
        try:
            first, second = contexts
            return [*first.exchange(b"first", timeout_s=WAIT_S), *second.exchange(b"second", timeout_s=WAIT_S)]
        finally:
            for context in contexts:
                context.close()

    for result in together(*(lambda b=b: rank(b) for b in threads(2))):
        assert result == [b"first", b"first", b"second", b"second"]


def test_an_exchange_with_somebody_who_does_not_come_names_them(
    threads: Callable[[int], list[LocalBackend]], together: Together
) -> None:
    backends = threads(3)
    contexts = [backend.open(timeout_s=WAIT_S) for backend in backends]
    over = threading.Event()

    def here() -> None:
        with pytest.raises(CastTimeoutError, match=r"rank 2 did not come within 0\.2 s"):
            contexts[0].exchange(b"0", timeout_s=0.2)
        over.set()

    def also_here() -> None:
        with pytest.raises((CastTimeoutError, BackendError), match="rank 2"):
            contexts[1].exchange(b"1", timeout_s=0.2)
        assert over.wait(WAIT_S)

    together(here, also_here)
    for context in contexts:
        context.close()


def test_an_exchange_with_somebody_who_has_gone_names_them(threads: Callable[[int], list[LocalBackend]]) -> None:
    contexts = [backend.open(timeout_s=WAIT_S) for backend in threads(2)]
    contexts[1].close()
    with pytest.raises(BackendError, match="rank 1 went away during the handshake") as caught:
        contexts[0].exchange(b"0", timeout_s=WAIT_S)
    assert caught.value.rank == 1
    contexts[0].close()


def _meet(folder: Path, rank: int, size: int, timeout_s: float = WAIT_S) -> dict[int, socket.socket]:
    return local._meet(folder, 0, rank, size, local._Meeting("lazycast context 0", timeout_s))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_processes_meet_in_a_folder_and_leave_nothing_in_it(size: int, tmp_path: Path, together: Together) -> None:
    meshes = together(*(lambda rank=rank: _meet(tmp_path, rank, size) for rank in range(size)))
    assert list(tmp_path.iterdir()) == []
    for rank, mesh in enumerate(meshes):
        assert sorted(mesh) == [r for r in range(size) if r != rank]
        for sock in mesh.values():
            sock.sendall(bytes([rank]))
    for mesh in meshes:
        for peer, sock in mesh.items():
            sock.settimeout(WAIT_S)
            assert sock.recv(1) == bytes([peer])
    for mesh in meshes:
        for sock in mesh.values():
            sock.close()


@pytest.mark.parametrize(("present", "missing"), [([0, 1], "2"), ([2], "0, 1"), ([0], "1, 2")], ids=str)
def test_ranks_that_do_not_come_are_named_and_nothing_is_left(
    present: list[int], missing: str, tmp_path: Path, together: Together
) -> None:
    def rank(number: int) -> None:
        with pytest.raises(CastTimeoutError, match=rf"rank {missing} did not come within 0\.3 s"):
            _meet(tmp_path, number, 3, 0.3)

    together(*(lambda n=n: rank(n) for n in present))
    assert list(tmp_path.iterdir()) == []


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for _ in range(2000):
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            threading.Event().wait(0.005)
        else:
            return sock
    sock.close()
    raise AssertionError(f"nobody listens on {path}")


@pytest.mark.parametrize(
    "said",
    [b"", b"x", local._PREFIX.pack(7, 0), local._PREFIX.pack(0, 0), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["nothing", "too little", "a rank outside", "the listener's own rank", "something else"],
)
def test_callers_that_are_no_ranks_are_turned_away(said: bytes, tmp_path: Path, together: Together) -> None:
    turned_away = threading.Event()

    def stranger() -> None:
        with _connect(tmp_path / "0.0") as sock:
            sock.settimeout(WAIT_S)
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # what was not read of it resets the connection
                assert sock.recv(1) == b"", "it was welcomed"
        turned_away.set()

    def late() -> dict[int, socket.socket]:
        assert turned_away.wait(WAIT_S)
        return _meet(tmp_path, 1, 2)

    _, mine, theirs = together(stranger, lambda: _meet(tmp_path, 0, 2), late)
    assert (list(mine), list(theirs)) == ([1], [0])
    mine[1].close()
    theirs[0].close()


def test_callers_that_say_nothing_hold_nobody_up(tmp_path: Path, together: Together) -> None:
    called = threading.Event()
    silent: list[socket.socket] = []

    def strangers() -> None:
        for said in (b"", b"x", b""):
            silent.append(_connect(tmp_path / "0.0"))
            silent[-1].sendall(said)
        called.set()

    def late() -> dict[int, socket.socket]:
        assert called.wait(WAIT_S)
        return _meet(tmp_path, 1, 2)

    _, mine, theirs = together(strangers, lambda: _meet(tmp_path, 0, 2), late)  # else they raise, after WAIT_S
    assert (list(mine), list(theirs)) == ([1], [0])
    for sock in (*silent, mine[1], theirs[0]):
        sock.close()


def test_callers_of_another_user_are_turned_away(
    tmp_path: Path, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    monkeypatch.setattr(local.os, "getuid", lambda: me + 1)

    def stranger() -> None:
        with _connect(tmp_path / "0.0") as sock:
            sock.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it may have been turned away by now
                sock.sendall(local._PREFIX.pack(1, 0))  # it says what a rank says
                assert sock.recv(1) == b"", "it was welcomed"

    def wait() -> None:
        with pytest.raises(CastTimeoutError):
            _meet(tmp_path, 0, 2, 1.0)

    together(stranger, wait)


def test_a_header_or_a_blob_of_absurd_size_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(local._PREFIX.pack(0xFFFFFFFF, 0) * 2)
    pipe = local._SocketPipe(ours)
    with pytest.raises(local.PipeClosed, match="no message: a header of 4294967295 bytes"):
        pipe.recv_header()
    with pytest.raises(local.PipeClosed, match="no part of a handshake: 4294967295 bytes"):
        local._LocalContext._recv_blob(ours)
    pipe.close()
    theirs.close()


def test_the_sockets_in_the_folder_are_the_owners_alone(tmp_path: Path, together: Together) -> None:
    def look() -> int:
        with _connect(tmp_path / "0.0"):
            return stat.S_IMODE((tmp_path / "0.0").stat().st_mode)

    def wait() -> None:
        with pytest.raises(CastTimeoutError):
            _meet(tmp_path, 0, 2, 0.5)

    mode, _ = together(look, wait)
    assert mode == 0o600


@pytest.mark.parametrize("folder", ["missing", "x" * 100], ids=["missing", "too long"])
def test_a_folder_that_cannot_be_used_is_a_clear_error(folder: str, tmp_path: Path) -> None:
    if folder != "missing":
        (tmp_path / folder).mkdir()
    with pytest.raises(BackendUnavailableError, match=r"cannot listen on .*writable folder with a path of at most"):
        _meet(tmp_path / folder, 0, 2)


def test_a_socket_that_an_earlier_process_has_left_is_no_obstacle(tmp_path: Path, together: Together) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "0.0"))
    meshes = together(lambda: _meet(tmp_path, 0, 2), lambda: _meet(tmp_path, 1, 2))
    for mesh in meshes:
        for sock in mesh.values():
            sock.close()


# Links


@pytest.fixture
def pair(threads: Callable[[int], list[LocalBackend]], together: Together) -> Iterator[tuple[list[Any], list[Events]]]:
    contexts = [backend.open(timeout_s=WAIT_S) for backend in threads(2)]
    sinks = [Events(), Events()]
    links = [context.connect([1 - rank], sinks[rank], timeout_s=WAIT_S) for rank, context in enumerate(contexts)]
    yield links, sinks
    together(*(lambda link=link: link.close(timeout_s=WAIT_S) for link in links))
    for context in contexts:
        context.close()


def test_messages_arrive_whole_once_and_in_order(pair: tuple[list[Any], list[Events]]) -> None:
    links, sinks = pair
    bodies = [b"", b"x", bytes(range(256)) * 4096, b"", b"end"]
    for rank in (0, 1):
        for number, body in enumerate(bodies):
            links[rank].send(1 - rank, bytes([rank, number]), memoryview(body))
    for rank in (0, 1):
        for number, body in enumerate(bodies):
            assert sinks[rank].next() == (1 - rank, bytes([1 - rank, number]), body)


def test_a_header_may_be_32_kib_and_a_body_may_be_none(pair: tuple[list[Any], list[Events]]) -> None:
    links, sinks = pair
    links[0].send(1, b"h" * (32 << 10), None)
    assert sinks[1].next() == (0, b"h" * (32 << 10), b"")


def test_closing_sends_what_is_queued_and_a_farewell(pair: tuple[list[Any], list[Events]]) -> None:
    links, sinks = pair
    for number in range(50):
        links[0].send(1, bytes([number]), memoryview(bytes(10_000)))
    links[0].close(timeout_s=WAIT_S)
    for number in range(50):
        assert sinks[1].next()[:2] == (0, bytes([number]))
    assert sinks[1].next() == ("gone", 0, None)
    assert sinks[0].next() == ("gone", 1, None), "a farewell is answered without a close of one's own"
    links[0].close(timeout_s=WAIT_S)
    links[1].send(0, b"too late", None)


def test_only_neighbours_are_connected(threads: Callable[[int], list[LocalBackend]], together: Together) -> None:
    backends, sinks = threads(3), [Events() for _ in range(3)]
    neighbours = [[1], [0, 2], [1]]

    def rank(backend: LocalBackend) -> None:
        number = backend.rank
        context = backend.open(timeout_s=WAIT_S)
        context.exchange(b"", timeout_s=WAIT_S)
        link = context.connect(neighbours[number], sinks[number], timeout_s=WAIT_S)
        for peer in neighbours[number]:
            link.send(peer, bytes([number]), None)
        left = set(neighbours[number])
        while left:  # ends of ranks that were faster may come in between
            peer, *_ = sinks[number].next()
            left -= {peer}
        link.close(timeout_s=WAIT_S)
        context.close()

    together(*(lambda b=b: rank(b) for b in backends))


def test_a_rank_that_dies_is_lost_with_a_reason(
    tmp_path: Path, run_python: Callable[..., str], together: Together
) -> None:
    child = """
import os, sys
from lazycast.backends.local import LocalBackend
class Sink:
    def place(self, *_): raise AssertionError
    def deliver(self, peer, header): os._exit(0)
    def gone(self, *_): os._exit(1)
context = LocalBackend(1, 2, sys.argv[1]).open(timeout_s=30)
assert context.exchange(b"child", timeout_s=30) == [b"parent", b"child"]
link = context.connect([0], Sink(), timeout_s=30)
link.send(0, b"alive", None)
import threading
threading.Event().wait(30)
"""
    folder, sink = tmp_path / "meet", Events()
    folder.mkdir()

    def parent() -> None:
        context = LocalBackend(0, 2, folder).open(timeout_s=30)
        assert context.exchange(b"parent", timeout_s=30) == [b"parent", b"child"]
        link = context.connect([1], sink, timeout_s=30)
        assert sink.next() == (1, b"alive", b"")
        link.send(1, b"die", None)
        what, peer, reason = sink.next()
        assert (what, peer) == ("gone", 1)
        assert reason
        link.close(timeout_s=WAIT_S)
        context.close()

    together(parent, lambda: run_python(child, str(folder)))

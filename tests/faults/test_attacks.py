"""Attacks on a group: by a rank that has been taken over, by strangers, and by what other programs could inherit.

What arrives is refused with a reason, nothing of it is run, and those that are left build a group that works.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import pickle
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lazycast import LazyBroadcast, LazycastError, PeerLostError, launch
from lazycast.backends.local import LocalBackend
from lazycast.net import wire
from lazycast.testing.trust import Bomb, harmed

pytestmark = pytest.mark.usefixtures("warm_python")
ATTACKER = 2
MIB = 1 << 20


def nested(depth: int) -> bytes:
    """A msgpack header of lists in lists."""
    return bytes([wire.WIRE_VERSION]) + b"\x91" * depth + b"\xc0"


def forged_key() -> bytes:
    """A cast whose key is of a type that no key has."""
    good = wire.encode(wire.Cast(1, "key", "every", True, None))
    fields = msgspec.msgpack.decode(good[1:])
    return good[:1] + msgspec.msgpack.encode([*fields[:2], {"a": ["map"]}, *fields[3:]])


FAILURE = wire.Failure("lost", 0, "h", "said by somebody else")


def failed(kind: Any, rank: int) -> wire.Failure:
    return wire.Failure(kind, rank, "h\x1b[2J", "said by\x1b[2J rank 2\r")


#: What the rank that has been taken over sends to the root.
HEADERS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "junk": lambda: os.urandom(200),
    "a pickle that does harm": lambda: pickle.dumps(Bomb(), 5),
    "a pickle behind our version": lambda: bytes([wire.WIRE_VERSION]) + pickle.dumps(Bomb(), 5),
    "lists in lists": lambda: nested(30_000),
    "cut off": lambda: wire.encode(wire.Report(ATTACKER, 1, True))[:-2],
    "another version": lambda: bytes([wire.WIRE_VERSION + 1]) + wire.encode(wire.Report(ATTACKER, 1, True))[1:],
    "a message of no known kind": lambda: bytes([wire.WIRE_VERSION]) + msgspec.msgpack.encode(["exec", "rm -rf /"]),
    "fields of other types": lambda: bytes([wire.WIRE_VERSION]) + msgspec.msgpack.encode(["report", "2", [], {}]),
    "a forged key": forged_key,
    "a report in another's name": lambda: wire.encode(wire.Report(1, 2, True)),
    "a report of a rank that is none": lambda: wire.encode(wire.Report(10**6, 2, True)),
    "a failure in another's name": lambda: wire.encode(wire.Report(1, 2, True, FAILURE)),
    "a report that it is lost itself": lambda: wire.encode(wire.Report(2, 2, True, failed("lost", 2))),
    "a report that it has closed itself": lambda: wire.encode(wire.Report(2, 2, True, failed("closed", 2))),
    "a report on a rank that is none": lambda: wire.encode(wire.Report(2, 2, True, failed("materialize", 10**6))),
    "a value that fails in another's name": lambda: wire.encode(wire.Value(2, 2, failure=failed("materialize", 1))),
    "a value that says that another is lost": lambda: wire.encode(wire.Value(2, 2, failure=failed("lost", 1))),
    "a cast to the root": lambda: wire.encode(wire.Cast(7, None, "every", False, None)),
    "a verdict to the root": lambda: wire.encode(wire.Verdict(2)),
    "code to the root": lambda: wire.encode(wire.Code(7, "ident")),
    "an answer to nobody": lambda: wire.encode(wire.Status(10**6, 1, "agreeing", [])),
    "a value in another's name": lambda: wire.encode(wire.Value(1, 2)),
    "a query in another's name": lambda: wire.encode(wire.Query(1, 1, None, "k", 1.0)),
}


def attacked(hosts: str, folder: str) -> dict[str, list[str]]:
    """One rank of three: one attacks in each way in turn; the others see who it was, and go on without it."""
    rank = int(os.environ["LAZYCAST_RANK"])
    os.environ["LAZYCAST_HOST"] = hosts[rank]
    harmed.clear()
    return {name: attacked_with(make(), rank, hosts, Path(folder) / str(n)) for n, (name, make) in ALL}


ALL = list(enumerate(HEADERS.items()))


def attacked_with(header: bytes, rank: int, hosts: str, folder: Path) -> list[str]:
    seen = []
    with LazyBroadcast(trust="data", timeout_s=30) as lazy:
        assert lazy.broadcast({"n": 1}) == {"n": 1}
        if rank == ATTACKER:
            relay: Any = lazy._lane.near.relay
            if hosts[0] == hosts[ATTACKER]:
                relay._mesh.send(0, header)
            else:
                relay._link.send(0, header or b"\0")  # without a header it would be a farewell
        try:
            wait_for_the_loss(lazy)
        except PeerLostError as exc:
            seen.append(f"{exc.rank}: {exc.message}")
    if rank != ATTACKER:
        with LazyBroadcast(trust="data", backend=LocalBackend(rank, 2, folder), timeout_s=30) as lazy:
            assert lazy.broadcast({"again": np.arange(3)})["again"].tolist() == [0, 1, 2]
    assert harmed == []
    return seen


def wait_for_the_loss(lazy: LazyBroadcast[Any, Any]) -> None:
    for n in range(500):
        lazy.broadcast(n, key=n, timeout_s=20)
        time.sleep(0.01)
    raise AssertionError("nobody was lost")


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param("aaa", id="on the host", marks=pytest.mark.exhaustive),
        pytest.param("aab", id="between hosts"),
    ],
)
def test_a_rank_that_sends_what_it_may_not_is_lost_and_the_others_go_on(hosts: str, tmp_path: Path) -> None:
    for n, _ in ALL:
        (tmp_path / str(n)).mkdir()
    results = launch(attacked, ranks=3, args=(hosts, str(tmp_path)), timeout_s=200)
    for name in HEADERS:
        for messages in (results[0][name], results[1][name]):
            assert len(messages) == 1, (name, results)
            assert messages[0].startswith(f"{ATTACKER}: "), (name, messages)
            assert f"rank {ATTACKER} (" in messages[0], (name, messages)
            assert "was lost: receiving failed" in messages[0], (name, messages)


#: What a root that has been taken over sends to the ranks below it.
FROM_ABOVE: dict[str, Callable[[], bytes]] = {
    **{name: HEADERS[name] for name in list(HEADERS)[:4]},
    "lists in lists": HEADERS["lists in lists"],
    "cut off": lambda: wire.encode(wire.Verdict(1))[:-1],
    "another version": lambda: bytes([wire.WIRE_VERSION + 1]) + wire.encode(wire.Verdict(1))[1:],
    "a message of no known kind": HEADERS["a message of no known kind"],
    "fields of other types": lambda: bytes([wire.WIRE_VERSION]) + msgspec.msgpack.encode(["verdict", "1", {}]),
    "a forged key": forged_key,
    "a report from above": lambda: wire.encode(wire.Report(0, 2, True)),
    "a report of the rank itself": lambda: wire.encode(wire.Report(1, 2, True)),
    "a value in another's name": lambda: wire.encode(wire.Value(2, 2)),
    "an answer for somebody else": lambda: wire.encode(wire.Status(0, 1, "agreeing", [])),
    "an end that is none": lambda: wire.encode(wire.Gone(1, FAILURE)),
    "a rest of nothing": lambda: wire.encode(wire.Chunk(10**6, 0, 100)),
}


def attacked_from_above(hosts: str, folder: str) -> dict[str, list[str]]:
    """The root attacks rank 1 in each way in turn; the others see who it was, and go on without it."""
    rank = int(os.environ["LAZYCAST_RANK"])
    os.environ["LAZYCAST_HOST"] = hosts[rank]
    harmed.clear()
    seen = {}
    for n, (name, make) in enumerate(FROM_ABOVE.items()):
        if name == "a rest of nothing" and hosts[0] == hosts[1]:
            continue  # on a host there are no parts
        with LazyBroadcast(trust="data", timeout_s=30) as lazy:
            assert lazy.broadcast({"n": 1}) == {"n": 1}
            if lazy.is_root:
                relay: Any = lazy._lane.near.relay
                send = relay._mesh.send if hosts[0] == hosts[1] else relay._link.send
                send(1, make() or (b"" if hosts[0] == hosts[1] else b"\0"))
            try:
                wait_for_the_loss(lazy)
            except PeerLostError as exc:
                seen[name] = [f"{exc.rank}: {exc.message}"]
        if rank:
            with LazyBroadcast(trust="data", backend=LocalBackend(rank - 1, 2, Path(folder, str(n)))) as lazy:
                assert lazy.broadcast({"again": np.arange(3)})["again"].tolist() == [0, 1, 2]
        assert harmed == []
    return seen


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param("aaa", id="on the host"),
        pytest.param("abb", id="between hosts", marks=pytest.mark.exhaustive),
    ],
)
def test_a_root_that_sends_what_it_may_not_is_lost_and_the_others_go_on(hosts: str, tmp_path: Path) -> None:
    for n, _ in enumerate(FROM_ABOVE):
        (tmp_path / str(n)).mkdir()
    results = launch(attacked_from_above, ranks=3, args=(hosts, str(tmp_path)), timeout_s=200)
    for rank in (1, 2):
        assert len(results[rank]) >= len(FROM_ABOVE) - (hosts == "aaa"), results
        for name, messages in results[rank].items():
            assert messages[0].startswith("0: "), (rank, name, messages)
            assert "rank 0 (" in messages[0], (rank, name, messages)
            assert "was lost: receiving failed" in messages[0], (rank, name, messages)


def accused(folder: str) -> list[str]:
    """A rank says that another was lost, which is alive."""
    seen = []
    for by in (ATTACKER, 0, 1):
        said = Path(folder, f"said-{by}")
        with LazyBroadcast(timeout_s=30) as lazy:
            lazy.broadcast(1)
            if lazy.rank == ATTACKER:
                loss = wire.Loss(by, "unix socket", "it ended")
                relay: Any = lazy._lane.near.relay
                relay._mesh.send(0, wire.encode(wire.Gone(1, wire.Failure("lost", 1, "h", "was lost", loss=loss))))
                said.touch()
            while not said.exists():  # its reports on all casts may go out before it asks for one
                time.sleep(0.01)
            try:
                for n in range(20):
                    assert lazy.broadcast(n) == n
            except PeerLostError as exc:
                seen.append(f"{exc.noticed_by}: {exc.message}")
            else:
                seen.append("usable")
    return seen


def test_who_says_that_another_was_lost_is_named_or_not_believed(tmp_path: Path) -> None:
    for rank, seen in enumerate(launch(accused, ranks=3, args=(str(tmp_path),), timeout_s=200)[:ATTACKER]):
        assert seen[0].startswith(f"{ATTACKER}: "), (rank, seen)
        assert f"was lost; so says rank {ATTACKER}" in seen[0], (rank, seen)
        assert seen[1:] == ["usable"] * 2, (rank, seen)


BLAMED = [
    (kind, rank) for rank in (0, 1) for kind in ("lost", "closed", "materialize", "decode", "untrusted", "encode")
]


def blames(folder: str) -> list[str]:
    """A rank reports that another failed, was lost, or has closed, which has done its part; of each second cast."""
    seen, ready = [], Path(folder, "ready")
    with LazyBroadcast(timeout_s=30) as lazy:
        casts: Any = lazy._lane.casts
        honest = casts._report

        def lies(message: wire.Report) -> None:
            if message.failure is None and message.seq % 2:
                message = msgspec.structs.replace(message, failure=failed(*BLAMED[message.seq // 2]))
            honest(message)

        if lazy.rank == ATTACKER:
            casts._report = lies
            ready.touch()
        while not ready.exists():  # its report on a cast may go out before it asks for that
            time.sleep(0.01)
        for kind, _ in BLAMED:
            try:
                lazy.broadcast(kind, timeout_s=1.5 if kind in ("lost", "closed") else None)
                seen.append("a value")
            except LazycastError as exc:
                seen.append(f"{type(exc).__name__} {exc.rank}: {exc}")
            assert lazy.broadcast("honest") == "honest"
    return seen


def test_nobody_is_blamed_for_what_another_rank_says(tmp_path: Path) -> None:
    for rank, seen in enumerate(launch(blames, ranks=3, args=(str(tmp_path),), timeout_s=200)[:ATTACKER]):
        for (kind, _), text in zip(BLAMED, seen, strict=True):
            assert not text.startswith(("PeerLostError", "ClosedError", "a value")), (rank, kind, seen)
            assert text.startswith(("RemoteError 2: ", "CastTimeoutError")), (rank, kind, seen)
            assert text.replace("\n", "").isprintable(), (rank, kind, text)


def floods() -> str:
    """One rank sends the root more junk than any buffer takes, and never reads."""
    rank = int(os.environ["LAZYCAST_RANK"])
    with LazyBroadcast(timeout_s=30) as lazy:
        lazy.broadcast(1)
        if rank == ATTACKER:
            peer: Any = lazy._lane.near.relay._mesh._peers[0]
            until_s = time.monotonic() + 2.0
            with contextlib.suppress(OSError):  # it was hung up on
                while time.monotonic() < until_s:
                    peer.sock.send(os.urandom(30_000))
        before_kb = resident_kb()
        try:
            wait_for_the_loss(lazy)
        except PeerLostError as exc:
            assert resident_kb() < before_kb + 50_000
            return f"{exc.rank}"
    raise AssertionError("unreachable")


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE // 1024


def test_a_flood_of_junk_ends_the_rank_that_sends_it() -> None:
    assert launch(floods, ranks=3, timeout_s=200)[:ATTACKER] == [str(ATTACKER)] * 2


# Strangers that call while the ranks construct


def constructs_among_strangers(folder: str) -> list[Any]:
    values = []
    for n in range(5):
        with LazyBroadcast(timeout_s=30) as lazy:
            values.append((lazy.broadcast(n), lazy.stats().hosts))
    Path(folder, f"done.{os.environ['LAZYCAST_RANK']}").touch()
    return values


def call_strangely(path: str, how: int) -> socket.socket | None:
    """Call whoever listens there, and hold the line."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if path.startswith("@") else socket.SOCK_STREAM)
    sock.settimeout(0.2)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        if how == 1:
            sock.send(b"\x01\x00")
        elif how == 2:
            sock.send(os.urandom(36))
        elif how == 3:
            fds = [os.open("/dev/zero", os.O_RDONLY) for _ in range(5)]
            try:
                socket.send_fds(sock, [os.urandom(36)], fds)
            finally:
                for fd in fds:
                    os.close(fd)
    except OSError:  # it has gone, or has hung up
        sock.close()
        return None
    return sock


def addresses_of_children() -> list[str]:
    """The names of the Unix sockets that our ranks listen on: whose they are, the table of all does not tell."""
    names = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            names[f"socket:[{fields[6]}]"] = fields[7]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = []
    for child in children:
        with contextlib.suppress(OSError):  # it, or the descriptor, is gone
            for fd in os.listdir(f"/proc/{child}/fd"):
                name = names.get(os.readlink(f"/proc/{child}/fd/{fd}"))
                if name is not None:
                    found.append(name)
    return found


@pytest.mark.exhaustive
@pytest.mark.cold  # the ranks are this process's children
def test_strangers_that_call_all_the_time_keep_no_rank_out(tmp_path: Path) -> None:
    over = threading.Event()
    calls = 0

    def strangers() -> None:
        nonlocal calls
        held: list[socket.socket] = []
        while not over.wait(0.002):
            for path in addresses_of_children():
                sock = call_strangely(path, calls % 4)
                if sock is not None:
                    calls += 1
                    held.append(sock)
            while len(held) > 50:
                held.pop(0).close()
        for sock in held:
            sock.close()

    thread = threading.Thread(target=strangers)
    thread.start()
    try:
        results = launch(constructs_among_strangers, ranks=3, args=(str(tmp_path),), timeout_s=200)
    finally:
        over.set()
        thread.join()
    assert results == [[(n, ((0, 1, 2),)) for n in range(5)]] * 3
    assert calls > 5


# What other programs could get hold of


def runs_another_program() -> tuple[list[str], list[str]]:
    """What a program that inherits all it can gets, and what this process has of ours besides."""
    command = [sys.executable, "-c", INHERITED]

    def inherited() -> list[str]:
        done = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=True)
        return sorted(kinds(json.loads(done.stdout)))

    before = inherited()
    with LazyBroadcast(timeout_s=30) as lazy:
        lazy.broadcast(np.zeros(MIB, np.uint8))
        lazy.broadcast(0)
        assert any("memfd:lazycast" in link for link in links()) or not lazy.is_root
        after = inherited()
        lazy.broadcast(1)
    return before, after


INHERITED = """
import json, os
links = []
for fd in os.listdir("/proc/self/fd"):
    try:
        links.append(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass  # of the listing
print(json.dumps(links))
"""


def links() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the listing
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def kinds(found: list[str]) -> list[str]:
    return [link.partition("[")[0] for link in found]


@pytest.mark.cold
@pytest.mark.parametrize("backend", ["local", pytest.param("torch", marks=pytest.mark.exhaustive)])
def test_a_program_that_is_started_inherits_nothing(backend: str) -> None:
    for before, after in launch(runs_another_program, ranks=3, backend=backend, timeout_s=200):
        assert after == before


def listens() -> list[str]:
    """The TCP and UDP sockets of this process, with a cast under way."""
    os.environ["LAZYCAST_HOST"] = str(int(os.environ["LAZYCAST_RANK"]) // 2)
    with LazyBroadcast(timeout_s=30) as lazy:
        lazy.broadcast(np.zeros(5 * MIB, np.uint8))
        mine = {link[8:-1] for link in links() if link.startswith("socket:[")}
        found = []
        for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
            path = Path(f"/proc/self/net/{table}")
            lines = path.read_text().splitlines()[1:] if path.exists() else []
            found += [f"{table} {line}" for line in lines if line.split()[9] in mine]
        lazy.broadcast(0)
    return found


def test_the_local_backend_opens_no_port_of_any_kind() -> None:
    assert launch(listens, ranks=4, timeout_s=200) == [[]] * 4


def tries_to_open_up_its_memory() -> list[str]:
    """Everything that the seals of the memory between ranks forbid, tried with what a rank has."""
    refused = []
    with LazyBroadcast(timeout_s=30) as lazy:
        lazy.broadcast(np.zeros(MIB, np.uint8))
        lazy.broadcast(0)
        if lazy.is_root:
            found = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_arena(fd)]
            assert len(found) == 1, found
            nbytes = os.fstat(found[0]).st_size
            attempts: dict[str, Callable[[], Any]] = {
                "shrink": lambda: os.ftruncate(found[0], 4096),
                "grow": lambda: os.ftruncate(found[0], nbytes + 4096),
                "write": lambda: os.pwrite(found[0], b"x", 0),
                "map": lambda: mmap.mmap(found[0], 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
                "seal": lambda: fcntl.fcntl(found[0], 1033, 8),
            }
            for name, attempt in attempts.items():
                try:
                    attempt()
                except OSError:
                    refused.append(name)
        lazy.broadcast(1)
    return refused


def is_arena(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return "memfd:lazycast" in os.readlink(f"/proc/self/fd/{fd}") and os.fstat(fd).st_size > 64 * MIB
    return False


def test_memory_between_ranks_can_neither_be_resized_nor_written_to_by_readers() -> None:
    assert launch(tries_to_open_up_its_memory, ranks=2, timeout_s=200)[0] == ["shrink", "grow", "write", "map", "seal"]


def test_the_rendezvous_is_the_owners_alone() -> None:
    """While a rank waits for another that does not come, its socket lies there."""
    with tempfile.TemporaryDirectory() as folder, waiting_alone(folder):
        until_s = time.monotonic() + 20
        while not (found := list(Path(folder).iterdir())):
            assert time.monotonic() < until_s
            time.sleep(0.01)
        time.sleep(0.05)
        assert [stat.S_IMODE(path.stat().st_mode) for path in found] == [0o600]


@contextlib.contextmanager
def waiting_alone(folder: str) -> Iterator[None]:
    def construct() -> None:
        with pytest.raises(TimeoutError, match="rank 1 did not come"):
            LazyBroadcast(backend=LocalBackend(0, 2, folder), timeout_s=1.0)

    thread = threading.Thread(target=construct)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)

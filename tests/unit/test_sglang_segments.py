"""Memory for SGLang's features that is written again: only when nobody can see it any more."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from types import SimpleNamespace

import pytest

from lazycast.adapters.sglang import segments
from lazycast.adapters.sglang.memory import Memory, Taken, sweep
from lazycast.adapters.sglang.segments import Segments, SharedMemoryModule

pytestmark = pytest.mark.skipif(os.name != "posix" or not Path("/dev/shm").is_dir(), reason="names lie in /dev/shm")

N = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _tracker() -> None:
    """One process of Python's own that lasts."""
    resource_tracker.ensure_running()


@pytest.fixture
def kept() -> Iterator[Segments]:
    made = Segments(8 * N)
    yield made
    made.close()
    assert not named(os.getpid())


def named(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"lazycast_features_{pid}_*"))


def taken_from(kept: Segments, nbytes: int) -> Taken:
    taken = kept.take(nbytes, f"lazycast_test_{secrets.token_hex(8)}")
    assert taken is not None
    return taken


def send(kept: Segments, nbytes: int, fill: int) -> Taken:
    taken = taken_from(kept, nbytes)
    taken.buf[:] = bytes([fill]) * nbytes
    taken.close()
    return taken


def receive(taken: Taken) -> shared_memory.SharedMemory:
    """Open as SGLang does, and take the name away."""
    found = shared_memory.SharedMemory(name=taken.name)
    found.unlink()
    return found


def content(found: shared_memory.SharedMemory) -> bytes:
    assert found.buf is not None
    return bytes(found.buf)


@contextlib.contextmanager
def forked(run: Callable[[], None]) -> Iterator[int]:
    """Run something in a forked process, which ends with the block at the latest."""
    pid = os.fork()
    if not pid:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ChildProcessError):  # the block has waited for it
            if not os.waitpid(pid, os.WNOHANG)[0]:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def in_child(run: Callable[[], None]) -> int:
    """Run something in a forked process; return what `waitpid` says of it."""
    with forked(run) as pid:
        return os.waitpid(pid, 0)[1]


def test_memory_is_used_again_when_nobody_sees_it(kept: Segments) -> None:
    for fill in range(20):
        found = receive(send(kept, N, fill))
        assert content(found) == bytes([fill]) * N
        found.close()
    assert (kept.made, kept.used_again) == (1, 19)


def test_each_sight_of_it_keeps_it(kept: Segments) -> None:
    named_still = send(kept, N, 1)
    opened = receive(send(kept, N, 2))
    mapped_from = receive(send(kept, N, 3))
    private = mmap.mmap(mapped_from._fd, N, access=mmap.ACCESS_COPY)  # type: ignore[attr-defined]
    mapped_from.close()
    written = taken_from(kept, N)
    written.unlink()  # though whoever writes it has not finished
    written.buf[:4] = b"mine"
    others = [receive(send(kept, N, 9)) for _ in range(3)]
    assert kept.used_again == 0
    assert (content(opened), private[:]) == (bytes([2]) * N, bytes([3]) * N)
    opened.close()
    private.close()
    receive(named_still).close()
    for again in [receive(send(kept, N, 7)) for _ in range(3)]:
        again.close()
    assert kept.used_again == 3
    assert bytes(written.buf[:4]) == b"mine"
    written.close()
    for other in others:
        other.close()


def test_a_process_that_is_killed_gives_it_back(kept: Segments) -> None:
    taken = send(kept, N, 1)
    reader, writer = os.pipe()

    def child() -> None:
        fd = os.open(f"/dev/shm/{taken.name}", os.O_RDWR)
        mapped = mmap.mmap(fd, N, access=mmap.ACCESS_COPY)
        os.close(fd)
        os.write(writer, mapped[:1])
        signal.pause()

    with forked(child) as pid:
        assert os.read(reader, 1) == b"\1"
        taken.unlink()
        send(kept, N, 2).unlink()
        assert kept.used_again == 0
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        send(kept, N, 3).unlink()
        assert kept.used_again == 1
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("nbytes", "again"), [(N + 1, 1), (N - 5000, 1), (N // 2 + 7, 1), (2 * N + 1, 0), (N // 3, 0)])
def test_sizes(kept: Segments, nbytes: int, again: int) -> None:
    receive(send(kept, N, 1)).close()
    found = receive(send(kept, nbytes, 2))
    assert found.size == nbytes  # to the byte: SGLang gives the tensor its shape
    assert content(found) == bytes([2]) * nbytes
    found.close()
    assert kept.used_again == again


def test_beyond_the_limit_what_was_used_longest_ago_goes(kept: Segments) -> None:
    held = [receive(send(kept, N, fill)) for fill in range(12)]
    assert len(named(os.getpid())) == 8
    for fill, one in enumerate(held):
        assert content(one) == bytes([fill]) * N
        one.close()
    for _ in range(8):
        receive(send(kept, N, 1)).close()
    assert (kept.made, kept.used_again) == (12, 8)
    assert not kept.keeps(8 * N + 1)


def test_too_many_pieces() -> None:
    """Each has two descriptors."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (320, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept = Segments(100 * N)
        held = [receive(send(kept, N, fill)) for fill in range(30)]
        assert len(named(os.getpid())) == 20
        assert [content(one)[0] for one in held] == list(range(30))
        kept.close()

    assert in_child(child) == 0


def test_how_many_are_asked_for(kept: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer waits for the kernel's answers, and all may be in use."""
    asked: list[Memory] = []

    def is_free(memory: Memory) -> bool:
        asked.append(memory)
        return False

    monkeypatch.setattr(Memory, "is_free", is_free)
    for _ in range(30):
        send(kept, N // 4, 1).unlink()
    assert len(asked) == sum(min(already, 16) for already in range(30))
    oldest = asked[-16:]
    send(kept, N // 4, 1).unlink()
    assert asked[-16:] == oldest


def test_too_little_memory() -> None:
    """Then it is Python's own segment, or its error."""

    def child() -> None:
        kept = Segments(8 * N)
        stand_in = SharedMemoryModule(kept)
        held = receive(send(kept, N, 1))
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (N // 2, limit[1]))
        name = f"lazycast_test_{secrets.token_hex(8)}"
        with pytest.raises(OSError, match="too large"):
            stand_in.SharedMemory(name, create=True, size=N)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert not Path(f"/dev/shm/{name}").exists()
        Path(f"/dev/shm/{name}").touch()
        with pytest.raises(FileExistsError):
            stand_in.SharedMemory(name, create=True, size=N)
        Path(f"/dev/shm/{name}").unlink()
        assert content(held) == bytes([1]) * N
        receive(send(kept, N, 2)).close()
        kept.close()
        assert not named(os.getpid())

    assert in_child(child) == 0


def test_half_of_the_file_system_is_left_to_others(kept: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    held = receive(send(kept, N, 1))
    monkeypatch.setattr(segments, "_leaves_half", lambda nbytes: False)
    name = f"lazycast_test_{secrets.token_hex(8)}"
    own = SharedMemoryModule(kept).SharedMemory(name, create=True, size=N)
    assert isinstance(own, shared_memory.SharedMemory)
    assert not named(os.getpid())
    own.close()
    own.unlink()
    held.close()


def test_descriptors_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    kept = Segments(8 * N)
    send(kept, N, 1).unlink()
    send(kept, N, 1).unlink()
    assert kept.used_again == 1
    kept.close()


@pytest.mark.parametrize(("free", "leaves"), [(10 * N, True), (6 * N, True), (6 * N - 4096, False), (0, False)])
def test_what_half_is(monkeypatch: pytest.MonkeyPatch, free: int, leaves: bool) -> None:
    room = SimpleNamespace(f_blocks=10 * N // 4096, f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    assert segments._leaves_half(N) is leaves
    room.f_blocks = 0  # a file system without a limit
    assert segments._leaves_half(N)


def test_a_fork_has_nothing_of_it(kept: Segments) -> None:
    taken = send(kept, N, 1)
    reader, writer = os.pipe()
    done, end = os.pipe()

    def child() -> None:
        assert not kept.keeps(N)
        kept.close()
        os.close(end)
        os.write(writer, b"x")
        os.read(done, 1)

    with forked(child) as pid:
        assert os.read(reader, 1) == b"x"
        (path,) = named(os.getpid())
        inode = path.stat().st_ino
        assert f" {inode} " in Path("/proc/self/maps").read_text()
        assert f" {inode} " not in Path(f"/proc/{pid}/maps").read_text()
        assert inode not in [os.stat(fd).st_ino for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.exists()]
        for fd in (end, done, reader, writer):
            os.close(fd)
        assert os.waitpid(pid, 0)[1] == 0
    taken.unlink()
    receive(send(kept, N, 2)).close()
    assert kept.used_again == 1


def test_names_that_others_take_away(kept: Segments) -> None:
    """Of two names one is left: nobody can say which."""
    taken = send(kept, N, 1)
    named(os.getpid())[0].unlink()
    name = f"lazycast_test_{secrets.token_hex(8)}"
    own = SharedMemoryModule(kept).SharedMemory(name, create=True, size=N - 4096)
    assert isinstance(own, shared_memory.SharedMemory)
    own.close()
    own.unlink()
    found = receive(taken)
    assert content(found) == bytes([1]) * N
    found.close()
    receive(send(kept, N, 2)).close()
    assert kept.made == 2


def test_a_use_that_is_dropped(kept: Segments) -> None:
    taken = taken_from(kept, N)
    taken.unlink()
    del taken
    send(kept, N, 1).unlink()
    assert kept.used_again == 1


def test_what_the_killed_left_is_taken_away(kept: Segments) -> None:
    send(kept, N, 1).unlink()
    left, fifo = (Path(f"/dev/shm/lazycast_features_{kind}_{secrets.token_hex(8)}") for kind in ("left", "fifo"))
    left.touch()
    os.mkfifo(fifo)
    sweep()
    assert not left.exists()
    fifo.unlink(missing_ok=True)
    assert len(named(os.getpid())) == 1  # not of those who live
    send(kept, N, 1).unlink()
    assert kept.used_again == 1


KEEPS = """
import os, sys, time
from lazycast.adapters.sglang.segments import Segments
kept = Segments(8 << 20)
kept.watch()
taken = kept.take(1 << 20, sys.argv[1])
taken.close()
taken.unlink()
print(os.getpid(), flush=True)
if sys.argv[2] == "killed":
    time.sleep(100)
"""


@pytest.mark.parametrize("how", ["killed", "ends"])
def test_nothing_is_left(how: str) -> None:
    """Neither when a process, and all that it has started, is killed; nor when it ends: and there are no complaints."""
    command = [sys.executable, "-c", KEEPS, f"lazycast_test_{secrets.token_hex(8)}", how]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if how == "killed":
        assert len(named(pid)) == 1
        os.killpg(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert said == ""
    end_s = time.monotonic() + 60
    while named(pid):
        assert time.monotonic() < end_s, "its names are still there"
        time.sleep(0.01)


def test_who_opens_it_while_it_is_asked_for_ends_nobody() -> None:
    def child() -> None:
        kept = Segments(8 * N)
        send(kept, N, 1).unlink()
        (path,) = named(os.getpid())
        fcntl.fcntl(kept._kept[0].fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert signal.sigpending() == set()  # it has come, and was ignored
        kept.close()

    assert in_child(child) == 0


def test_threads(kept: Segments) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            nbytes, fill = chance.randrange(N // 2, N), chance.randrange(256)
            found = receive(send(kept, nbytes, fill))
            if content(found) != bytes([fill]) * nbytes:
                wrong.append(seed)
            found.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept.made + kept.used_again == 240
    assert kept.used_again > 200


def test_the_rest_is_pythons_own(kept: Segments) -> None:
    stand_in = SharedMemoryModule(kept)
    assert stand_in.ShareableList is shared_memory.ShareableList
    small = stand_in.SharedMemory(f"lazycast_test_{secrets.token_hex(8)}", create=True, size=1000)
    unnamed = stand_in.SharedMemory(create=True, size=N)
    for one in (small, unnamed):
        assert isinstance(one, shared_memory.SharedMemory)
        one.close()
        one.unlink()
    name = f"lazycast_test_{secrets.token_hex(8)}"
    taken = stand_in.SharedMemory(name=name, create=True, size=N)
    assert isinstance(taken, Taken)
    os.posix_fallocate(taken._fd, 0, N)  # SGLang does it
    opened = stand_in.SharedMemory(name=name)
    assert isinstance(opened, shared_memory.SharedMemory)
    taken.close()
    taken.unlink()
    opened.close()


@pytest.mark.parametrize("given", ["-1", "many"])
def test_the_environment(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    assert segments.wanted_nbytes() == 512 << 20
    monkeypatch.setenv(segments.SEGMENTS, given)
    with pytest.raises(ValueError, match=segments.SEGMENTS):
        segments.wanted_nbytes()

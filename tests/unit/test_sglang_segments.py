"""Memory for SGLang's features that is written again: only when nobody can see it any more."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import pytest

from lazycast.adapters.sglang import segments
from lazycast.adapters.sglang.segments import Segments, SharedMemoryModule, Taken

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


def send(kept: Segments, nbytes: int, fill: int) -> Taken:
    taken = kept.take(nbytes, f"lazycast_test_{secrets.token_hex(8)}")
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


def in_child(run: Callable[[], None]) -> int:
    """Run something in a forked process; return what `waitpid` says of it."""
    pid = os.fork()
    if not pid:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
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
    written = kept.take(N, f"lazycast_test_{secrets.token_hex(8)}")
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
    pid = os.fork()
    if not pid:
        fd = os.open(f"/dev/shm/{taken.name}", os.O_RDWR)
        mapped = mmap.mmap(fd, N, access=mmap.ACCESS_COPY)
        os.close(fd)
        os.write(writer, mapped[:1])
        signal.pause()
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


def test_too_little_memory(kept: Segments) -> None:
    held = receive(send(kept, N, 1))
    huge = Segments(1 << 62)
    with pytest.raises(OSError, match="No space"):
        huge.take(1 << 50, "lazycast_test_huge")
    assert not Path("/dev/shm/lazycast_test_huge").exists()
    taken = Path(f"/dev/shm/lazycast_test_{secrets.token_hex(8)}")
    taken.touch()
    with pytest.raises(FileExistsError):
        kept.take(N, taken.name)
    taken.unlink()
    assert not named(os.getpid())  # it is not in the way of the next
    held.close()
    receive(send(kept, N, 2)).close()


def test_a_fork_keeps_nothing(kept: Segments) -> None:
    receive(send(kept, N, 1)).close()

    def child() -> None:
        assert not kept.keeps(N)
        kept.close()

    assert in_child(child) == 0
    receive(send(kept, N, 2)).close()
    assert kept.used_again == 1


def test_what_the_killed_left_is_taken_away(kept: Segments) -> None:
    send(kept, N, 1).unlink()
    left = Path(f"/dev/shm/lazycast_features_1_{secrets.token_hex(8)}")
    left.touch()
    segments.sweep()
    assert not left.exists()
    assert len(named(os.getpid())) == 1  # not of those who live
    send(kept, N, 1).unlink()
    assert kept.used_again == 1


def test_who_opens_it_while_it_is_asked_for_ends_nobody(kept: Segments) -> None:
    send(kept, N, 1).unlink()
    (path,) = named(os.getpid())
    memory = kept._kept[0]

    def child() -> None:
        fcntl.fcntl(memory.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert signal.sigpending() == set()  # it has come, and was ignored

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

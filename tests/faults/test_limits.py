"""Limits of the process and the machine, interrupts, forks and callbacks: an error with a remedy, and the next cast."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import ClosedError, DecodeError, EncodeError, LazyBroadcast, LazycastError, RemoteError, Tuning, launch

pytestmark = pytest.mark.usefixtures("warm_python")
MIB = 1 << 20
#: What is limited is the process, whatever connects it.
BACKENDS = ["local", pytest.param("torch", marks=pytest.mark.exhaustive)]


def this_rank() -> int:
    return int(os.environ["LAZYCAST_RANK"] if "LAZYCAST_RANK" in os.environ else os.environ["RANK"])


def this_size() -> int:
    return int(os.environ["LAZYCAST_WORLD_SIZE"] if "LAZYCAST_RANK" in os.environ else os.environ["WORLD_SIZE"])


def meet_in(folder: str, where: str = "here") -> None:
    """Wait until all ranks are here, without lazycast: receivers always listen, so a cast waits for nobody.

    It takes neither a descriptor nor memory, so that ranks can meet when all have their limits.
    """
    os.mkdir(f"{folder}/{where}.{this_rank()}")
    until_s = time.monotonic() + 20
    for rank in range(this_size()):
        while not os.path.exists(f"{folder}/{where}.{rank}"):
            assert time.monotonic() < until_s
            time.sleep(0.01)


# Descriptors

_STANDARD = 3  # input, output, errors: these are taken


@contextmanager
def descriptors_limited_to(count: int) -> Iterator[None]:
    """Let this process open `count` more descriptors, or none, whatever is closed meanwhile."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + count if count else _STANDARD, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def has_no_descriptor_left(victim: int, folder: str) -> str:
    """A rank has no descriptor left when the first large payload brings some. That cast fails, the next ones work."""
    with LazyBroadcast(timeout_s=20) as lazy:
        lazy.broadcast("small")
        with descriptors_limited_to(0 if this_rank() == victim else 100):
            meet_in(folder, "all are limited")
            with pytest.raises(LazycastError) as raised:
                lazy.broadcast(np.zeros(MIB, np.uint8))
            lazy.broadcast("small again")
        meet_in(folder, "the limit is lifted")
        for n in range(3):
            assert lazy.broadcast(np.full(MIB, n, np.uint8)).sum() == n * MIB
        wait_until_no_slot_is_held(lazy)
    return f"{type(raised.value).__name__}: {raised.value.message}"


def wait_until_no_slot_is_held(lazy: LazyBroadcast[Any, Any]) -> None:
    """Wait until no slot is held, also none of a cast that failed."""
    until_s = time.monotonic() + 20
    while lazy.stats().shared_slots:
        assert time.monotonic() < until_s, lazy.dump()
        time.sleep(0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_without_descriptors_is_a_clear_error_and_nobody_hangs(
    victim: int, backend: str, tmp_path: Path
) -> None:
    said = launch(has_no_descriptor_left, ranks=3, backend=backend, args=(victim, str(tmp_path)), timeout_s=200)
    if victim == 0:  # the root cannot make its memory
        assert said[0].startswith("EncodeError"), said
        assert "Too many open files" in said[0], said
        assert all(s.startswith("RemoteError") and "Too many open files" in s for s in said[1:]), said
    else:  # a reader cannot take it, and says why
        assert all("RLIMIT_NOFILE" in s and "rank 1" in s for s in said), said
        assert all(s.startswith("DecodeError") for s in said), said


def constructs_without_descriptors() -> tuple[str, tuple[tuple[int, ...], ...]]:
    said = "constructed"
    with descriptors_limited_to(1 if this_rank() == 1 else 100):
        try:
            LazyBroadcast(timeout_s=3).close()
        except (LazycastError, OSError) as exc:
            said = f"{type(exc).__name__}: {exc}"
    with LazyBroadcast(timeout_s=20) as lazy:
        lazy.broadcast("later")
        return said, lazy.stats().hosts


def test_a_construction_without_descriptors_ends_in_time_and_the_next_works() -> None:
    results = launch(constructs_without_descriptors, ranks=3, timeout_s=200)
    assert [hosts for _, hosts in results] == [((0, 1, 2),)] * 3, results
    assert "Too many open files" in results[1][0], results
    for said, _ in (results[0], results[2]):
        assert "rank" in said or said == "constructed", results


# Memory


@contextmanager
def address_space_limited_to(more_nbytes: int) -> Iterator[None]:
    """Let this process map `more_nbytes` more."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + more_nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def root_lacks_memory() -> str:
    with LazyBroadcast(timeout_s=20, tuning=Tuning(arena_nbytes=512 * MIB)) as lazy:
        lazy.broadcast("small")
        payload = np.ones(256 * MIB, np.uint8) if lazy.is_root else None
        with address_space_limited_to(64 * MIB if lazy.is_root else 4096 * MIB):
            try:
                lazy.broadcast(payload)
            except (EncodeError, RemoteError) as exc:
                said = f"{type(exc).__name__}: {exc.message}"
            else:
                raise AssertionError("it was cast")
            assert lazy.broadcast("next") == "next"
        assert lazy.broadcast(payload)[-1] == 1
    return said


def test_a_root_without_memory_fails_that_cast_and_the_next_works() -> None:
    said = launch(root_lacks_memory, ranks=2, timeout_s=200)
    assert said[0].startswith("EncodeError"), said
    assert said[1].startswith("RemoteError"), said
    assert all("emory" in s for s in said), said


def grows(payload: Any) -> Any:
    """A payload of a list that takes much more memory than its pickle."""
    return payload


class Balloon:
    """Small on the way, 512 MiB where it is unpickled."""

    def __reduce__(self) -> Any:
        return bytearray, (512 * MIB,)


def reader_lacks_memory(folder: str) -> str:
    with LazyBroadcast(grows, timeout_s=20, placement="every") as lazy:
        lazy.broadcast("small")
        with address_space_limited_to(128 * MIB if this_rank() == 1 else 4096 * MIB):
            meet_in(folder)
            with pytest.raises(DecodeError) as raised:
                lazy.broadcast(Balloon() if lazy.is_root else None)
            assert raised.value.rank == 1
            assert lazy.broadcast("next") == "next"
    return raised.value.message


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reader_without_memory_fails_that_cast_for_all_and_the_next_works(backend: str, tmp_path: Path) -> None:
    for said in launch(reader_lacks_memory, ranks=3, backend=backend, args=(str(tmp_path),), timeout_s=200):
        assert "rank 1" in said, said
        assert "MemoryError" in said, said


def reader_cannot_map(folder: str, which: int) -> str:
    with LazyBroadcast(timeout_s=20, tuning=Tuning(arena_nbytes=512 * MIB)) as lazy:
        lazy.broadcast("small")
        old = resource.getrlimit(which)
        if this_rank() == 2:
            field = "VmSize:" if which == resource.RLIMIT_AS else "VmData:"
            lines = Path("/proc/self/status").read_text().splitlines()
            used_kib = next(int(line.split()[1]) for line in lines if line.startswith(field))
            resource.setrlimit(which, ((used_kib << 10) + 64 * MIB, old[1]))
        try:
            meet_in(folder, "all are limited")
            with pytest.raises(DecodeError) as raised:
                lazy.broadcast(np.zeros(MIB, np.uint8) if lazy.is_root else None)
            assert raised.value.rank == 2
            assert lazy.broadcast("next") == "next"
        finally:
            resource.setrlimit(which, old)
        meet_in(folder, "the limit is lifted")
        for n in range(3):
            assert lazy.broadcast(np.full(MIB, n, np.uint8)).sum() == n * MIB
        wait_until_no_slot_is_held(lazy)
    return raised.value.message


@pytest.mark.parametrize("limit", ["RLIMIT_AS", pytest.param("RLIMIT_DATA", marks=pytest.mark.exhaustive)])
def test_a_reader_that_cannot_map_an_arena_fails_that_cast_alone(limit: str, tmp_path: Path) -> None:
    which = getattr(resource, limit)
    for said in launch(reader_cannot_map, ranks=3, args=(str(tmp_path), which), timeout_s=200):
        assert "rank 2" in said, said
        assert f"{limit}" in said, said


def cgroup_of(nbytes: int) -> Path | str:
    """Make a memory cgroup with a limit; or say why not."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    name = f"lazycast-test-{os.getpid()}"
    try:
        if (v1 / "memory.limit_in_bytes").exists():
            made = v1 / name
            made.mkdir()
            (made / "memory.limit_in_bytes").write_text(str(nbytes))
            return made
        if (v2 / "cgroup.controllers").exists() and "memory" in (v2 / "cgroup.controllers").read_text():
            made = v2 / name
            made.mkdir()
            (made / "memory.max").write_text(str(nbytes))
            return made
    except OSError as exc:
        return f"no memory cgroup can be made here: {exc}"
    return "there is no memory cgroup here"


def casts_in_a_cgroup(path: str) -> tuple[str, int]:
    (Path(path) / "cgroup.procs").write_text(str(os.getpid()))
    with LazyBroadcast(timeout_s=30, tuning=Tuning(arena_nbytes=1024 * MIB)) as lazy:
        held = []
        n = 0
        try:
            for n in range(100):
                held.append(lazy.broadcast(np.full(8 * MIB, n, np.uint8) if lazy.is_root else None))
        except (EncodeError, RemoteError) as exc:
            said = f"{type(exc).__name__}: {exc.message}"
        else:
            raise AssertionError("800 MiB were cast in a group of 256")
        assert all(value[-1] == k for k, value in enumerate(held))
        held.clear()
        assert lazy.broadcast("next") == "next"
        return said, n


def test_in_a_small_cgroup_a_cast_fails_before_the_kernel_kills() -> None:
    group = cgroup_of(320 * MIB)
    if isinstance(group, str):
        pytest.skip(group)
    try:
        results = launch(casts_in_a_cgroup, ranks=2, args=(str(group),), timeout_s=200)
    finally:
        group.rmdir()
    assert results[0][0].startswith("EncodeError"), results
    assert results[1][0].startswith("RemoteError"), results
    assert "cgroup" in results[0][0], results
    assert results[0][1] >= 3, results  # some did fit


# /dev/shm

WITHOUT_SHM = """
mount -t tmpfs -o size=4k,mode=1777 none /dev/shm || exit 77
head -c 8192 /dev/zero > /dev/shm/full 2> /dev/null && exit 78
exec "$0" -m lazycast.testing --backend local --launch 3 --only {only}
"""


@pytest.mark.cold  # a mount of its own
def test_a_full_dev_shm_does_not_matter() -> None:
    """Values in shared memory, where not a page of /dev/shm is left."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of one's own needs root and unshare")
    command = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        WITHOUT_SHM.format(only="beyond_the_chunk_size"),
        sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr


# Interrupts


def is_interrupted(mine: int, folder: str) -> list[str]:
    """Ctrl-C while a rank waits in `result()`: it may wait again, and nobody is out of step."""
    said = []
    with LazyBroadcast(wait_at_the_gate, timeout_s=30, placement="every") as lazy:
        for n in range(3):
            gate = Path(folder, str(n))
            future = lazy.broadcast_async((str(gate), mine), key=n)
            if lazy.rank == mine:
                timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                try:
                    future.result(20)
                except KeyboardInterrupt:
                    said.append("interrupted")
                gate.touch()
                timer.join()
            said.append(future.result(20))
        gate = Path(folder, "2")
        assert lazy.broadcast((str(gate), mine)) == "value"
    return said


def wait_at_the_gate(payload: tuple[str, int]) -> str:
    """The ranks that nobody interrupts take their time."""
    gate, mine = payload
    until_s = time.monotonic() + 20
    while this_rank() != mine and not Path(gate).exists() and time.monotonic() < until_s:
        time.sleep(0.01)
    return "value"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mine", [0, 1], ids=["root", "follower"])
def test_an_interrupt_in_result_leaves_the_group_in_step(mine: int, backend: str, tmp_path: Path) -> None:
    results = launch(is_interrupted, ranks=2, backend=backend, args=(mine, str(tmp_path)), timeout_s=200)
    assert results[mine] == ["interrupted", "value"] * 3
    assert results[1 - mine] == ["value"] * 3


# Forks, callbacks


def forks_in_the_middle() -> list[int]:
    """Children are forked while casts are under way on other threads; they end, and no cast is lost."""
    codes = []
    with LazyBroadcast(timeout_s=30) as lazy:
        over = threading.Event()

        def fork_again_and_again() -> None:
            context = multiprocessing.get_context("fork")
            for _ in range(4):
                child = context.Process(target=lazy_is_of_no_use, args=(lazy,))
                child.start()
                child.join(60)
                codes.append(child.exitcode or 0)
            over.set()

        thread = threading.Thread(target=fork_again_and_again)
        thread.start()
        n = 0
        while True:  # until the root says so: the ranks' children do not end at the same time
            value = lazy.broadcast(np.full(1000 + 300 * (n % 200), n % 251, np.uint8) if lazy.is_root else None, key=n)
            assert (value == n % 251).all()
            n += 1
            if lazy.broadcast(over.is_set() if lazy.is_root else None, key=f"over {n}") and n >= 200:
                break
        thread.join(250)
    return codes


def lazy_is_of_no_use(lazy: LazyBroadcast[Any, Any]) -> None:
    with pytest.raises(ClosedError, match="parent of this forked process"):
        lazy.broadcast(1)


def test_forks_in_the_middle_of_casts_harm_nobody() -> None:
    for codes in launch(forks_in_the_middle, ranks=2, timeout_s=200):
        assert codes == [0] * 4, codes


def has_bad_callbacks() -> list[str]:
    """A callback that raises is logged; the ones after it run, and so does the engine."""
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage() + str(record.exc_info and record.exc_info[1]))

    logging.getLogger("concurrent.futures").addHandler(Keep())
    logging.getLogger("lazycast").addHandler(Keep())
    ran = threading.Event()
    with LazyBroadcast(timeout_s=30) as lazy:
        future = lazy.broadcast_async(1, key="k")
        future.add_done_callback(lambda f: 1 / 0)
        future.add_done_callback(lambda f: [][0])
        future.add_done_callback(lambda f: ran.set())
        assert future.result(20) == 1
        assert ran.wait(20)
        assert lazy.broadcast("next") == "next"
        again = lazy.broadcast_async(2, key="l")
        seen = threading.Event()
        again.add_done_callback(lambda f: seen.set())
        assert seen.wait(20)
    return logged


@pytest.mark.parametrize("backend", ["local", "threads"])
def test_a_callback_that_raises_is_logged_and_harms_nobody(backend: str) -> None:
    for logged in launch(has_bad_callbacks, ranks=2, backend=backend, timeout_s=200):
        for text in ("division by zero", "list index out of range"):
            assert any(text in line for line in logged), logged

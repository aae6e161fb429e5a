"""Values in shared memory: kept, dropped, written to, forked, more than fit; and ranks killed or without any of it."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import queue
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import EncodeError, LazyBroadcast, RemoteError, Tuning, launch
from tests.own_shm import own_shm

pytestmark = pytest.mark.usefixtures("warm_python")
SHARED_NBYTES = 100_000  # above what is copied, not a multiple of a page
MIB = 1 << 20


def pattern(n: int, nbytes: int = SHARED_NBYTES) -> np.ndarray:
    """Return the bytes of cast `n`: each cast has its own, and every rank can tell them."""
    return np.frombuffer(random.Random(n).randbytes(nbytes), np.uint8).copy()


def cast(lazy: LazyBroadcast[Any, Any], n: int, nbytes: int = SHARED_NBYTES) -> np.ndarray:
    return lazy.broadcast(pattern(n, nbytes) if lazy.is_root else None)


def same_bytes(value: np.ndarray, n: int, what: str = "") -> None:
    assert value.tobytes() == pattern(n, value.nbytes).tobytes(), f"the value of cast {n} has changed {what}"


def until(true: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait for something that another process brings about."""
    deadline_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.005)


def nothing_is_held(lazy: LazyBroadcast[Any, Any], but: int = 0) -> None:
    gc.collect()
    if lazy.is_root:
        until(lambda: lazy.stats().shared_slots == but, lambda: f"{lazy.stats().shared_slots} slots are still held")


# Holding


def _torch_tensor(value: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(value)[777:780]


def _torch_storage(value: np.ndarray) -> Any:
    import torch

    return torch.frombuffer(memoryview(value), dtype=torch.uint8).view(-1, 4)[200:201].reshape(-1)


def _image(value: np.ndarray) -> Any:
    from PIL import Image

    return Image.frombuffer("L", (100, 1000), value, "raw", "L", 0, 1)


class _Array(np.ndarray):
    """NumPy forgets such bases."""


KEEPS: dict[str, Callable[[np.ndarray], Any]] = {
    "all": lambda value: value,
    "slice": lambda value: value[500:501],
    "slice of slices": lambda value: value[100:90_000][::-3].reshape(-1)[10:20][2:],
    "other type": lambda value: value.view(np.uint16)[7:9],
    "subclass": lambda value: value.view(_Array)[3:4],
    "memoryview": lambda value: memoryview(value)[9_000:9_001],
    "array of a memoryview": lambda value: np.asarray(memoryview(value).cast("B"))[1:3],
    "tensor": _torch_tensor,
    "view of a tensor": _torch_storage,
    "image": _image,
}


def holds() -> None:
    for how, keep in KEEPS.items():
        holds_with(how, keep)


def holds_with(how: str, keep: Callable[[np.ndarray], Any]) -> None:
    with LazyBroadcast(tuning=Tuning(arena_nbytes=4 * MIB), timeout_s=60) as lazy:
        held = []
        for n in range(20):
            value = cast(lazy, n)
            held.append((n, keep(value), bytes(np.asarray(keep(value)))))
            same_bytes(value, n)
            del value
        for n in range(50):  # the arena takes 20 besides, so each place is used again and again
            same_bytes(cast(lazy, 1000 + n), 1000 + n)
        for n, part, was in held:
            assert bytes(np.asarray(part)) == was == bytes(np.asarray(keep(pattern(n)))), (how, n)
        if lazy.is_root:
            assert lazy.stats().shared_slots >= 20, lazy.stats()
        lazy.broadcast("drop them")
        del part
        held.clear()
        nothing_is_held(lazy)


def test_a_part_of_a_value_of_any_kind_keeps_its_slot() -> None:
    launch(holds, ranks=2, timeout_s=200)


def holds_thousands(count: int, arena_nbytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    with LazyBroadcast(tuning=Tuning(arena_nbytes=arena_nbytes), agree=False, timeout_s=60) as lazy:
        base = np.zeros(64 << 10, np.uint8)
        held = []
        for n in range(count):
            if lazy.is_root:  # whose futures are done when the payload has been encoded
                base[:4].view(np.uint32)[0] = base[-4:].view(np.uint32)[0] = n
            held.append(lazy.broadcast(base))
        lazy.broadcast("all there")
        if lazy.is_root:
            until(lambda: lazy.stats().shared_slots == count, lambda: lazy.stats().shared_slots)
        else:
            for n, value in enumerate(held):
                assert value.shape == (64 << 10,)
                assert value[:4].view(np.uint32)[0] == value[-4:].view(np.uint32)[0] == n
            del value
        assert len(os.listdir("/proc/self/fd")) < 200
        lazy.broadcast("drop them")
        held.clear()
        nothing_is_held(lazy)
        same_bytes(cast(lazy, 1), 1)


@pytest.mark.parametrize(
    ("count", "arena_nbytes"),
    [
        pytest.param(1200, 52 * MIB, id="twelve hundred, also in segments"),
        pytest.param(5000, 512 * MIB, id="five thousand in the arena", marks=pytest.mark.exhaustive),
        pytest.param(5000, 220 * MIB, id="five thousand, also in segments", marks=pytest.mark.exhaustive),
    ],
)
def test_more_values_are_held_than_there_are_descriptors(count: int, arena_nbytes: int) -> None:
    launch(holds_thousands, ranks=2, args=(count, arena_nbytes), timeout_s=200)


# Writing


def writes(values: str) -> None:
    # Inline, copied, in the arena, also in segments.
    for arena_nbytes, nbytes in ((4 * MIB, 100), (4 * MIB, 30_001), (4 * MIB, SHARED_NBYTES), (4 * MIB, 700_001)):
        writes_to(values, arena_nbytes, nbytes)


def writes_to(values: str, arena_nbytes: int, nbytes: int) -> None:
    # Ranks that lag behind hold what they have not read; so that not more is held than fits, not many may be unread.
    with LazyBroadcast(values=values, tuning=Tuning(arena_nbytes=arena_nbytes, max_inflight=2), timeout_s=60) as lazy:
        own = np.uint8(lazy.rank + 1)
        held: list[np.ndarray] = []
        for n in range(30):
            value = cast(lazy, n, nbytes)
            same_bytes(value, n)
            assert value.flags.writeable
            value[: nbytes // 2] = own  # half of it, so that what others write to the rest would show too
            held.append(value)
            del value
            if len(held) > 6:
                held.pop(n % 6)
            for kept in held:
                assert (kept[: nbytes // 2] == own).all(), f"rank {lazy.rank} sees what another wrote, after cast {n}"
            del kept
        held.clear()
        nothing_is_held(lazy)


@pytest.mark.parametrize("values", ["private", pytest.param("copy", marks=pytest.mark.exhaustive)])
def test_what_a_rank_writes_is_seen_by_nobody_else_nor_in_the_next_value(values: str) -> None:
    launch(writes, ranks=3, args=(values,), timeout_s=200)


# Forking


def forks(child_outlives: bool) -> None:
    with LazyBroadcast(tuning=Tuning(arena_nbytes=16 * MIB), timeout_s=60) as lazy:
        held = [cast(lazy, n) for n in range(10)]
        go_on, told = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            told.close()
            if child_outlives:
                go_on.recv()
                for n, value in enumerate(held):
                    same_bytes(value, n, "in the child")
            for value in held:
                value[:] = 7
            del value
            held.clear()
            gc.collect()  # the finalizers run here

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        go_on.close()
        if child_outlives:  # what the child has lasts though this process drops it
            held.clear()
            gc.collect()
        else:
            process.join(60)
            assert process.exitcode == 0
        LazyBroadcast(name="both have forked").close()  # what arrives before a rank forks would be its child's too
        for n in range(100):
            same_bytes(cast(lazy, 1000 + n), 1000 + n)
        for n, value in enumerate(held):
            same_bytes(value, n, "in the parent")
            value[:] = 9
        if child_outlives:
            told.send("go on")
            process.join(60)
            assert process.exitcode == 0, "see the child's traceback"
        told.close()
        value = None
        held.clear()
        nothing_is_held(lazy, but=10)  # those that the child had too, until the end; none of what came later


@pytest.mark.parametrize("child_outlives", [False, True], ids=["ends first", "reads later"])
def test_a_forked_child_and_its_parent_have_their_own_values(child_outlives: bool) -> None:
    launch(forks, ranks=2, args=(child_outlives,), timeout_s=200)


# Churn


class Plan:
    """Which bytes each cast has: the same on every rank."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._base = np.frombuffer(random.Random(seed).randbytes(4 * MIB), np.uint8)

    def next(self) -> np.ndarray:
        sort = self._random.random()
        nbytes = 0 if sort < 0.03 else 2 * MIB if sort > 0.99 else int(self._random.random() ** 2 * 300 * 1024)
        start = self._random.randrange(self._base.nbytes - nbytes)
        return self._base[start : start + nbytes]


class Droppers:
    """Threads that look at values again some time later, and drop them."""

    def __init__(self, count: int, seed: int) -> None:
        self._queue: queue.Queue[tuple[np.ndarray, int] | None] = queue.Queue(30)
        self._errors: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(random.Random(seed + i),)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, rng: random.Random) -> None:
        kept: list[tuple[np.ndarray, int]] = []
        while (item := self._queue.get()) is not None:
            kept.append(item)
            del item
            if len(kept) > 20:
                self._drop(*kept.pop(rng.randrange(len(kept))))
        while kept:
            self._drop(*kept.pop())

    def _drop(self, value: np.ndarray, checksum: int) -> None:
        if zlib.crc32(value) != checksum:
            self._errors.append(f"a value of {value.nbytes} bytes has changed")

    def take(self, value: np.ndarray, checksum: int) -> None:
        self._queue.put((value, checksum))

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self._errors, self._errors


def memory_in_use() -> tuple[int, int, int]:
    """Return descriptors, mappings of shared memory, and kilobytes of anonymous memory of this process."""
    maps = Path("/proc/self/maps").read_text().count("memfd:lazycast")
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert anonymous is not None
    return len(os.listdir("/proc/self/fd")), maps, int(anonymous[1])


def churn(lazy: LazyBroadcast[Any, Any], casts: int, seed: int) -> None:
    plan, own = Plan(seed), random.Random(seed * 100 + lazy.rank)
    droppers = Droppers(2, seed)
    held: list[tuple[np.ndarray, int]] = []
    for _ in range(casts // 8):
        sources = [plan.next() for _ in range(8)]
        futures = [lazy.broadcast_async(source.copy() if lazy.is_root else None) for source in sources]
        for source in sources:
            value, checksum = futures.pop(0).result(60), zlib.crc32(source)
            assert value.shape == source.shape
            fate = own.random()
            if fate < 0.3:
                droppers.take(value, checksum)
            elif fate < 0.6:
                held.append((value, checksum))
            else:
                assert zlib.crc32(value) == checksum
            del value
            if len(held) > 40:
                value, checksum = held.pop(own.randrange(len(held)))
                assert zlib.crc32(value) == checksum, "a held value has changed"
                del value
    for value, checksum in held:
        assert zlib.crc32(value) == checksum, "a held value has changed"
    held.clear()
    del value
    droppers.close()


def churns(casts: int) -> None:
    with LazyBroadcast(tuning=Tuning(arena_nbytes=24 * MIB), timeout_s=60) as lazy:
        churn(lazy, casts // 2, seed=1)
        lazy.broadcast(0)
        nothing_is_held(lazy)
        descriptors, mappings, anonymous_kb = memory_in_use()
        churn(lazy, casts, seed=2)
        lazy.broadcast(0)
        nothing_is_held(lazy)
        now = memory_in_use()
        assert now[:2] == (descriptors, mappings)
        assert now[2] < anonymous_kb + (64 << 10), (anonymous_kb, now)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("casts", [800, pytest.param(20_000, marks=[pytest.mark.exhaustive, pytest.mark.long])])
def test_no_value_changes_and_nothing_grows_in_many_casts(casts: int) -> None:
    launch(churns, ranks=3, args=(casts,), timeout_s=180)


# More than fits


def is_larger_than_the_arena() -> None:
    with LazyBroadcast(tuning=Tuning(arena_nbytes=MIB), timeout_s=60) as lazy:
        for n in range(4):
            value = cast(lazy, n, 3 * MIB + 1)
            same_bytes(value, n)
            value[:] = 0
            del value
            same_bytes(cast(lazy, n), n)
            nothing_is_held(lazy)  # the root may be ahead of those who still look


def test_a_payload_larger_than_the_arena_arrives() -> None:
    launch(is_larger_than_the_arena, ranks=3, timeout_s=200)


def fills() -> list[int]:
    descriptors = len(os.listdir("/proc/self/fd"))
    with LazyBroadcast(tuning=Tuning(arena_nbytes=4 * MIB), timeout_s=60) as lazy:
        held: list[np.ndarray] = []
        counts = []
        for round_ in range(3):
            for n in range(1000):
                try:
                    value = cast(lazy, n)
                except (EncodeError, RemoteError) as exc:
                    error = exc
                    break
                if lazy.rank == 2 and n:
                    del value  # one of them holds next to nothing
                else:
                    held.append(value)
                    del value
            else:
                raise AssertionError("a thousand values of 100 kB were held in 8 MiB")
            assert isinstance(error, EncodeError if lazy.is_root else RemoteError)
            assert re.search(r"rank 1 holds \d+ values, \d+ bytes; .*raise arena_nbytes", str(error)), error
            assert "rank 0 holds" not in str(error)  # the root has its payload, and no hold on its slot
            del error
            assert lazy.broadcast(round_) == round_  # needs no shared memory
            counts.append(n)
            for n, value in enumerate(held):
                same_bytes(value, n)
            del value
            held.clear()
            nothing_is_held(lazy)
            # The others' next casts wait until the root has found all of it free.
            lazy.broadcast("go on")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1, os.listdir("/proc/self/fd")
    return counts


def test_held_values_fill_the_arena_then_segments_and_then_fail_casts_until_they_are_dropped() -> None:
    results = launch(fills, ranks=3, timeout_s=200)
    assert results[0] == results[1] == results[2], results
    first, *later = results[0]
    assert 60 <= first <= 84, results  # pieces of 25 pages, in twice 4 MiB
    assert all(count == first for count in later), results


# Sandboxes


def has_no_memfd(root: int) -> tuple[tuple[int, ...], ...]:
    if os.environ["LAZYCAST_RANK"] == "1":

        def refused(*args: Any) -> int:
            raise PermissionError(1, "Operation not permitted")

        os.memfd_create = refused
    with LazyBroadcast(root=root, timeout_s=60) as lazy:
        for n, nbytes in enumerate((0, 1, 20_000, SHARED_NBYTES, 5 * MIB + 1)):
            value = cast(lazy, n, nbytes)
            same_bytes(value, n)
            value[:] = lazy.rank
            del value
        nothing_is_held(lazy)
        return lazy.stats().hosts


@pytest.mark.parametrize("root", [1, *(pytest.param(root, marks=pytest.mark.exhaustive) for root in (0, 2))])
def test_a_rank_without_memfd_gets_everything_through_the_network(root: int) -> None:
    for hosts in launch(has_no_memfd, ranks=4, args=(root,), timeout_s=200):
        assert hosts == ((0, 2, 3), (1,))


# Killing. The test starts the ranks itself: launch() would end the others.


@contextlib.contextmanager
def started(
    ranks: int, backend: str, folder: Path, temporary: Path, victim: int, within: list[str]
) -> Iterator[list[subprocess.Popen]]:
    script = Path(__file__).with_name("shared_memory_scenarios.py")
    common = {"WORLD_SIZE": str(ranks), "FOLDER": str(folder), "GLOO_SOCKET_IFNAME": "lo", "VICTIM": str(victim)}
    common |= {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*within, sys.executable, str(script), backend],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(ranks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.cold  # a mount of its own
@pytest.mark.parametrize(
    ("backend", "victim"),
    [
        ("local", 1),
        *(pytest.param(*it, marks=pytest.mark.exhaustive) for it in (("local", 0), ("local", 2), ("torch", 1))),
    ],
)
def test_nothing_is_left_of_a_killed_rank_and_what_the_others_hold_lasts(backend: str, victim: int) -> None:
    with own_shm() as shm, tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
        with started(3, backend, Path(folder), Path(temporary), victim, shm.within) as processes:
            for rank, process in enumerate(processes):
                stdout, stderr = process.communicate(timeout=200)
                if rank == victim:
                    assert process.returncode == -signal.SIGKILL, stderr
                    continue
                assert process.returncode == 0, stderr
                assert "Traceback" not in stderr, stderr
                said = json.loads(stdout)
                assert said["kind"] == "PeerLostError", said
                assert said["rank"] == victim, said
                assert said["held"] > 0
            for process in processes:  # the leader of a group of its own: has it left children?
                with pytest.raises(ProcessLookupError):
                    os.killpg(process.pid, 0)
        assert os.listdir(temporary) == []
        assert shm.files() == []

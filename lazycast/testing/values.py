"""What is cast arrives: payloads of all kinds, materializers of all kinds, placements, keys, roots."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import random
import threading
from typing import Any

import numpy as np

from lazycast.errors import KeyInUseError
from lazycast.materialize.materializers import register_materializer
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same


def payloads() -> dict[str, Any]:
    """Return objects that are known to go wrong somewhere."""
    rng = np.random.default_rng(7)
    grid = rng.standard_normal((40, 30))
    return {
        "none": None,
        "nested": {"a": [1, 2.5, "text", b"bytes", (None, True)], "é": {"deep": [{}]}},
        "empty bytes": b"",
        "bytes": rng.bytes(100_001),
        "array": grid,
        "empty array": np.empty((0, 3), np.float32),
        "0-d array": np.array(3.5),
        "strided": grid[::2, 1::3],
        "transposed": grid.T,
        "fortran": np.asfortranarray(grid),
        "reversed": grid[::-1],
        "strings": np.array(["a", "bcd"]),
        "structured": np.zeros(3, [("x", "<i4"), ("y", "<f8", (2,))]),
        "bool": rng.random(17) > 0.5,
        "complex": rng.standard_normal(5) + 1j,
        "several arrays": [np.arange(n, dtype=np.uint8) for n in range(70)],
        "large": rng.integers(0, 255, (9 << 20) + 5, np.uint8),
    }


@behaviour()
def payloads_arrive_equal_from_every_root(rank: Rank) -> None:
    expected = payloads()
    for root in range(rank.size):
        with rank.lazy(root=root) as lazy:
            for name, payload in expected.items():
                same(lazy.broadcast(payload if lazy.is_root else "ignored"), payload, name)


@behaviour(min_size=2)
def values_are_private_and_writable_as_they_were(rank: Rank) -> None:
    with rank.lazy() as lazy:
        payload = {"writable": np.zeros(200_000), "fixed": np.zeros(200_000)}
        payload["fixed"].flags.writeable = False
        value = lazy.broadcast(payload)
        check(value["writable"].flags.writeable, "a writable array arrived read-only")
        check(not value["fixed"].flags.writeable, "a read-only array arrived writable")
        if not lazy.is_root:  # the root has its own payload
            check(value["writable"].ctypes.data % 64 == 0, "an array is not aligned")
        value["writable"] += 1 + rank.rank
        rank.meet()
        check(bool((value["writable"] == 1 + rank.rank).all()), "another rank's write is seen here")


@behaviour(min_size=2)
def values_may_be_asked_for_read_only_or_as_copies(rank: Rank) -> None:
    for nbytes in (1000, 300_000):
        with rank.lazy(values="readonly") as lazy:
            value = lazy.broadcast(np.arange(nbytes, dtype=np.uint8))
            same(value, np.arange(nbytes, dtype=np.uint8))
            check(value.flags.writeable == lazy.is_root, "an array can be written to, or the root's own cannot")
        with rank.lazy(values="copy") as lazy:
            value = lazy.broadcast(np.zeros(nbytes, np.uint8))
            value += 1 + rank.rank
            rank.meet()
            check(bool((value == 1 + rank.rank).all()), "another rank's write is seen here")
            same(lazy.stats().shared_slots, 0, "slots in use, though every value is a copy")


def total(array: np.ndarray) -> float:
    """A materializer with an import path."""
    return float(array.sum())


class Scaler:
    """Materializers with state."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, array: np.ndarray) -> float:
        return float(array.sum()) * self.factor

    def __call__(self, array: np.ndarray) -> float:
        return self.scale(array)

    @classmethod
    def negative(cls, array: np.ndarray) -> float:
        return -float(array.sum())


@behaviour()
def materializers_of_every_kind(rank: Rank) -> None:
    factor = 3.0
    scaler = Scaler(4.0)
    kinds: dict[str, tuple[Any, Any]] = {
        "function": (total, 45.0),
        "lambda": (lambda a: float(a.sum()) + 1, 46.0),
        "closure": (lambda a: float(a.sum()) * factor, 135.0),
        "partial": (functools.partial(np.sum, axis=0), np.float64(45.0)),
        "bound method": (scaler.scale, 180.0),
        "callable object": (Scaler(2.0), 90.0),
        "class method": (Scaler.negative, -45.0),
        "class": (list, [float(n) for n in range(10)]),
        "builtin": (len, 10),
    }
    with rank.lazy() as lazy:
        for _ in range(2):  # the second time by digest
            for name, (materialize, expected) in kinds.items():
                fn = materialize if lazy.is_root else None
                value = lazy.broadcast(np.arange(10.0), materialize=fn)
                check(value == expected, f"{name}: {value!r} instead of {expected!r}")
        scaler.factor = 5.0
        same(lazy.broadcast(np.arange(10.0), materialize=scaler.scale), 225.0, "after a change of its state")
    with rank.lazy(total) as lazy:
        same(lazy.broadcast(np.ones(5)), 5.0)


@behaviour()
def placements_decide_who_materializes(rank: Rank) -> None:
    for agree in (True, False):
        for placement, workers in (("every", range(rank.size)), ("root", [0])):
            with rank.lazy(lambda text: text.upper(), placement=placement, agree=agree) as lazy:
                same(lazy.broadcast("payload"), "PAYLOAD", placement)
                rank.meet()
                same(lazy.stats().materialize.count, int(rank.rank in workers), f"materialized under {placement}")


@behaviour()
def on_demand_only_a_rank_that_asks_materializes(rank: Rank) -> None:
    with rank.lazy(lambda text: text.upper(), placement="demand") as lazy:
        if lazy.is_root:
            same(lazy.broadcast("one", key=1), "ONE")
            same(lazy.broadcast("two", key=2), "TWO")
        elif rank.rank == rank.last:
            same(lazy.broadcast(key=2), "TWO")
        else:
            lazy.discard(1)
        rank.meet()
        expected = 2 if lazy.is_root else int(rank.rank == rank.last)
        same(lazy.stats().materialize.count, expected, "materialized")


@behaviour()
def keys_match_in_any_order(rank: Rank) -> None:
    keys: list[str | int | bytes] = [1, "1", b"1", "", b"", -(1 << 63), (1 << 64) - 1, "ключ", "x" * 1024]
    with rank.lazy() as lazy:
        order = keys.copy()
        random.Random(rank.rank).shuffle(order)
        futures = {key: lazy.broadcast_async(["value of", key], key=key) for key in order}
        for key in keys:
            same(futures[key].result(), ["value of", key])
        for _ in range(3):  # a key may be used again when its future is done
            same(lazy.broadcast("again", key=1), "again")


@behaviour()
def bad_keys_are_refused_here_and_nobody_waits(rank: Rank) -> None:
    with rank.lazy() as lazy:
        bad: Any
        for bad in (1.5, True, ("a",)):
            raises(TypeError, "a key is a str, int or bytes", functools.partial(lazy.broadcast, 1, key=bad))
        raises(ValueError, "64 bits", lambda: lazy.broadcast(1, key=1 << 64))
        raises(ValueError, "at most 1024 bytes", lambda: lazy.broadcast(1, key="é" * 600))
        same(lazy.broadcast("works"), "works")


@behaviour()
def a_key_in_use_is_refused_and_counts(rank: Rank) -> None:
    gate = threading.Event()
    executor = rank.executor(1)
    with executor, rank.lazy(executor=executor, placement="every") as lazy:
        held = executor.submit(gate.wait, TIMEOUT_S)  # materializing waits for the gate
        rank.meet()
        first = lazy.broadcast_async(b"first", key="k", materialize=bytes)
        raises(KeyInUseError, "'k'.*still pending", lambda: lazy.broadcast_async(b"second", key="k"))
        gate.set()
        held.result()
        same(first.result(), b"first")
        same(lazy.broadcast(b"third", key="k"), b"third")


@behaviour()
def calls_without_a_key_match_by_count(rank: Rank) -> None:
    with rank.lazy() as lazy:
        futures = [lazy.broadcast_async(n) for n in range(50)]
        keyed = lazy.broadcast_async("keyed", key="k")
        same([future.result() for future in futures], list(range(50)))
        same(keyed.result(), "keyed")


@behaviour()
def futures_work_with_the_standard_library(rank: Rank) -> None:
    with rank.lazy() as lazy:
        futures = [lazy.broadcast_async(n, key=n) for n in range(8)]
        done, pending = concurrent.futures.wait(futures, timeout=30)
        check(not pending and len(done) == 8, f"{len(pending)} futures are pending")
        same(sorted(f.result() for f in concurrent.futures.as_completed(futures, timeout=30)), list(range(8)))
        called: list[tuple[int, str]] = []
        event = threading.Event()

        def note(future: concurrent.futures.Future[int]) -> None:
            called.append((future.result(), threading.current_thread().name))
            event.set()

        lazy.broadcast_async(99).add_done_callback(note)
        check(event.wait(30), "the callback did not run")
        check(called[0][0] == 99, f"the callback got {called}")
        check("engine" not in called[0][1] and "recv" not in called[0][1], f"it ran on {called[0][1]}")


def shout(text: str) -> str:
    return text.upper()


@behaviour()
def a_registered_materializer_travels_by_its_name(rank: Rank) -> None:
    scream = register_materializer("lazycast.testing: scream", lambda text: text.upper() + "!")
    with rank.lazy(scream) as lazy:
        same(lazy.broadcast("hey"), "HEY!")
    raises(TypeError, "is callable", lambda: register_materializer("x", 3))  # type: ignore[arg-type]
    raises(ValueError, "1 to 200 characters", lambda: register_materializer("", shout))


@behaviour()
def several_objects_share_a_group(rank: Rank) -> None:
    objects = [rank.lazy(root=n % rank.size) for n in range(4)]
    for turn in range(5):
        for number, lazy in reversed(list(enumerate(objects))):
            same(lazy.broadcast((number, turn)), (number, turn))
    for lazy in objects:
        lazy.close()


@behaviour()
def a_payload_beyond_the_chunk_size_is_intact(rank: Rank) -> None:
    with rank.lazy(lambda a: hashlib.sha256(a).hexdigest()) as lazy:
        payload = np.random.default_rng(3).bytes((33 << 20) + 17)
        same(lazy.broadcast(np.frombuffer(payload, np.uint8)), hashlib.sha256(payload).hexdigest())

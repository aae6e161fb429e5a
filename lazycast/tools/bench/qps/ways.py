"""The ways that are compared. To add one: a class with a name, `about` and `start`, and its place in `WAYS`.

Every way is made anew for each workload, on every rank and in the same order, and has its own group, communicator or
object. Rank 0 is the root. The constructor raises ValueError or ImportError, on every rank alike, where a way does not
exist: for this backend, for this workload, in this version of the library; the report says so.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import lazycast
from lazycast.materialize.staged import Staged
from lazycast.tools.bench import ways as transfers
from lazycast.tools.bench.qps.workloads import Workload
from lazycast.tools.bench.sync import TIMEOUT_S
from lazycast.watch.stats import Stats


class Place(NamedTuple):
    """Which rank of which group this is."""

    rank: int
    size: int
    backend: str


class Way(ABC):
    """One way to get the value of a request to every rank.

    Attributes:
        collective_s: time spent in collectives of the peers so far (seconds).
    """

    name: ClassVar[str]
    about: ClassVar[str]
    #: Whether it is what people do without this library.
    known: ClassVar[bool] = True
    #: Whether a request waits for the root, so that other ranks need not be told when it may start.
    led: ClassVar[bool] = True

    def __init__(self, place: Place, workload: Workload) -> None:
        self.place = place
        self.workload = workload
        self.collective_s = 0.0

    @property
    def is_root(self) -> bool:
        return self.place.rank == 0

    @abstractmethod
    def start(self, number: int, payload: Any) -> Future[Any]:
        """Ask for request `number`, from the main thread, in the same order on every rank; return its future.

        Args:
            payload: only ways that need it everywhere may look at it elsewhere than on the root.
        """

    def stats(self) -> Stats | None:
        """Return what the library has counted, if it is the library's."""
        return None

    def close(self) -> None:  # noqa: B027  # some hold nothing
        """Give up what it holds."""


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _pool(place: Place) -> ThreadPoolExecutor:
    """This rank's share of the cores; where there is none, a few threads, as people have it."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) // place.size or 4)


class Itself(Way):
    """Without a word to the others."""

    name = "itself"
    about = "every rank has the raw request and materializes it in its main thread"
    led = False

    def start(self, number: int, payload: Any) -> Future[Any]:
        return _done(self.workload.materialize(payload))


class ItselfPool(Way):
    """The same beside the main thread."""

    name = "itself-pool"
    about = "every rank has the raw request and materializes it in a thread pool"
    led = False

    def __init__(self, place: Place, workload: Workload) -> None:
        super().__init__(place, workload)
        self._threads = _pool(place)

    def start(self, number: int, payload: Any) -> Future[Any]:
        return self._threads.submit(self.workload.materialize, payload)

    def close(self) -> None:
        self._threads.shutdown()


class _Collective(Way):
    """A way over the backend's own broadcast of objects: torch's `broadcast_object_list`, mpi4py's `bcast`."""

    def __init__(self, place: Place, workload: Workload) -> None:
        super().__init__(place, workload)
        kind = next(
            (k for k in (transfers.TorchObjectList, transfers.MpiBcast) if k.available(place.backend)),
            None,
        )
        if kind is None:
            raise ValueError(f"the {place.backend} backend has no broadcast of objects beside this library's")
        self._transfer = kind(place.rank)

    def _broadcast(self, thing: Any) -> Any:
        began_s = time.perf_counter()
        found = self._transfer.run(thing if self.is_root else None)
        self.collective_s += time.perf_counter() - began_s
        return found

    def close(self) -> None:
        self._transfer.close()


class RootValue(_Collective):
    """The value travels, also where every rank has most of it in its payload: as engines have it."""

    name = "root-value"
    about = "the root materializes, and broadcasts the value (broadcast_object_list; mpi4py's bcast)"

    def start(self, number: int, payload: Any) -> Future[Any]:
        return _done(self._broadcast(self.workload.materialize(payload) if self.is_root else None))


class RootHint(_Collective):
    """What two stages are without this library: a way that one could write by hand, and nobody has."""

    name = "root-hint"
    about = "every rank has the raw request; the root runs the first stage and broadcasts what it makes"
    known = False

    def __init__(self, place: Place, workload: Workload) -> None:
        if workload.prepare is None:
            raise ValueError("there is one stage only")
        super().__init__(place, workload)

    def start(self, number: int, payload: Any) -> Future[Any]:
        work = self.workload
        assert work.prepare is not None
        assert work.finish is not None
        hint = self._broadcast(work.prepare(payload) if self.is_root else None)
        return _done(work.finish(payload, hint))


class RawAll(_Collective):
    """The payload travels."""

    name = "raw-all"
    about = "the raw request is broadcast (broadcast_object_list; mpi4py's bcast), and every rank materializes it"

    def __init__(self, place: Place, workload: Workload) -> None:
        if workload.replicated:
            raise ValueError("every rank has the payload, so there is nothing to broadcast: see itself")
        super().__init__(place, workload)

    def start(self, number: int, payload: Any) -> Future[Any]:
        return _done(self.workload.materialize(self._broadcast(payload)))


class RawPool(RawAll):
    """The payload travels, and threads work on it."""

    name = "raw-pool"
    about = "the same, materialized in a thread pool of each rank"

    def __init__(self, place: Place, workload: Workload) -> None:
        super().__init__(place, workload)
        self._threads = _pool(place)

    def start(self, number: int, payload: Any) -> Future[Any]:
        return self._threads.submit(self.workload.materialize, self._broadcast(payload))

    def close(self) -> None:
        self._threads.shutdown()
        super().close()


class Lazycast(Way):
    """This library, with the placement it chooses."""

    name = "lazycast-auto"
    about = "lazycast, which chooses who materializes"
    known = False
    placement: ClassVar[str] = "auto"

    def __init__(self, place: Place, workload: Workload) -> None:
        super().__init__(place, workload)
        replicated: dict[str, Any] = {"replicated": True} if workload.replicated else {}
        self._lazy: lazycast.LazyBroadcast[Any, Any] = lazycast.LazyBroadcast(
            _materializer(workload),
            name=f"{self.name} {workload.name}",
            placement=self.placement,
            timeout_s=TIMEOUT_S,
            **replicated,
        )

    def start(self, number: int, payload: Any) -> Future[Any]:
        mine = self.is_root or self.workload.replicated
        return self._lazy.broadcast_async(payload if mine else None, key=number)

    def stats(self) -> Stats | None:
        return self._lazy.stats()

    def close(self) -> None:
        self._lazy.close()


class LazycastEvery(Lazycast):
    """Nobody shares."""

    name = "lazycast-every"
    about = "lazycast, where every rank materializes"
    placement = "every"


class LazycastRoot(Lazycast):
    """The root's value is cast."""

    name = "lazycast-root"
    about = "lazycast, where the root materializes"
    placement = "root"


class LazycastShard(Lazycast):
    """A host works once for each request."""

    name = "lazycast-shard"
    about = "lazycast, where one rank of each host materializes, another one for each request"
    placement = "shard"


def _materializer(workload: Workload) -> Any:
    """Return what lazycast is given: a callable, or both stages where every rank has the payload."""
    if not workload.replicated:
        return workload.materialize
    assert workload.prepare is not None
    assert workload.finish is not None
    return Staged(workload.prepare, workload.finish)


WAYS: dict[str, type[Way]] = {
    way.name: way
    for way in (
        Itself,
        ItselfPool,
        RootValue,
        RootHint,
        RawAll,
        RawPool,
        LazycastEvery,
        LazycastRoot,
        LazycastShard,
        Lazycast,
    )
}

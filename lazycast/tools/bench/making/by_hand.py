"""What people write without this library: a pool of processes at the root, and a broadcast of what it has made.

Guarantees: a thread of each rank takes part in the broadcasts, in the order of the requests, so that no main thread
waits for a value. Pools are of fresh interpreters, as nice as this library's helpers. Values are verified like all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import threading
import time
from abc import abstractmethod
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

from lazycast.options import Helpers
from lazycast.tools.bench import ways as transfers
from lazycast.tools.bench.qps.ways import Place, Way
from lazycast.tools.bench.qps.workloads import Workload

_MEET = 16  # so many requests between two moments at which all ranks are known to have what was sent
_ALIGN = 64


def _nice() -> None:
    os.nice(Helpers(1).niceness)


class _Pooled(Way):
    """The root gives requests to a pool; `_send` brings to all ranks what comes of each."""

    def __init__(self, place: Place, workload: Workload, helpers: int) -> None:
        super().__init__(place, workload)
        if not transfers.TorchObjectList.available(place.backend):
            raise ValueError(f"the {place.backend} backend has no broadcast of objects beside this library's")
        self._transfer = transfers.TorchObjectList(place.rank)
        self._count = helpers
        self._asked: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        if self.is_root:
            self._start_pool()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _start_pool(self) -> None:
        """On the root: start as many processes as there are helpers."""

    @abstractmethod
    def _submit(self, payload: Any) -> Any:
        """On the root: have it made; return what `_made` waits for."""

    @abstractmethod
    def _made(self, begun: Any) -> Any:
        """On the root: wait for what is to be sent."""

    @abstractmethod
    def _end_pool(self) -> None:
        """On the root."""

    def start(self, number: int, payload: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._asked.put((self._submit(payload) if self.is_root else None, future))
        return future

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            begun, future = asked
            try:
                future.set_result(self._received(self._broadcast(self._made(begun) if self.is_root else None)))
            except BaseException as exc:
                future.set_exception(exc)

    def _broadcast(self, thing: Any) -> Any:
        began_s = time.perf_counter()
        found = self._transfer.run(thing)
        self.collective_s += time.perf_counter() - began_s
        return found

    def _received(self, thing: Any) -> Any:
        return thing

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        if self.is_root:
            self._end_pool()
        self._transfer.close()


class Executor(_Pooled):
    """The shortest way to write it."""

    name: ClassVar[str] = "executor"
    about: ClassVar[str] = "a ProcessPoolExecutor at the root, and broadcast_object_list"

    def _start_pool(self) -> None:
        self._pool = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _nice)

    def _submit(self, payload: Any) -> Any:
        return self._pool.submit(self.workload.materialize, payload)

    def _made(self, begun: Any) -> Any:
        return begun.result()

    def _end_pool(self) -> None:
        self._pool.shutdown()


class Pool(_Pooled):
    """The same with the other pool of the standard library."""

    name: ClassVar[str] = "pool"
    about: ClassVar[str] = "a multiprocessing.Pool at the root, and broadcast_object_list"

    def _start_pool(self) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(self._count, _nice)

    def _submit(self, payload: Any) -> Any:
        return self._pool.apply_async(self.workload.materialize, (payload,))

    def _made(self, begun: Any) -> Any:
        return begun.get()

    def _end_pool(self) -> None:
        self._pool.close()
        self._pool.join()


class SharedPool(Pool):
    """What takes an afternoon: values lie in shared memory, and their names travel.

    Arrays are views of that memory, one for all ranks: what one writes the others see, unlike with this library.
    """

    name = "shared-pool"
    about = "the same, with values in shared memory whose names are broadcast; ranks share what they write"

    def __init__(self, place: Place, workload: Workload, helpers: int) -> None:
        self._sent: list[str] = []
        super().__init__(place, workload, helpers)

    def _submit(self, payload: Any) -> Any:
        return self._pool.apply_async(_into_shared, (self.workload.materialize, payload))

    def _received(self, thing: Any) -> Any:
        name, sizes = thing
        memory = _attached(name)
        value = _from_shared(memory, sizes)
        self._sent.append(name)
        if len(self._sent) == _MEET:
            self._free()
        return value

    def _free(self) -> None:
        """All ranks have attached what was sent: its names may go."""
        import torch.distributed as dist

        dist.barrier(group=self._transfer._group)
        if self.is_root:
            for name in self._sent:
                _unlink(name)
        self._sent.clear()

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        self._free()
        super().close()


def _into_shared(fn: Any, payload: Any) -> tuple[str, list[int]]:
    """In the pool: make a value, and leave it in shared memory: its pickle, and its arrays apart."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(fn(payload), 5, buffer_callback=buffers.append)
    parts = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    memory = SharedMemory(create=True, size=sum(map(_aligned, sizes)))
    resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]  # the root frees it
    at = 0
    for part in parts:
        memory.buf[at : at + part.nbytes] = part  # type: ignore[index]  # it is open
        at += _aligned(part.nbytes)
    memory.close()
    return memory.name, sizes


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


class _Attached(SharedMemory):
    """One that is unmapped when nothing is a view of it any more, and says nothing about it before."""

    def __del__(self) -> None:
        with contextlib.suppress(BufferError):
            self.close()


def _attached(name: str) -> SharedMemory:
    memory = _Attached(name)
    resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]  # as above
    return memory


def _from_shared(memory: SharedMemory, sizes: list[int]) -> Any:
    views, at = [], 0
    for nbytes in sizes:
        views.append(memory.buf[at : at + nbytes])  # type: ignore[index]  # it is open
        at += _aligned(nbytes)
    return pickle.loads(views[0], buffers=views[1:])


def _unlink(name: str) -> None:
    memory = SharedMemory(name)
    memory.close()
    memory.unlink()

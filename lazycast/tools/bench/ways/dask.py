"""Dask: a client scatters an object to all worker processes, and a task on each takes it."""

from __future__ import annotations

import logging
from typing import Any

from lazycast.tools.bench.ways.stores import Holder, Store

#: In a worker: its holder. Tasks are functions, and keep nothing.
_holders: list[Holder] = []


class DaskScatter(Store):
    """`Client.scatter(broadcast=True)` on a cluster of this machine, one process with one thread for each rank.

    It is called as it is fastest. `hash=False`: Dask would name the object by its content, and read it for that.
    `direct=True`: it would go through the scheduler, which takes half as long again (16 and 64 MiB, three workers).
    """

    name = "Dask scatter"
    needs = "distributed"

    def _start(self, workers: int) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
        self._client = Client(self._cluster)
        self._addresses = list(self._client.nthreads())
        ranks = enumerate(self._addresses, 1)
        self._results([self._submit(_hold, address, rank) for rank, address in ranks])

    def _submit(self, task: Any, address: str, *arguments: Any) -> Any:
        return self._client.submit(task, *arguments, workers=[address], pure=False)

    def _send(self, payload: Any, column: str, number: int) -> Any:
        # In a list: a dict would be taken apart.
        (future,) = self._client.scatter([payload], broadcast=True, hash=False, direct=True)
        return [self._submit(_take, address, future, column, number) for address in self._addresses]

    def _results(self, pending: Any) -> list[Any]:
        return list(self._client.gather(pending))

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        return self._results([self._submit(_call, address, method, *arguments) for address in self._addresses])

    def close(self) -> None:
        if self.rank == 0:
            self._client.close()
            self._cluster.close()


def _hold(rank: int) -> None:
    _holders[:] = [Holder(rank)]


def _take(value: Any, column: str, number: int) -> int:
    return _holders[0].take(value, column, number)


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_holders[0], method)(*arguments)

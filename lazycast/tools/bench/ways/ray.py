"""Ray's object store: one process puts an object, actors get it by reference."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from typing import Any

from lazycast.tools.bench.ways.stores import Holder, Store


class RayStore(Store):
    """`ray.put`, and a reference to each actor: NumPy arrays are mapped from shared memory, read-only."""

    name = "Ray put and get"
    needs = "ray"

    def _start(self, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
        import ray

        self._folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie deep in it, and have 107 bytes
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._folder,
        )
        actor = ray.remote(num_cpus=1)(Holder)
        self._actors = [actor.remote(rank) for rank in range(1, workers + 1)]

    def _send(self, payload: Any, column: str, number: int) -> Any:
        import ray

        reference = ray.put(payload)  # an argument: Ray gets it for the actor before it calls the method
        return [actor.take.remote(reference, column, number) for actor in self._actors]

    def _results(self, pending: Any) -> list[Any]:
        import ray

        return list(ray.get(pending))

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        return self._results([getattr(actor, method).remote(*arguments) for actor in self._actors])

    def close(self) -> None:
        if self.rank == 0:
            import ray

            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)  # its daemons may still be writing their last lines

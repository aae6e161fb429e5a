"""The ways to get a request's inputs to all ranks, as SGLang has them and with lazycast.

Guarantees: every way calls SGLang's own code; the adapter is put in its place as a user would.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lazycast.tools.bench.sglang import inputs
from lazycast.tools.bench.sglang.scheduler import scheduler_class, without_model

#: Of each way, what it is. Those of lazycast are the last.
INPUTS = {
    "itself": "every rank makes the inputs by itself, as without --enable-broadcast-mm-inputs-process",
    "sglang": "SGLang's own method: the entry rank makes them and broadcasts the object",
    "lazycast": "the same method with lazycast's adapter",
}
REQUESTS = {
    "broadcast_pyobj": "SGLang's own broadcast of whole requests",
    "lazycast-requests": "the same with lazycast",
}
Call = Callable[[Any], Any]


class Ways:
    """All ways on this rank. Collective, as is `close`."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._adapter: Any = importlib.import_module("lazycast.adapters.sglang")  # the core knows adapters by name only
        cls = scheduler_class()
        as_it_is, replaced = without_model(cls), without_model(cls)
        self._adapter.install(replaced)
        self._replaced = replaced
        binding = self._adapter.Binding.find()
        self._requests = self._adapter.RequestBroadcast()
        rank = dist.get_rank()
        pyobj = importlib.import_module("sglang.srt.utils").broadcast_pyobj
        self.calls: dict[str, Call] = {
            "itself": binding,
            "sglang": as_it_is._process_and_broadcast_mm_inputs,
            "lazycast": replaced._process_and_broadcast_mm_inputs,
            "broadcast_pyobj": lambda data: pyobj(data if rank == 0 else [], rank, dist.group.WORLD, 0),
            "lazycast-requests": self._requests.broadcast,
        }

    def close(self) -> None:
        """Say farewell on every rank."""
        self._adapter.uninstall(self._replaced)
        self._requests.close()


def fresh(raw: Any) -> Any:
    """Return raw inputs with items of their own, which nobody has hashed, and the same tensors."""
    import copy

    again = copy.copy(raw)
    items = [copy.copy(item) for item in (raw["mm_items"] if inputs.bundles() else raw.mm_items)]
    if inputs.bundles():
        again["mm_items"] = items
    else:
        again.mm_items = items
    return again


def identity(made: Any) -> str:
    """Return what all ways and ranks must agree on."""
    return repr([(item.hash, item.pad_value, getattr(item, "pad_values", None)) for item in made.mm_items])

"""SGLang's real `Scheduler`, with as much of a server around it as its method for multimodal inputs looks at."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

FLAG = "enable_broadcast_mm_inputs_process"


def scheduler_class() -> Any:
    """Import SGLang's class. Takes some ten seconds."""
    return importlib.import_module("sglang.srt.managers.scheduler").Scheduler


def without_model(cls: Any, group: Any = None, *, asks_modalities: bool = False) -> Any:
    """Return a scheduler of this rank that has a group, and neither a model nor sockets.

    Args:
        cls: `Scheduler`.
        group: a process group; the default one if None.
    """
    import torch.distributed as dist

    pg: Any = dist.group.WORLD if group is None else group
    scheduler = cls.__new__(cls)
    scheduler.dp_tp_cpu_group = pg
    scheduler.dp_tp_group = SimpleNamespace(
        rank_in_group=dist.get_rank(pg), first_rank=dist.get_global_rank(pg, 0), world_size=dist.get_world_size(pg)
    )
    scheduler.model_config = SimpleNamespace(requires_mm_token_modalities=asks_modalities, is_multimodal=True)
    scheduler.server_args = SimpleNamespace(**{FLAG: True})
    return scheduler

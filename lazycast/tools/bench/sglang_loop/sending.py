"""How a process in a tokenizer's place sends features: as SGLang alone does, or with lazycast's plugin."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def senders() -> Iterator[Callable[[bool], None]]:
    """Give what makes this process send features as a tokenizer does: with lazycast's plugin, or without."""
    module: Any = importlib.import_module("sglang.srt.managers.mm_utils")
    segments: Any = importlib.import_module("lazycast.adapters.sglang.segments")  # tools know adapters by name only
    without = module.shared_memory
    kept = segments.keep_segments()
    within = module.shared_memory

    def send(plugin: bool) -> None:
        module.shared_memory = within if plugin else without

    try:
        yield send
    finally:
        send(False)
        if kept is not None:
            kept.close()

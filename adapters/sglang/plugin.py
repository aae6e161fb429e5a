"""What SGLang's plugin framework calls, in every process of a server, before the engine starts."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

from .requests import install_requests
from .scheduler import METHOD, meet, replacement

logger = logging.getLogger("lazycast")

_SCHEDULER = "sglang.srt.managers.scheduler"
#: Set to 1 on every rank, it lets requests travel by lazycast too.
REQUESTS = "LAZYCAST_SGLANG_REQUESTS"


def plugin() -> None:
    """Register the hooks. In a process that runs no scheduler there is nothing to do, and SGLang need not import it."""
    module = sys.modules.get(_SCHEDULER)
    if module is None:
        return
    original = getattr(module.Scheduler, METHOD, None)
    if original is None:
        logger.warning("lazycast: this SGLang's Scheduler has no %s; nothing is replaced", METHOD)
        return
    hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    scheduler = f"{_SCHEDULER}.Scheduler"
    hooks.HookRegistry.register(f"{scheduler}.{METHOD}", replacement(original), hooks.HookType.REPLACE)
    hooks.HookRegistry.register(f"{scheduler}.__init__", _after_init, hooks.HookType.AFTER)
    if os.environ.get(REQUESTS) == "1":
        install_requests()


def _after_init(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    meet(scheduler)

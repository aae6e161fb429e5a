"""What SGLang's plugin frameworks call, in every process of a server, before the engine starts."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

from .admission import (
    IDLE,
    POLL,
    PROCESS,
    after_idle,
    after_poll,
    before_process,
    can_defer,
    is_of_a_kind_that_defers,
    open_desk,
)
from .processors import METHOD as INIT
from .processors import TOKENIZER, helpers_wanted, work_in_helpers
from .requests import DIFFUSION, around, install_requests
from .scheduler import METHOD, meet, replacement
from .segments import keep_segments, wanted_nbytes

logger = logging.getLogger("lazycast")

_SCHEDULER = "sglang.srt.managers.scheduler"
#: What runs in processes without a tokenizer. The tokenizer's own may load plugins before it has imported anything.
_OTHERS = (_SCHEDULER, "sglang.srt.managers.detokenizer_manager", "sglang.srt.managers.data_parallel_controller")
#: Set to 1 on every rank, it lets requests travel by lazycast too.
REQUESTS = "LAZYCAST_SGLANG_REQUESTS"
#: "deferred", as it is by default: the scheduler puts requests aside while their inputs are made; or "blocking".
ADMISSION = "LAZYCAST_SGLANG_ADMISSION"
_DEFERRED, _BLOCKING = "deferred", "blocking"


def plugin() -> None:
    """Register the hooks. In a process that runs neither a scheduler nor a tokenizer there is nothing to do.

    Raises: ValueError for an ADMISSION that is neither, or a PROCESSORS or SEGMENTS that is no number.
    """
    wanted = helpers_wanted(), wanted_nbytes()
    if any(wanted) and _may_tokenize():
        hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
        hooks.HookRegistry.register(f"{TOKENIZER}.TokenizerManager.{INIT}", _tokenizing, hooks.HookType.AFTER)
    module = sys.modules.get(_SCHEDULER)
    if module is not None:
        _hook_scheduler(module)


def _may_tokenize() -> bool:
    """Whether this process has a tokenizer, or may import it later."""
    return TOKENIZER in sys.modules or ("sglang" in sys.modules and not any(name in sys.modules for name in _OTHERS))


def _hook_scheduler(module: Any) -> None:
    original = getattr(module.Scheduler, METHOD, None)
    if original is None:
        logger.warning("lazycast: this SGLang's Scheduler has no %s; nothing is replaced", METHOD)
        return
    deferred = _is_deferred(module.Scheduler)
    hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    scheduler = f"{_SCHEDULER}.Scheduler"
    hooks.HookRegistry.register(f"{scheduler}.{METHOD}", replacement(original), hooks.HookType.REPLACE)
    hooks.HookRegistry.register(f"{scheduler}.__init__", _deferring if deferred else _meeting, hooks.HookType.AFTER)
    if deferred:
        hooks.HookRegistry.register(f"{scheduler}.{POLL}", after_poll, hooks.HookType.AFTER)
        hooks.HookRegistry.register(f"{scheduler}.{PROCESS}", before_process, hooks.HookType.BEFORE)
        hooks.HookRegistry.register(f"{scheduler}.{IDLE}", after_idle, hooks.HookType.AFTER)
    if os.environ.get(REQUESTS) == "1":
        install_requests()


def diffusion_plugin() -> None:
    """Register the hook of the diffusion server, whose framework is another one: its requests travel by lazycast."""
    if os.environ.get(REQUESTS) == "1":
        hooks: Any = importlib.import_module("sglang.multimodal_gen.runtime.platforms.plugins")
        hooks.HookRegistry.register(DIFFUSION, around, hooks.HookType.AROUND)


def _is_deferred(cls: type) -> bool:
    chosen = os.environ.get(ADMISSION) or _DEFERRED
    if chosen not in (_DEFERRED, _BLOCKING):
        raise ValueError(f"{ADMISSION} is {_DEFERRED!r} or {_BLOCKING!r}, not {chosen!r}")
    if chosen == _DEFERRED and not can_defer(cls):
        logger.warning("lazycast: this SGLang's Scheduler lacks what deferred admission needs; it waits for inputs")
        return False
    return chosen == _DEFERRED


def _tokenizing(result: None, manager: Any, *args: Any, **kwargs: Any) -> None:
    work_in_helpers(manager)
    keep_segments()


def _meeting(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    meet(scheduler)


def _deferring(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    deferred = is_of_a_kind_that_defers(scheduler)
    broadcast = meet(scheduler, "sglang, deferred" if deferred else "sglang")
    if broadcast is not None and deferred:
        open_desk(scheduler, broadcast)

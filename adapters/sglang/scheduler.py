"""Puts the adapter in the place of the scheduler's own method, and takes it away again.

Guarantees:

* What is replaced is one method, and for classes the end of `__init__`, where the ranks meet. Both are put back as they
  were. Without `--enable-broadcast-mm-inputs-process` SGLang never calls the method, and the ranks do not meet.
* A scheduler that is alone, or has no group, goes SGLang's own way.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import types
import weakref
from collections.abc import Callable
from typing import Any

from .binding import UnsupportedReleaseError, release
from .broadcast import SGLangBroadcast

METHOD = "_process_and_broadcast_mm_inputs"
_ATTRIBUTE = "_lazycast_broadcast"
_FLAG = "enable_broadcast_mm_inputs_process"
#: From how many bytes to hash on a request is worth a cast; measured when schedulers meet if it is not set.
CAST_FROM = "LAZYCAST_SGLANG_CAST_FROM_NBYTES"
_MISSING = object()
_patches: list[tuple[Any, str, object]] = []  # target, name, what was there: in the order in which they were made
_users: weakref.WeakSet[Any] = weakref.WeakSet()  # schedulers that have a broadcast


def install(target: Any) -> None:
    """Let a scheduler use lazycast, in releases without plugins. A second time does nothing.

    Args:
        target: SGLang's class `Scheduler`, before schedulers are made; or one scheduler.
    Raises: UnsupportedReleaseError if it has no such method; for a scheduler also what `SGLangBroadcast` raises.
    Collective: for a scheduler, every rank of its group; for the class no, but do it on every rank, before they make
        theirs. Blocking: for a scheduler, until all ranks have come, up to 60 s. Threads: one at a time.
    """
    if any(patched is target for patched, _, _ in _patches):
        return
    original = getattr(target, METHOD, None)
    if original is None:
        raise UnsupportedReleaseError(
            f"{target!r} of SGLang {release()} has no {METHOD}, which lazycast takes the place of"
        )
    if isinstance(target, type):
        _patch(target, METHOD, replacement(original))
        _patch(target, "__init__", meeting(inspect.getattr_static(target, "__init__")))
        return
    if _has_group(target):
        broadcast_of(target)
    _patch(target, METHOD, types.MethodType(replacement(original.__func__), target))


def uninstall(target: Any = None) -> None:
    """Undo `install`, and close what was made for it.

    Args:
        target: what was given to `install`: a scheduler; or a class, and with it its schedulers that were not given by
            themselves; or None for all.
    Collective: no, but do it on every rank. Blocking: as `SGLangBroadcast.close`. Threads: one at a time, while no
        scheduler is at work.
    """
    for patch in [patch for patch in reversed(_patches) if target is None or patch[0] is target]:
        where, name, before = patch
        if before is _MISSING:
            delattr(where, name)
        else:
            setattr(where, name, before)
        _patches.remove(patch)
    for scheduler in list(_users):
        patched = any(where is scheduler for where, _, _ in _patches)  # by itself, and not undone now
        of_class = isinstance(target, type) and isinstance(scheduler, target)
        if not patched and (target is None or scheduler is target or of_class):
            _users.discard(scheduler)
            vars(scheduler).pop(_ATTRIBUTE).close()


def _patch(target: Any, name: str, new: object) -> None:
    _patches.append((target, name, vars(target).get(name, _MISSING)))
    setattr(target, name, new)


def replacement(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the method that takes the place of `original`."""

    @functools.wraps(original)
    def process_and_broadcast_mm_inputs(self: Any, raw_mm_inputs: Any) -> Any:
        if not _has_group(self):
            return original(self, raw_mm_inputs)
        return broadcast_of(self).process(raw_mm_inputs)

    return process_and_broadcast_mm_inputs


def meeting(original: Callable[..., None]) -> Callable[..., None]:
    """Return an `__init__` at whose end the ranks meet."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        meet(self)

    return __init__


def meet(scheduler: Any, name: str = "sglang") -> SGLangBroadcast | None:
    """Make the scheduler's `SGLangBroadcast` now, if it will be used, rather than during its first request.

    Args:
        name: part of the handshake.
    Returns: None if it will not be used.
    Raises: as `SGLangBroadcast`.
    Collective: every rank of the scheduler's group, if it is on. Blocking: until all have come, up to 60 s.
    Threads: the scheduler's.
    """
    return broadcast_of(scheduler, name) if _is_on(scheduler) and _has_group(scheduler) else None


def broadcast_of(scheduler: Any, name: str = "sglang") -> SGLangBroadcast:
    """Return the scheduler's `SGLangBroadcast`, made at the first call.

    Args:
        name: part of the handshake.
    Raises: at the first call, as `SGLangBroadcast`; ValueError for a CAST_FROM that is no number of bytes.
    Collective: the first call, on every rank of its group. Blocking: then, until all have come, up to 60 s.
    Threads: the scheduler's.
    """
    found: SGLangBroadcast | None = vars(scheduler).get(_ATTRIBUTE)
    if found is None:
        import torch.distributed as dist

        group = scheduler.dp_tp_cpu_group
        found = SGLangBroadcast(
            group,
            root=dist.get_group_rank(group, scheduler.dp_tp_group.first_rank),  # which is a global rank
            requires_mm_token_modalities=getattr(
                getattr(scheduler, "model_config", None), "requires_mm_token_modalities", False
            ),
            name=name,
            cast_from_nbytes=_cast_from_nbytes(),
        )
        _users.add(scheduler)
        setattr(scheduler, _ATTRIBUTE, found)
    return found


def _cast_from_nbytes() -> int | None:
    given = os.environ.get(CAST_FROM)
    if not given:
        return None
    if not given.isdecimal():
        raise ValueError(f"{CAST_FROM} must be a number of bytes, got {given!r}")
    return int(given)


def _has_group(scheduler: Any) -> bool:
    import torch.distributed as dist

    group = getattr(scheduler, "dp_tp_cpu_group", None)
    return group is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _is_on(scheduler: Any) -> bool:
    """Whether the server was started with SGLang's own flag."""
    try:
        settings = importlib.import_module("sglang.srt.runtime_context").get_mm()
    except (ModuleNotFoundError, AttributeError, ValueError):
        # Older releases have no such module or function; in newer ones nothing may have been published there yet.
        # Then it is with the server's arguments, if there are any.
        settings = getattr(scheduler, "server_args", None)
    return bool(getattr(settings, _FLAG, False))

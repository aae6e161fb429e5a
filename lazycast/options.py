"""What a `LazyBroadcast` is told at construction: checked here, before anybody is met.

An option whose effect does not exist yet is accepted only with the meaning it has today.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

VALUES: Final = ("private", "readonly", "copy")
PLACEMENTS: Final = ("every", "demand", "root", "shard", "auto")
WITH_OWNERS: Final = ("shard", "auto")
DEFAULT_MAX_INFLIGHT_NBYTES: Final = 1 << 30
DEFAULT_ARENA_NBYTES: Final = 1 << 30

_NOT_YET: Final[dict[str, tuple[object, ...]]] = {
    "trust": ("pickle",),
    "allow": (None,),
}


@dataclass(frozen=True)
class Options:
    """The options of one object on one rank, checked by `check`."""

    materialize: Callable[[Any], Any] | None
    root: int
    name: str
    placement: str
    agree: bool
    values: str
    trust: str
    max_inflight: int
    max_inflight_nbytes: int
    timeout_s: float
    warn_after_s: float
    executor: concurrent.futures.Executor | None
    arena_nbytes: int
    shared_memory: bool | str
    owners: Collection[int] | None = None
    replicated: bool = False

    def agreed(self) -> dict[str, object]:
        """Return what must be the same on every rank."""
        shared = ("root", "name", "placement", "agree", "values", "trust", "replicated")
        said: dict[str, object] = {name: getattr(self, name) for name in shared}
        try:
            said["owners"] = None if self.owners is None else sorted({int(rank) for rank in self.owners})
        except (TypeError, ValueError):  # it is none; `check` says so
            said["owners"] = shown(self.owners)
        return said


def shown(value: object, how: Callable[[object], str] = repr, limit: int = 200) -> str:
    """Return a short text that can be sent; never raises, whatever a user's object does."""
    try:
        return how(value)[:limit].encode("utf-8", "replace").decode()
    except Exception:
        return f"<{type(value).__name__}>"


def _problem(name: str, value: object, kinds: tuple[type, ...]) -> str | None:
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not value > 0 or not math.isfinite(value):  # type: ignore[operator,arg-type]
        return f"{name} must be a positive {' or '.join(k.__name__ for k in kinds)}, got {shown(value)}"
    return None


def _owners_problem(options: Options, size: int) -> str | None:
    owners: object = options.owners
    if owners is None:
        return None
    if options.placement not in WITH_OWNERS:
        return f"owners= is for placement 'shard' or 'auto', not {shown(options.placement)}"
    if not isinstance(owners, Collection) or isinstance(owners, (str, bytes)) or len(owners) == 0:
        return f"owners must be a collection of at least one rank, or None, got {shown(owners)}"
    strange = [r for r in owners if isinstance(r, bool) or not isinstance(r, (int, np.integer)) or not 0 <= r < size]
    return f"owners: {shown(strange)} are no ranks of this group: 0 to {size - 1} (group-local)" if strange else None


def check(options: Options, size: int, others: dict[str, object]) -> Exception | None:
    """Return the error that `options` deserve in a group of `size` ranks, or None.

    Args:
        others: the options that have one meaning today, by name.
    """
    for name, value in {**others, "trust": options.trust}.items():
        allowed = _NOT_YET[name]
        if not any(value is a or (isinstance(a, str) and isinstance(value, str) and value == a) for a in allowed):
            meant = " or ".join(repr(a) for a in allowed)
            return ValueError(f"{name}={shown(value)} is not supported in this version of lazycast; use {meant}")
    materialize: object = options.materialize
    if materialize is not None and not callable(materialize):
        return TypeError(f"materialize must be callable or None, got {type(materialize).__name__}")
    if isinstance(options.root, bool) or not isinstance(options.root, int) or not 0 <= options.root < size:
        return ValueError(
            f"root={shown(options.root)} is not a rank of this group: 0 to {size - 1} (root is group-local)"
        )
    if not isinstance(options.placement, str) or options.placement not in PLACEMENTS:
        return ValueError(
            f"unknown placement {shown(options.placement)}; use one of {', '.join(map(repr, PLACEMENTS))}"
        )
    problem = _owners_problem(options, size)
    if problem is not None:
        return ValueError(problem)
    if not isinstance(options.values, str) or options.values not in VALUES:
        return ValueError(f"unknown values {shown(options.values)}; use one of {', '.join(map(repr, VALUES))}")
    if not isinstance(options.name, str) or not 0 < len(options.name) <= 200:
        return ValueError(f"name must be a string of 1 to 200 characters, got {shown(options.name)}")
    switches: dict[str, object] = {"agree": options.agree, "replicated": options.replicated}
    for name, value in switches.items():
        if not isinstance(value, bool):
            return ValueError(f"{name} must be True or False, got {shown(value)}")
    executor: object = options.executor
    if executor is not None and not isinstance(executor, concurrent.futures.Executor):
        return TypeError(f"executor must be a concurrent.futures.Executor or None, got {shown(executor)}")
    shared: object = options.shared_memory
    if shared is not False and not (isinstance(shared, str) and shared == "auto"):
        return ValueError(f"shared_memory must be 'auto' or False, got {shown(shared)}")
    if isinstance(executor, concurrent.futures.ProcessPoolExecutor):
        return TypeError("executor must run in this process (a ThreadPoolExecutor, say): its results are not pickled")
    for problem in (
        _problem("max_inflight", options.max_inflight, (int,)),
        _problem("max_inflight_nbytes", options.max_inflight_nbytes, (int,)),
        _problem("arena_nbytes", options.arena_nbytes, (int,)),
        _problem("timeout_s", options.timeout_s, (int, float)),
        _problem("warn_after_s", options.warn_after_s, (int, float)),
    ):
        if problem:
            return ValueError(problem)
    return None

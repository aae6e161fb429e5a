"""What a `LazyBroadcast` is told at construction: checked here, before anybody is met.

An option whose effect does not exist yet is accepted only with the meaning it has today.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

PLACEMENTS: Final = ("every", "demand", "root", "auto")
DEFAULT_MAX_INFLIGHT_NBYTES: Final = 1 << 30

_NOT_YET: Final[dict[str, tuple[object, ...]]] = {
    "owners": (None,),
    "replicated": (False,),
    "values": ("private", "copy"),
    "trust": ("pickle",),
    "allow": (None,),
    "arena_nbytes": (None,),
    "shared_memory": ("auto", False),
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

    @property
    def effective_placement(self) -> str:
        """What casts are placed as today."""
        return "every" if self.placement == "auto" else self.placement

    @property
    def placement_reason(self) -> str:
        """Why."""
        if self.placement == "auto":
            return "'auto' means 'every' in this version"
        return "asked for"

    def agreed(self) -> dict[str, object]:
        """Return what must be the same on every rank."""
        shared = ("root", "name", "placement", "agree", "values", "trust")
        return {name: getattr(self, name) for name in shared}


def _positive(name: str, value: object, kinds: tuple[type, ...]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:  # type: ignore[operator]
        return f"{name} must be a positive {' or '.join(k.__name__ for k in kinds)}, got {value!r}"
    return None


def check(options: Options, size: int, others: dict[str, object]) -> Exception | None:
    """Return the error that `options` deserve in a group of `size` ranks, or None.

    Args:
        others: the options that have one meaning today, by name.
    """
    for name, value in {**others, "values": options.values, "trust": options.trust}.items():
        allowed = _NOT_YET[name]
        if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
            meant = " or ".join(repr(a) for a in allowed)
            return ValueError(f"{name}={value!r} is not supported in this version of lazycast; use {meant}")
    materialize: object = options.materialize
    if materialize is not None and not callable(materialize):
        return TypeError(f"materialize must be callable or None, got {type(materialize).__name__}")
    if isinstance(options.root, bool) or not isinstance(options.root, int) or not 0 <= options.root < size:
        return ValueError(f"root={options.root!r} is not a rank of this group: 0 to {size - 1} (root is group-local)")
    if options.placement not in PLACEMENTS:
        return ValueError(f"unknown placement {options.placement!r}; use one of {', '.join(map(repr, PLACEMENTS))}")
    if not isinstance(options.name, str) or not 0 < len(options.name) <= 200:
        return ValueError(f"name must be a string of 1 to 200 characters, got {options.name!r}")
    if isinstance(options.executor, concurrent.futures.ProcessPoolExecutor):
        return TypeError("executor must run in this process (a ThreadPoolExecutor, say): its results are not pickled")
    for problem in (
        _positive("max_inflight", options.max_inflight, (int,)),
        _positive("max_inflight_nbytes", options.max_inflight_nbytes, (int,)),
        _positive("timeout_s", options.timeout_s, (int, float)),
        _positive("warn_after_s", options.warn_after_s, (int, float)),
    ):
        if problem:
            return ValueError(problem)
    return None

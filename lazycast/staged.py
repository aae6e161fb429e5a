"""A materializer in two stages, the first of which one rank runs for its host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")
H = TypeVar("H")
V = TypeVar("V")


@dataclass(frozen=True)
class Staged(Generic[P, H, V]):
    """A materializer whose expensive part has a small result, which is all that ranks share.

    Every rank runs `finish` on a payload of its own, so values are private to each rank, whatever is done to them.

    Args:
        prepare: `callable(payload) -> hint`; it must not change the payload. The hint is picklable and small: hashes,
            sizes, pad values. One rank per host runs it, or the root, or every rank, as the placement says.
        finish: `callable(payload, hint) -> value`, cheap; every rank runs it. It may change its payload.
    Raises: TypeError for what is not callable.
    Threads: both run on the threads of whoever materializes, several at a time.
    """

    prepare: Callable[[P], H]
    finish: Callable[[P, H], V]

    def __post_init__(self) -> None:
        for name in ("prepare", "finish"):
            part = getattr(self, name)
            if not callable(part):
                raise TypeError(f"Staged: {name} must be callable, got {type(part).__name__}")

    def __call__(self, payload: P) -> V:
        """Run both stages."""
        return self.finish(payload, self.prepare(payload))

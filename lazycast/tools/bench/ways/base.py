"""What a way is. Every way has its own group, communicator or object, so that none meets another's messages."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from lazycast.tools.bench.payloads import Source
from lazycast.tools.bench.plan import COLUMNS
from lazycast.tools.bench.touch import mark, use


@dataclass(frozen=True)
class Done:
    """What a rank has after one broadcast, and when it had done with it what it was to do (CLOCK_MONOTONIC)."""

    value: Any
    end_ns: int


class Way(ABC):
    """One way to bring an object from rank 0 to all ranks. Constructed on every rank, in the same order."""

    name: ClassVar[str]
    #: The backend it needs; None runs on any.
    backend: ClassVar[str | None] = None
    #: The package it needs beside those of the backend.
    needs: ClassVar[str | None] = None
    #: What can be done with its values.
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    #: Whether the other ranks have no part in it: a measure for broadcasts, or one to processes of its own.
    root_only: ClassVar[bool] = False

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @classmethod
    def available(cls, backend: str) -> bool:
        """Whether it can run on ranks started with this backend."""
        return cls.belongs(backend) and cls.missing() is None

    @classmethod
    def belongs(cls, backend: str) -> bool:
        """Whether it is for ranks started with this backend."""
        return cls.backend in (None, backend)

    @classmethod
    def missing(cls) -> str | None:
        """Say what it lacks on this machine; None if nothing."""
        return f"{cls.needs} is not installed" if cls.needs and find_spec(cls.needs) is None else None

    @classmethod
    def takes(cls, source: Source) -> bool:
        """Whether it can send such payloads."""
        return True

    def prepare(self, source: Source) -> None:  # noqa: B027  # most ways have nothing to prepare
        """Get ready for payloads of this source, outside the timed part."""

    @abstractmethod
    def run(self, payload: Any) -> Any:
        """Broadcast the root's `payload` (None elsewhere) and return this rank's value."""

    def turn(self, payload: Any, column: str, number: int) -> Done:
        """Broadcast the payload with this number, and do with the value what the column says."""
        value = self.run(payload)
        if value is not None:
            use(value, column, mark(number, self.rank))
        return Done(value, time.monotonic_ns())

    def elsewhere(self, column: str, number: int) -> str | None:
        """Say what is wrong with the values of a turn in processes of its own, on the root, if it has such."""
        return None

    def shared_nbytes(self) -> int:
        """Return how much shared memory this rank has taken for it, free or not."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Give up what it holds."""


class Ready(Way):
    """A way into a buffer that every rank has ready, made like the payload and warm."""

    @classmethod
    def takes(cls, source: Source) -> bool:
        return source.is_buffer

    def prepare(self, source: Source) -> None:
        like = source.at(0)
        self._value = like.clone() if hasattr(like, "clone") else like.copy()

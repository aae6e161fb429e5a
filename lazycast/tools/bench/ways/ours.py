"""lazycast itself, and the least that any way can cost."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.core.future import CastFuture
from lazycast.tools.bench.sync import TIMEOUT_S
from lazycast.tools.bench.touch import buffer_of
from lazycast.tools.bench.ways.base import Ready, Way


class Lazycast(Way):
    """This library, as it comes."""

    name = "lazycast"
    agree: ClassVar[bool] = True
    values: ClassVar[Literal["private", "copy"]] = "private"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._lazy: LazyBroadcast[Any, Any] = LazyBroadcast(
            name=self.name, agree=self.agree, values=self.values, timeout_s=TIMEOUT_S
        )

    def run(self, payload: Any) -> Any:
        return self._lazy.broadcast(payload)

    def begin(self, payload: Any, *, key: str | None = None) -> CastFuture[Any]:
        """Cast without waiting for it."""
        return self._lazy.broadcast_async(payload, key=key)

    def shared_nbytes(self) -> int:
        return self._lazy.stats().arena_nbytes

    def close(self) -> None:
        self._lazy.close()


class LazycastNoAgree(Lazycast):
    """This library, without the round trip that makes ranks fail together."""

    name = "lazycast agree=False"
    agree = False


class LazycastCopy(Lazycast):
    """This library, with values in memory of their own: for what will be overwritten."""

    name = "lazycast values=copy"
    values = "copy"


class Memcpy(Ready):
    """One warm copy in the root's own memory, with nobody else to reach: the least that a copy costs here."""

    name = "one memcpy"
    root_only = True

    def run(self, payload: Any) -> Any:
        if self.rank != 0:
            return None
        into, source = buffer_of(self._value), buffer_of(payload)
        assert into is not None
        assert source is not None
        np.copyto(into, source)
        return self._value

"""Puts off Ctrl-C while the main thread does what must not stop half-way."""

from __future__ import annotations

import importlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What `signal` wraps: the wrappers look names up in enums, for 22 µs each time that a handler is changed and put back.
_signal: Any = importlib.import_module("_signal")


class Uninterrupted:
    """A context in which an interrupt waits until its end. In other threads than the main one, which get none, nothing.

    A handler that was installed from C, which Python cannot put back, is left alone.
    """

    __slots__ = ("_before", "_caught")

    def __enter__(self) -> None:
        self._caught: list[tuple[int, FrameType | None]] = []
        self._before: Any = None
        if threading.get_ident() == threading.main_thread().ident:
            before = _signal.getsignal(signal.SIGINT)
            if callable(before):
                _signal.signal(signal.SIGINT, self._catch)
                self._before = before

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught.append((number, frame))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        _signal.signal(signal.SIGINT, self._before)
        if self._caught:
            self._before(*self._caught[-1])

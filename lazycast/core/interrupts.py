"""Puts off what would come in the middle of lazycast's own work: signals here, other calls by who asks `here`.

Guarantees:

* While the main thread is `Uninterrupted`, no handler of a signal runs that is written in Python; they all run at the
  end of it, each once, and what one raises is raised there. So is what Ctrl-C raises: it is a signal like any other.
* User code in the middle of it, a materializer, is interrupted as ever.
* What is put aside is what was installed at the beginning; a handler that user code installs meanwhile stays. Of what C
  code has installed with `sigaction`, behind Python's back, nothing is known: where Python has a handler for the same
  signal, that takes its place.
* Whatever is raised in between, our own handler at worst stays for a while in front of the one that was put aside, and
  passes on to it.
"""

from __future__ import annotations

import importlib
import signal
from types import FrameType, TracebackType
from typing import Any

from lazycast.here import delivers, here

# What `signal` wraps: the wrappers look names up in enums, for 22 µs each time that a handler is changed and put back.
_signal: Any = importlib.import_module("_signal")
_NUMBERS = tuple(sorted(int(number) for number in signal.valid_signals()))

# Of the main thread alone.
_aside: dict[int, Any] = {}  # by number: the handler in whose place ours is, or was last
_caught: dict[int, FrameType | None] = {}
_raised: list[BaseException] = []  # by handlers, in the middle of user code that we have called
_seen: tuple[Any, ...] = ()  # all handlers, as they were found last
_found: list[tuple[int, Any]] = []  # of these, the ones written in Python


def _catch(number: int, frame: FrameType | None) -> None:
    """The handler of all signals while they wait."""
    if here.defers:
        _caught[number] = frame
        return
    try:
        _aside[number](number, frame)
    except BaseException as exc:
        _raised.append(exc)
        raise


def _deliver() -> None:
    if not _caught:
        return
    number, frame = _caught.popitem()
    try:
        _aside[number](number, frame)
    finally:  # whatever it raises: the others have come as well
        _deliver()


def _interrupt_user_code() -> None:
    """Run the handlers that wait, in front of user code that we call: what they raise, it has raised."""
    try:
        _deliver()
    except BaseException as exc:
        _raised.append(exc)
        raise


delivers(_caught, _interrupt_user_code)


def of_handler(exc: BaseException | None) -> bool:
    """Whether a handler has raised this in the middle of user code, in this thread's work that is not over."""
    return here.main and any(exc is raised for raised in _raised)


class Uninterrupted:
    """A context of lazycast's own work, in which signals wait until its end. Other threads than the main one get none.

    What it finds in `here` it puts back, whatever the work has left there.
    """

    __slots__ = ("_defers", "_depth", "_holds", "_roles")

    def __enter__(self) -> None:
        self._depth, self._defers, self._holds, self._roles = here.depth, here.defers, here.holds, len(here.roles)
        if here.main:
            if not here.holds:
                global _seen, _found
                now = tuple(map(_signal.getsignal, _NUMBERS))  # of all: it takes less time than to know of which
                if now != _seen:
                    _found = [(n, handler) for n, handler in zip(_NUMBERS, now, strict=True) if callable(handler)]
                    _seen = now
                for number, handler in _found:
                    if handler is not _catch:
                        _aside[number] = handler  # first: ours may be called as soon as it is there
                        _signal.signal(number, _catch)
            here.defers = here.holds = True  # in this order: nothing is raised in between
        here.depth += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if len(here.roles) > self._roles:
            del here.roles[self._roles :]
        here.depth = self._depth
        if here.main and not self._defers:  # the last three steps: from here on a signal is not put off
            here.holds = self._holds
            here.defers = False
            if self._holds:  # in user code that another one further out has called
                _deliver()
                return
            # Signals wait no more: whatever is raised in here leaves ours where it was, and passing on.
            try:
                for number in list(_aside):
                    if _signal.getsignal(number) is _catch:
                        _signal.signal(number, _aside[number])
            finally:
                _raised.clear()
                if _caught:
                    _deliver()

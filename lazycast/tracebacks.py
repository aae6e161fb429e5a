"""Exceptions of user code as text, whatever they do when they are looked at, and however much of them there is.

Guarantees: nothing here raises, and no work grows with the length of a chain of causes, with the depth of a stack or
with the size of a group: of each only the ends that tell something are looked at. `traceback` goes through all of them:
6 s for a chain of 100,000.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

_MAX_CHAIN = 8
_MAX_FRAMES = 30  # on either end of a stack
_MAX_MEMBERS, _MAX_DEPTH = 5, 3  # of a group of exceptions, and of groups in groups
_MAX_TEXT = 8 << 10
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def describe(exc: BaseException) -> str:
    """Return "ValueError: its text"."""
    try:
        text = str(exc)
    except BaseException as broken:  # SystemExit too: it was not meant for the thread that describes
        text = f"<its text cannot be had: {type(broken).__name__}>"
    if len(text) > _MAX_TEXT:
        half = _MAX_TEXT // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def formatted(exc: BaseException) -> str:
    """Return the traceback, with what led to it."""
    try:
        return "".join(_chain(exc, 0))
    except BaseException as broken:
        return f"<the traceback of {type(exc).__name__} cannot be had: {type(broken).__name__}>"


def log(logger: logging.Logger, text: str, exc: BaseException) -> None:
    """Log an error with its traceback. Handlers of the `logging` module format `exc_info` themselves, all of it."""
    logger.error("%s\n%s", text, formatted(exc))


def forget_our_locals(exc: BaseException) -> None:
    """Let the frames of lazycast that an exception leads to go of what they worked on.

    A frame keeps its variables, a call, a payload and a future among them, and leads to the frames that called it. The
    future of a failed cast keeps the exception. Without this they would keep each other, and all that memory, until the
    next collection. Frames that still run are left for `forget_frames`, which whoever runs first of them calls last.
    """
    link: BaseException | None = exc
    for _ in range(_MAX_CHAIN):
        if link is None:
            break
        tb = link.__traceback__
        while tb is not None:
            if _is_ours(tb.tb_frame):
                _clear(tb.tb_frame)
            tb = tb.tb_next
        link = link.__cause__ or link.__context__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame):
        left.frames.append(frame)
        frame = frame.f_back


def forget_frames() -> None:
    """Do the same with the frames that ran then, now that they have returned."""
    frames, left.frames = left.frames, []
    for frame in frames:
        _clear(frame)


class _Left(threading.local):
    def __init__(self) -> None:
        self.frames: list[FrameType] = []


#: What `forget_frames` has to do in this thread. Who passes with every cast looks here before the call.
left = _Left()


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("lazycast.")


def _clear(frame: FrameType) -> None:
    with contextlib.suppress(RuntimeError):  # it runs
        frame.clear()


def _chain(exc: BaseException, depth: int) -> Iterator[str]:
    """Yield the text of an exception and of what led to it, the oldest that is shown first."""
    links: list[tuple[BaseException, str]] = []
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen and len(links) < _MAX_CHAIN:
        seen.add(id(link))
        cause, context = link.__cause__, link.__context__
        older = cause if cause is not None else None if link.__suppress_context__ else context
        links.append((link, _CAUSE if cause is not None else _CONTEXT))
        link = older
    if link is not None:
        yield f"[... what led to this is left out: only the last {_MAX_CHAIN} of a chain are shown]\n\n"
    for index, (shown, _) in enumerate(reversed(links)):
        yield from _one(shown, depth)
        if index < len(links) - 1:
            yield links[-index - 2][1]


def _one(exc: BaseException, depth: int) -> Iterator[str]:
    if exc.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from _frames(exc.__traceback__)
    yield f"{describe(exc)}\n"
    notes = getattr(exc, "__notes__", ())
    for note in itertools.islice(notes, _MAX_MEMBERS) if isinstance(notes, list) else ():
        yield f"{note[:_MAX_TEXT]}\n" if isinstance(note, str) else ""
    members = getattr(exc, "exceptions", None)
    if isinstance(members, tuple) and depth < _MAX_DEPTH:
        for number, member in enumerate(members[:_MAX_MEMBERS], 1):
            if isinstance(member, BaseException):
                yield f"--- {number} of {len(members)} in this group ---\n"
                yield from _chain(member, depth + 1)


def _frames(tb: TracebackType) -> Iterator[str]:
    """Yield the frames of a stack, of a deep one those on either end."""
    places: list[TracebackType] = []
    link: TracebackType | None = tb
    while link is not None:  # as many as the recursion limit allows
        places.append(link)
        link = link.tb_next
    if len(places) <= 2 * _MAX_FRAMES:
        yield from traceback.format_tb(tb)
        return
    yield from traceback.format_tb(tb, _MAX_FRAMES)
    yield f"  [... {len(places) - 2 * _MAX_FRAMES} frames left out]\n"
    yield from traceback.format_tb(tb, -_MAX_FRAMES)

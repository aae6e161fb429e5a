"""The state of an object as text: plain functions, and a way to look that cannot block.

Guarantees: what is here may run in a signal handler, also in a thread that holds the lock of what it looks at. A lock
that another holds is tried for a moment; without it what is shown is what can be seen.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from lazycast.net.wire import Key

#: How long whoever looks waits for the lock: those who hold it only decide something (seconds).
_LOOK_S = 0.2
_SHOWN = 50  # lines of a section
_SHOWN_KEY = 40  # characters of a key's repr

#: A line, or, of what takes longer than a lock may be held, what makes one.
Row = str | Callable[[], str]
Section = tuple[str, Sequence[str] | None]


def named(key: Key | None) -> str:
    """Return how a key is shown behind a number: " key 'a'"; nothing without a key."""
    if key is None:
        return ""
    text = repr(key)
    return f" key {text if len(text) <= _SHOWN_KEY else f'{text[:_SHOWN_KEY]}...'}"


@contextlib.contextmanager
def trying(lock: threading.Lock | threading.RLock) -> Iterator[bool]:
    """Hold a lock if it can be had soon; yield whether it could."""
    held = lock.acquire(timeout=_LOOK_S)
    try:
        yield held
    finally:
        if held:
            lock.release()


def seen(look: Callable[[], Sequence[Row] | None]) -> Sequence[Row] | None:
    """Look at something that may change meanwhile."""
    try:
        return look()
    except RuntimeError:  # a dictionary changed its size while it was gone through
        return ["(it changed while it was looked at)"]


def written(rows: Sequence[Row]) -> list[str]:
    """Make the lines that are not made yet. Without a lock."""
    return [row if isinstance(row, str) else row() for row in rows]


def layout(title: str, sections: Sequence[Section], *, held: bool) -> str:
    """Lay out a dump: a title, and under it each section's name, how many lines it has, and these. None: not known."""
    lines = [title]
    if not held:
        lines.append("  (the lock was held all the time: what follows may not fit together)")
    for name, rows in sections:
        if rows is None:
            lines.append(f"  {name}: cannot be told just now")
        elif not rows:
            lines.append(f"  {name}: none")
        elif len(rows) == 1:
            lines.append(f"  {name}: {rows[0]}")
        else:
            lines.append(f"  {name}: {len(rows)}")
            lines += [f"    {row}" for row in rows[:_SHOWN]]
            if len(rows) > _SHOWN:
                lines.append(f"    and {len(rows) - _SHOWN} more")
    return "\n".join(lines)

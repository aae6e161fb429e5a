"""The state of all open objects of this process as text, for a signal handler to write.

Guarantees: neither lazycast's locks nor Python's buffered files are waited for, so a handler may call this whatever it
has interrupted: a lock that the interrupted code holds is tried for a moment, and the dump says that it was not had.
"""

from __future__ import annotations

import os

from lazycast.start import lifetime


def dump_all(fd: int | None = None) -> str:
    """Return `dump()` of every open object of this process, and write it to the descriptor `fd` if there is one.

    For a handler of your own, since none is installed by default:

        signal.signal(signal.SIGUSR1, lambda number, frame: lazycast.dump_all(sys.stderr.fileno()))

    Python runs handlers in the main thread, between two of its instructions or while it waits for a future; not while
    it is inside a long call of a library.
    Collective: no. Blocking: at most a moment for each object. Threads: safe, in a signal handler too.
    """
    text = "\n".join(_dump(thing) for thing in lifetime.open_now()) or "lazycast: nothing is open in this process"
    if fd is not None:
        left = memoryview(f"{text}\n".encode("utf-8", "replace"))
        while left:
            left = left[os.write(fd, left) :]
    return text


def _dump(thing: lifetime.Closable) -> str:
    try:
        return thing.dump()
    except Exception as exc:  # the others' are wanted even so
        return f"lazycast: {thing!r} cannot be dumped: {exc!r}"

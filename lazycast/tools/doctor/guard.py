"""Speaks in the place of this process where no thread of it can: while MPI starts, mpi4py holds the interpreter's lock.

Guarantees: a child process has the text before anything can hang. If it is not told in time that all went well, it says
the text on standard output and ends this process; if this process is ended by others meanwhile, it says the text too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from types import TracebackType

# Reads the text up to a NUL; then waits for a byte, which means that all is well, an end of file, or its limit.
_CHILD = """
import os, select, signal, sys
parent, limit_s, text = int(sys.argv[1]), float(sys.argv[2]), b""
while not text.endswith(b"\\0"):
    piece = os.read(0, 65536)
    if not piece:
        sys.exit()
    text += piece
ready = select.select([0], [], [], limit_s)[0]
if not (ready and os.read(0, 1)):
    sys.stdout.buffer.write(text[:-1])
    sys.stdout.flush()
    if not ready:
        os.kill(parent, signal.SIGKILL)
"""


class Guard:
    """Guards this process while its block runs.

    Args:
        text: what to say if it does not end.
        limit_s: how long it may take.
    """

    def __init__(self, text: str, limit_s: float) -> None:
        self._text, self._limit_s = text, limit_s

    def __enter__(self) -> Guard:
        # A session of its own: launchers end the process groups of their ranks.
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-c", _CHILD, str(os.getpid()), str(self._limit_s)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(self._text.encode() + b"\n\0")
        self._child.stdin.flush()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._child.communicate(b".")

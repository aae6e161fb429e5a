"""Ends this process when its launcher says so or its time is up, whatever it is doing; but says first what is known.

Guarantees: the main thread may be anywhere, inside a library too. A signal's handler in Python would wait for it, so
the signal is taken from a pipe that the interpreter writes to at once, by a thread of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

#: How often the time is looked at (seconds).
_LOOK_S = 0.2


class Watch:
    """Watches while its block runs. In the main thread only.

    Args:
        ended: called from the watching thread with why, before the process exits with code 1.
    """

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._step, self._limit_s, self._deadline_s = "starting", math.inf, math.inf
        self._thread = threading.Thread(target=self._run, name="lazycast-doctor-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._handler = signal.signal(signal.SIGTERM, _ignore)
        self._fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def step(self, what: str, limit_s: float) -> None:
        """Begin something that may take so long."""
        self._step, self._limit_s = what, limit_s
        self._deadline_s = time.monotonic() + limit_s

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._fd)
        signal.signal(signal.SIGTERM, self._handler)
        with contextlib.suppress(OSError):
            os.write(self._write, b"\0")  # no signal: over
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._read], [], [], _LOOK_S)
            numbers = os.read(self._read, 64) if ready else b""
            if signal.SIGTERM in numbers:
                self._end(f"the launcher ended this job while rank 0 was {self._step}")
            elif 0 in numbers:
                return
            elif time.monotonic() > self._deadline_s:
                faulthandler.dump_traceback(file=sys.stderr)
                self._end(f"rank 0 was still {self._step} after {self._limit_s:g} s")

    def _end(self, why: str) -> None:
        try:
            self._ended(why)
        finally:
            sys.stdout.flush()
            os._exit(1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The watching thread acts."""

"""Ends this process when its launcher says so or its time is up, whatever it is doing; but says first what is known.

Guarantees: the main thread may be anywhere, inside a library too. A signal's handler in Python would wait for it, so
the signal is taken from a pipe that the interpreter writes to at once, by a thread of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Watch:
    """Watches while its block runs. In the main thread only.

    Args:
        limit_s: how long the block may take.
        ended: called from the watching thread with why, before the process exits with code 1.
    """

    def __init__(self, *, limit_s: float, ended: Callable[[str], None]) -> None:
        self._limit_s, self._ended = limit_s, ended
        self._thread = threading.Thread(target=self._run, name="lazycast-doctor-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._handler = signal.signal(signal.SIGTERM, _ignore)
        self._fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

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
            ready, _, _ = select.select([self._read], [], [], self._limit_s)
            numbers = os.read(self._read, 64) if ready else b""
            if signal.SIGTERM in numbers:
                self._end("the launcher ended this job")
            elif not ready:
                faulthandler.dump_traceback(file=sys.stderr)
                self._end(f"this rank was stuck for {self._limit_s:g} s")
            elif 0 in numbers:
                return

    def _end(self, why: str) -> None:
        try:
            self._ended(why)
        finally:
            sys.stdout.flush()
            os._exit(1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The watching thread acts."""

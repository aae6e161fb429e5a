"""Kills helpers while they make pixels: their requests go to other helpers, and no client notices."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
from collections.abc import Iterator

from .inputs import Inputs, LazycastInputs

_AT_WORK = re.compile(r"helper \d+: process (\d+), makes cast #(\d+)")
_LOOKS_S = 0.02  # between two looks for a helper at work, where none was
_STANDS_S = 0.05  # until what a helper had sent before it was stopped has been heard of


class Killer:
    """Kills one helper every so many seconds, in the middle of its work. `times`: how many so far.

    A cast that loses two helpers fails, as it should: what kills both may be its payload. So no cast is hit twice.
    """

    def __init__(self, inputs: Inputs, every_s: float) -> None:
        self._inputs, self._every_s = inputs, every_s
        self._over = threading.Event()
        self._hit: set[str] = set()  # casts that have lost a helper
        self.times = 0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="killer")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            if isinstance(self._inputs, LazycastInputs):
                while not self._kill_one(self._inputs) and not self._over.wait(_LOOKS_S):
                    pass

    def _kill_one(self, inputs: LazycastInputs) -> bool:
        """Return whether there was one to kill."""
        working = [pid for pid, cast in _AT_WORK.findall(inputs.dump()) if cast not in self._hit]
        if not working:
            return False
        pid = random.choice(working)
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(int(pid), signal.SIGSTOP)  # while it stands still it takes no other cast
            self._over.wait(_STANDS_S)
            cast = dict(_AT_WORK.findall(inputs.dump())).get(pid)
            if cast is None or cast in self._hit:
                os.kill(int(pid), signal.SIGCONT)
                return False
            self._hit.add(cast)
            self.times += 1
            os.kill(int(pid), signal.SIGKILL)
        return True

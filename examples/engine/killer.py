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

_HELPER = re.compile(r"helper \d+: process (?P<pid>\d+), (?:is free|makes cast #(?P<cast>\d+))")


class Killer:
    """Kills one helper every so many seconds, one at work if there is one. `times`: how many so far."""

    def __init__(self, inputs: Inputs, every_s: float) -> None:
        self._inputs, self._every_s = inputs, every_s
        self._over = threading.Event()
        self._hit: set[str] = set()  # casts that have lost a helper: a second death would be theirs
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
                self._kill_one(self._inputs.dump())

    def _kill_one(self, dump: str) -> None:
        found = [match for match in _HELPER.finditer(dump) if match["cast"] not in self._hit]
        if not found:
            return
        victim = random.choice([match for match in found if match["cast"]] or found)
        if victim["cast"]:
            self._hit.add(victim["cast"])
        self.times += 1
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(int(victim["pid"]), signal.SIGKILL)

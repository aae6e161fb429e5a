"""Who waits for a change on this rank: threads that stand at a gate, and loops that want to be woken.

Guarantees: a gate opens once, at the next change. All of it is called with the engine's lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class Gate(Protocol):
    """What is opened when something has changed: a lock, or what wakes somebody else."""

    def release(self) -> object: ...


class Waker:
    """A gate that wakes somebody who does not stand at one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.release = wake


class Gates:
    """See the module's text."""

    def __init__(self) -> None:
        self.closed: list[Gate] = []  # looked at before `open` is called, where that matters

    def watch(self) -> threading.Lock:
        """Return a gate that opens as soon as something has changed.

        To be waited for without the engine's lock: no interrupt of the waiting can then leave that locked, or half
        taken.
        """
        gate = threading.Lock()
        gate.acquire()
        self.closed.append(gate)
        return gate

    def unwatch(self, gate: threading.Lock) -> None:
        """Nobody stands at a gate any more."""
        if gate in self.closed:
            self.closed.remove(gate)

    def wake(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, once, from any thread, when something has changed."""
        self.closed.append(Waker(wake))

    def forget(self, wake: Callable[[], None]) -> None:
        """Whoever was to be woken waits no more."""
        self.closed = [gate for gate in self.closed if not (isinstance(gate, Waker) and gate.release is wake)]

    def open(self) -> None:
        """Something has changed."""
        while self.closed:
            self.closed.pop().release()

"""What one object has on a rank, whoever is the root: the lock, the threads, counts, and the end of it all.

Guarantees:

* One lock guards all state of an object on a rank. It is held for decisions only: nothing is sent, settled, decoded or
  run under it.
* One thread keeps time and does what is queued; users' code runs on workers and on the thread of callbacks.
* After `close` has returned nothing is left but the values that were handed out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lazycast.core.clock import Clock
from lazycast.core.future import CastFuture
from lazycast.core.helpers.maker import Maker
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.performer import Group, Performer
from lazycast.core.spans import Spans
from lazycast.core.workers import Workers
from lazycast.errors import ClosedError
from lazycast.net.wire import Gone, Key
from lazycast.options import Options
from lazycast.watch.notices import Notices
from lazycast.watch.stats import Counters
from lazycast.watch.tracing.tracer import Tracer

#: A call that was made for what had come: its key and its future.
Taken = tuple[Key | None, CastFuture[Any]]


class Tenant(Protocol):
    """A lane: the casts of one root. An object where any rank casts has one for each."""

    def do_handed(self) -> None:
        """Do what was handed over."""

    def tell_changed(self) -> None:
        """Wake whoever waits for a change."""

    def idle_gate(self) -> threading.Lock | None:
        """Return what opens when something has changed, or None if there is nothing to wait for."""

    def fail_what_waits(self, timeout_s: float) -> None:
        """End all calls: this rank closes the object, after it has waited for so long."""

    def hear_losses(self) -> None:
        """Learn of the ranks that another lane knows to be lost."""

    def disconnect(self, timeout_s: float) -> None:
        """Say farewell to the other ranks."""

    def forget(self) -> None:
        """Let go of all casts: nothing more can come."""


class Engine:
    """See the module's text. Its lanes share it, and look at its attributes with its lock held, or once."""

    def __init__(self, group: Group, options: Options) -> None:
        name = options.name
        self.name, self.rank = name, group.rank
        self.lock = threading.RLock()  # whoever only looks may come in the middle of what this thread does
        self.lanes: list[Tenant] = []
        self.counters = Counters()
        self.notices = Notices(name, group.rank, self.lock)
        self.tracer: Tracer | None = None  # read once where it is used: another thread may end it meanwhile
        self.maker: Maker | None = None  # where this rank has helpers
        self.spans: Spans | None = None  # read once where it is used, too
        self.lost: dict[int, Gone] = {}  # by rank: as it was first heard of here
        #: What was asked for in the middle of our own work, with its arguments. Filled in one step, from anywhere.
        self.handed: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.handing = threading.Lock()  # held by the thread that does what was handed over
        #: What was taken by calls of `next` that were interrupted: whoever asks for it next gets it. Filled in one
        #: step, from anywhere.
        self.given_back: deque[Taken] = deque()
        self.asked = 0  # calls so far
        self.closing = False
        self.closed = threading.Event()
        self.forked = False
        self.performer = Performer(self, group, options.executor, f"lazycast-{name}-work")
        self.callbacks = Workers(1, f"lazycast-{name}-callback")
        self.clock = Clock(self.lock, name=f"lazycast-{name}-engine")

    # Tracing

    def trace(self, folder: Path, about: dict[str, Any]) -> Tracer:
        """Begin to write what happens here to a new file in `folder`, which says what it is `about`."""
        tracer = Tracer(folder, about, self._forget_tracer)
        with Uninterrupted(), self.lock:
            earlier, ended = self.tracer, self.closing
            if earlier is None and not ended:
                self.tracer = tracer
                return tracer
        tracer.stop()
        tracer.path.unlink()
        if earlier is not None:
            raise ValueError(f"lazycast {self.name!r} is being traced to {earlier.path}; stop that first")
        raise ClosedError(f"lazycast {self.name!r} is closed on this rank", rank=self.rank)

    def _forget_tracer(self, tracer: Tracer) -> None:
        if self.tracer is tracer:
            self.tracer = None

    # The end

    def close(self, timeout_s: float) -> None:
        """Wait for pending calls up to `timeout_s`, fail the rest, say farewell, stop. Idempotent."""
        if self.forked:
            return
        first = False
        deadline_s = time.monotonic() + timeout_s
        try:
            with Uninterrupted():
                for lane in self.lanes:
                    lane.do_handed()
                with self.lock:
                    first, self.closing = not self.closing, True
                    for lane in self.lanes:
                        lane.tell_changed()
            if not first:
                self.closed.wait(timeout_s)
                return
            for lane in self.lanes:  # one that had nothing to wait for cannot have later: no calls are made any more
                while (gate := lane.idle_gate()) is not None and (left_s := deadline_s - time.monotonic()) > 0:
                    gate.acquire(timeout=left_s)
        finally:  # an interrupt of the waiting must not leave the object half closed
            if first:
                self._finish(timeout_s, deadline_s)

    def _finish(self, timeout_s: float, deadline_s: float) -> None:
        try:
            with Uninterrupted():
                for lane in self.lanes:
                    lane.hear_losses()
                for lane in self.lanes:
                    lane.fail_what_waits(timeout_s)
            with contextlib.ExitStack() as farewells:  # whatever becomes of one, the others get theirs
                for lane in reversed(self.lanes):
                    farewells.callback(self._disconnect, lane, deadline_s)
        finally:
            self.clock.stop()
            self.performer.stop()
            self.callbacks.stop()
            if (tracer := self.tracer) is not None:
                tracer.stop()
            self.closed.set()
            for lane in self.lanes:
                lane.do_handed()
                lane.forget()  # after all farewells: what one lane had let go of could come again until then
            self.notices.tell(time.monotonic(), all_of_it=True)

    @staticmethod
    def _disconnect(lane: Tenant, deadline_s: float) -> None:
        lane.disconnect(max(1.0, deadline_s - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """Only the forking thread is alive, and any lock may be held: touch none."""
        self.forked = True
        self.tracer = None  # it closes its file itself

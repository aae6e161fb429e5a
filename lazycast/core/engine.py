"""What one object is on a rank: its lanes, and what they share, the lock, the threads, counts, and the end of it all.

Guarantees:

* One lock guards all state of an object on a rank. It is held for decisions only: nothing is sent, settled, decoded or
  run under it.
* One thread keeps time and does what is queued; users' code runs on workers and on the thread of callbacks.
* After `close` has returned nothing is left but the values that were handed out.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazycast.core.engine_thread import EngineThread
from lazycast.core.future import CastFuture
from lazycast.core.handover import Handover
from lazycast.core.helpers.maker import Maker
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.looks import Looks
from lazycast.core.performer import Group, Performer
from lazycast.core.spans import Spans
from lazycast.core.workers import Workers, inside, role_of
from lazycast.errors import ClosedError, ReentrantCallError
from lazycast.here import call_out, here
from lazycast.net.wire import Failure, Gone, Key
from lazycast.options import Options, shown
from lazycast.watch.notices import Notices
from lazycast.watch.stats import Counters
from lazycast.watch.tracing.tracer import Named, Tracer

if TYPE_CHECKING:
    from lazycast.core.lane import Lane

#: A call that was made for what had come: its key and its future.
Taken = tuple[Key | None, CastFuture[Any]]


def nothing_comes(name: str) -> str:
    """Say why a rank to which nobody casts cannot take what has come."""
    return f"lazycast {name!r}: next() is for the other ranks; the root has its futures"


class Engine:
    """See the module's text. Its lanes share it, and look at its attributes with its lock held, or once."""

    def __init__(self, group: Group, options: Options) -> None:
        name = options.name
        self.name, self.rank, self.group, self.options = name, group.rank, group, options
        self.lock = threading.RLock()  # whoever only looks may come in the middle of what this thread does
        self.lanes: list[Lane] = []  # by root, where every rank is one; else there is one lane
        self.counters = Counters()
        self.notices = Notices(name, group.rank, self.lock)
        self.tracer: Tracer | None = None  # read once where it is used: another thread may end it meanwhile
        self.maker: Maker | None = None  # where this rank has helpers
        self.spans: Spans | None = None  # read once where it is used, too
        self.lost: dict[int, Gone] = {}  # by rank: as it was first heard of here
        #: What was taken by calls of `next` that were interrupted: whoever asks for it next gets it. Filled in one
        #: step, from anywhere.
        self.given_back: deque[Taken] = deque()
        self.asked = 0  # calls so far
        self.closing = False
        self.closed = threading.Event()
        self.forked = False
        self.performer = Performer(self, group, options.executor, f"lazycast-{name}-work")
        self.callbacks = Workers(1, f"lazycast-{name}-callback")
        self.thread = EngineThread(self.lock, name=f"lazycast-{name}-engine")
        self.handed = Handover(self, self.thread.wake, self.closed)
        self.looks = Looks(self)

    # Its lanes

    @property
    def own(self) -> Lane:
        """The lane of this rank's own casts, if it makes any; else the only one."""
        return self.lanes[0] if len(self.lanes) == 1 else self.lanes[self.rank]

    def of(self, root: int | None) -> Lane:
        """Return the lane of a root's casts; without one, `own`.

        Raises: ValueError if that rank is no root, or there is no such rank.
        """
        if root is None:
            return self.own
        given: object = root
        if not isinstance(given, bool):
            with contextlib.suppress(TypeError):
                given = operator.index(root)
        if len(self.lanes) > 1 or self.options.roots == "any":
            if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < self.group.size:
                last = self.group.size - 1
                raise ValueError(f"lazycast {self.name!r}: root={shown(given)} is no rank: 0 to {last}")
            return self.lanes[given]
        if given != self.group.root or isinstance(given, bool):
            raise ValueError(
                f"lazycast {self.name!r}: the root is rank {self.group.root}, not {shown(given)}; "
                "LazyBroadcast(roots='any') lets every rank cast"
            )
        return self.own

    def discard_of(self, root: int | None, key: Key) -> None:
        """Give up a root's next cast with this key. Handed over, by a call that was interrupted."""
        with contextlib.suppress(ValueError):  # there is no such root: nothing was to be given up
            self.of(root).discard(key)

    def count_missed(self, key: Key | None, exc: BaseException, root: int | None = None) -> None:
        """Count a call that `exc` ended before it did. Handed over: whoever makes calls may be interrupted again."""
        with contextlib.suppress(ValueError):  # there is no such root: the call was no good
            self.of(root).count_missed(key, exc)

    def follow(self, spans: Spans | None) -> None:
        """Tell `spans` of calls and casts from now on; nobody without."""
        self.spans = spans
        for lane in self.lanes:
            lane.follow(spans.within if spans is not None else None)

    # Who may call

    def refuse_after_fork(self) -> None:
        """Raise in a forked child. Without the lock, which another thread may have held at the fork."""
        if self.forked:
            raise ClosedError(f"lazycast {self.name!r} belongs to the parent of this forked process")

    def refuse_if_closed(self) -> None:
        """With the lock held."""
        if self.closing:
            raise ClosedError(f"lazycast {self.name!r} is closed on this rank", rank=self.rank)

    def guard(self, what: str) -> None:
        """Refuse a call that would wait for itself, or for threads that a fork has left behind."""
        self.refuse_after_fork()
        reentrant = self.reentrant(what)
        if reentrant is not None:
            raise reentrant

    def guard_result(self) -> None:
        """The same for `CastFuture.result`, which has seen that there may be one."""
        in_the_middle = self.in_the_middle("result()")
        if in_the_middle is not None:
            raise in_the_middle
        self.guard("result()")

    def reentrant(self, what: str) -> ReentrantCallError | None:
        """Return the error for a call that would wait inside what it may wait for."""
        role = role_of(self)
        if role is None:
            return None
        return ReentrantCallError(
            f"{what} would block inside a {role} of the same lazycast object {self.name!r}, which may be what "
            "it waits for; use broadcast_async and callbacks there"
        )

    def in_the_middle(self, what: str) -> ReentrantCallError | None:
        """The same for a call that comes in the middle of our own work: made here it would wait for that."""
        if not here.depth:
            return None
        return ReentrantCallError(
            f"{what} would block inside a finalizer, or what else runs in the middle of lazycast's own work on this "
            "thread, be it another object's, which may be what it waits for; use broadcast_async and callbacks there, "
            "and close() elsewhere"
        )

    # What lanes have done

    def run_callback(self, fn: Callable[[], None]) -> None:
        """Have a user's callback called, on the thread of callbacks."""

        def task() -> None:
            with inside(self, "callback"):
                call_out(fn)

        self.callbacks.submit(task)

    def tell_changed(self) -> None:
        """Something has changed that somebody may wait for, of any root."""
        with Uninterrupted(), self.lock:
            for lane in self.lanes:
                lane.asks.gates.open()

    def forget_waker(self, wake: Callable[[], None]) -> None:
        """Whoever was to be woken waits no more."""
        with Uninterrupted(), self.lock:
            for lane in self.lanes:
                lane.asks.gates.forget(wake)

    # Counting

    def took(self, what: str, began_s: float, of: Named, *, helper: int | None = None) -> None:
        """Count how long something took, of this cast, that ends now; and who did it, if that was no rank."""
        ended_s = time.monotonic()
        with self.lock:
            self.counters.noted.append((what, ended_s - began_s))
        if (tracer := self.tracer) is not None:
            if helper is None:
                tracer.took(what, began_s, ended_s, of)
            else:
                tracer.took(what, began_s, ended_s, of, track=f"helper {helper}")
        if (spans := self.spans) is not None:
            spans.took(what, began_s, ended_s, of)

    def count(self, what: str, began_s: float, ended_s: float, of: Named) -> None:
        """With the lock held: count how long something took."""
        self.counters.noted.append((what, ended_s - began_s))
        tracer = self.tracer
        if tracer is not None:
            tracer.took(what, began_s, ended_s, of)

    def count_failure(self, exc: BaseException, key: Key | None, seq: int | None) -> None:
        """With the lock held: count a call that failed, and have the engine's thread log it."""
        self.counters.count_failure(exc)
        self.notices.failed(exc, time.monotonic(), key=key, seq=seq)
        self.thread.wake()

    # Helpers

    def has_helpers(self) -> bool:
        """Whether the helpers of this rank have begun; where another rank of its host has them, that is not known."""
        return self.maker is None or self.maker.pool.has_begun()

    def begin_helpers(self, timeout_s: float) -> Failure | None:
        """Start the helpers of this rank, if it has any, in the background.

        With an `init`, wait until each has called it. Returns why one could not, or did not in time. Blocking: then.
        """
        if self.maker is None or self.options.helpers is None:
            return None
        self.maker.pool.start()
        return self.maker.pool.wait_ready(timeout_s) if self.options.helpers.init is not None else None

    def dump(self) -> str:
        """Return the state as text."""
        return self.looks.dump()

    # The end

    def close(self, timeout_s: float) -> None:
        """Wait for pending calls up to `timeout_s`, fail the rest, say farewell, stop. Idempotent."""
        if self.forked:
            return
        first = False
        deadline_s = time.monotonic() + timeout_s
        try:
            with Uninterrupted():
                self.handed.do()
                with self.lock:
                    first, self.closing = not self.closing, True
                    self.tell_changed()
            if not first:
                self.closed.wait(timeout_s)
                return
            for lane in self.lanes:  # one that had nothing to wait for cannot have later: no calls are made any more
                while (gate := lane.asks.idle_gate()) is not None and (left_s := deadline_s - time.monotonic()) > 0:
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
                    lane.asks.fail_what_waits(timeout_s)
            with contextlib.ExitStack() as farewells:  # whatever becomes of one, the others get theirs
                for lane in reversed(self.lanes):
                    farewells.callback(self._disconnect, lane, deadline_s)
        finally:
            self.thread.stop()
            self.performer.stop()
            self.callbacks.stop()
            if (tracer := self.tracer) is not None:
                tracer.stop()
            self.closed.set()
            self.handed.do()
            for lane in self.lanes:
                lane.forget()  # after all farewells: what one lane had let go of could come again until then
            self.notices.tell(time.monotonic(), all_of_it=True)

    @staticmethod
    def _disconnect(lane: Lane, deadline_s: float) -> None:
        lane.disconnect(max(1.0, deadline_s - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """Only the forking thread is alive, and any lock may be held: touch none."""
        self.forked = True
        self.tracer = None  # it closes its file itself
        for lane in self.lanes:
            lane.asks.forked = True
            lane.close_after_fork()
        self.performer.close_after_fork()

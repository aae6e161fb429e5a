"""The helpers of one host, at its leader: one thread looks after them, others give them what is to be made.

Guarantees:

* As long as the pool is open there are, or begin, as many helpers as were asked for: one that has ended is replaced at
  once, one that could not begin after a while, and later each time. The first one that is killed as it begins counts
  among those that have ended.
* A job goes to whoever is free, to one at a time. One whose helper dies goes to another one, once.
* What helpers print appears on this process's own streams, line by line, and says whose it is.
* After `stop` there is no helper, no thread and no descriptor left.
* Lock order: the pool's condition, then nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import IO

import msgspec

from lazycast.core.failures import clip
from lazycast.core.helpers.process import Died, Helper, Made, Order, Overran, Unmade
from lazycast.core.helpers.talk import LOOK_S, Config
from lazycast.here import own_thread
from lazycast.net.host.limits import lacked
from lazycast.net.wire import Failure
from lazycast.options import Helpers
from lazycast.tracebacks import describe, forget_frames, log

logger = logging.getLogger("lazycast")

_AGAIN_S, _MOST_AGAIN_S = 0.5, 10.0  # after how long a helper that could not begin is started again (seconds)
_LEAVES_S = 1.0  # how long helpers may take to end by themselves when the pool is closed (seconds)
_STOPS_S = 10.0  # how long closing waits for that on a machine that is very busy, or where nobody reads what they print
_READ_NBYTES = 1 << 16
_MAX_LINE_NBYTES = 4 << 10
_MAX_TEXT_NBYTES = 1000


class Pool:
    """See the module's text. Thread-safe.

    Args:
        config: of the first helper; the others differ in their numbers.
        init: the code of what each calls first, or nothing.
    """

    def __init__(self, helpers: Helpers, config: Config, init: bytes, name: str) -> None:
        self._helpers, self._config, self._init = helpers, config, init
        self._changed = threading.Condition(threading.Lock())
        self._team: dict[int, Helper] = {}  # by number: those that have been started
        self._free: list[Helper] = []
        self._due_s: dict[int, float] = dict.fromkeys(range(helpers.count), 0.0)  # when one is to be started again
        self._failed_starts = 0  # since one has begun
        self._trouble: Failure | None = None  # why the last one could not begin, as long as none has begun since
        self._stopping = self._closed = False
        self.lost = 0  # how many have ended that were not told to
        self._poller = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._wake_fd, select.EPOLLIN)
        self._readers: dict[int, Callable[[], None]] = {}
        self._thread = threading.Thread(target=self._run, name=f"{name}-keeper", daemon=True)

    @property
    def count(self) -> int:
        """How many there are to be."""
        return self._helpers.count

    def has_begun(self) -> bool:
        """Whether all are ready. Takes no lock."""
        team = list(self._team.values())
        return len(team) == self.count and all(helper.ready for helper in team)

    def start(self) -> None:
        """Begin to start them, in the background."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> Failure | None:
        """Wait until all have begun; return why one could not, if so, or that it took too long."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._trouble is None and not (len(self._team) == self.count and self._all_ready()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return self._failure(f"helpers have not begun after {timeout_s:.1f} s")
                self._changed.wait(left_s)
            return self._trouble

    def _all_ready(self) -> bool:
        return all(helper.ready for helper in self._team.values())

    def _failure(self, text: str, kind: str = "materialize") -> Failure:
        config = self._config
        said = clip(f"{text}, on rank {config.rank} ({config.host})", _MAX_TEXT_NBYTES)
        return Failure(kind, config.rank, config.host, said)  # type: ignore[arg-type]

    # Jobs

    def make(self, order: Order, room_for: Callable[[int], memoryview], unwanted: Callable[[], bool]) -> Made:
        """Have a value made by whoever is free, and put it where `room_for` says. Blocking: until it is there.

        Raises: Unmade with the reason; what `code_for` and `room_for` raise.
        """
        died: str | None = None
        while True:
            helper = self._take(unwanted, untried=died is None)
            try:
                return helper.make(order, room_for, unwanted, self._helpers.limit_s)
            except Died as exc:
                if died is not None:
                    text = f"materializer {order.ref.name!r} was not done: {died}, and then {exc}"
                    raise Unmade(self._failure(text)) from None
                died = str(exc)
            except Overran as exc:
                limit = f"it had taken longer than limit_s={self._helpers.limit_s:g}, and helper {helper.number}"
                text = f"materializer {order.ref.name!r} was not done{exc}: {limit} was ended"
                raise Unmade(self._failure(text)) from None
            finally:
                self._give(helper)
                del helper

    def _take(self, unwanted: Callable[[], bool], *, untried: bool) -> Helper:
        """Return a helper that is free, once there is one. Raises Unmade."""
        with self._changed:
            while True:
                if self._stopping:
                    text = "the object was closed while a helper was to make a value"
                    raise Unmade(self._trouble or self._failure(text, "closed"))
                if unwanted():
                    raise Unmade(None)
                while self._free:
                    helper = self._free.pop()
                    if helper.alive():
                        return helper
                    self._wake()  # its socket may be open still, in a child of its own
                if self._trouble is not None and not any(helper.ready for helper in self._team.values()):
                    raise Unmade(self._trouble, untried=untried)
                self._changed.wait(LOOK_S)

    def _give(self, helper: Helper) -> None:
        with self._changed:
            alive, buried = helper.alive(), self._team.get(helper.number) is not helper
            if alive and not buried:
                self._free.append(helper)
            self._changed.notify()
        if buried:
            helper.hang_up()
        elif not alive:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is closed: nobody needs to be woken
            os.eventfd_write(self._wake_fd, 1)

    # The thread that looks after them

    def _run(self) -> None:
        own_thread()
        try:
            self._look_after()
        except BaseException as exc:  # a defect: with this thread the helpers end
            log(logger, "lazycast: helpers are looked after no more", exc)
            with self._changed:
                self._trouble = self._failure(f"helpers are looked after no more: {describe(exc)}")
                self._stopping = True
                self._changed.notify_all()
        self._end_all()

    def _look_after(self) -> None:
        while not self._stopping:
            self._start_due()
            for fd, _ in self._poller.poll(self._wait_s()):
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
                elif fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)
            for helper in list(self._team.values()):
                if not helper.alive():
                    self._bury(helper)
            forget_frames()

    def _wait_s(self) -> float | None:
        due_s = min(self._due_s.values(), default=None)
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for number, due_s in list(self._due_s.items()):
            if due_s > now_s or self._stopping:
                continue
            config = msgspec.structs.replace(self._config, number=number)
            del self._due_s[number]
            try:
                helper = Helper(config, self._init, niceness=self._helpers.niceness, cuda=self._helpers.cuda)
            except (OSError, MemoryError) as exc:
                self._could_not_begin(number, self._failure(f"helper {number} could not be started: {lacked(exc)}"))
                continue
            self._watch(helper.life.fileno(), functools.partial(self._hear, helper))
            for pipe, into_fd in helper.outputs:
                os.set_blocking(pipe.fileno(), False)
                lines = _Lines(pipe, into_fd, f"[helper {number} of rank {self._config.rank}] ".encode(), helper.keep)
                self._watch(pipe.fileno(), functools.partial(self._print, lines))
            with self._changed:
                self._team[number] = helper
                self._changed.notify_all()

    def _watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._poller.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def _print(self, lines: _Lines) -> None:
        if not lines.pass_on():
            self._unwatch(lines.fd)

    def _hear(self, helper: Helper) -> None:
        lives, failure = helper.hear()
        if not lives:
            self._bury(helper)
        elif failure is not None:
            helper.kill()
            self._bury(helper, failure)
        else:
            with self._changed:
                helper.ready = True
                self._failed_starts, self._trouble = 0, None
                self._free.append(helper)
                self._changed.notify_all()

    def _bury(self, helper: Helper, failure: Failure | None = None) -> None:
        """A helper has ended, or is about to, since it could not begin: another one takes its place."""
        if self._team.get(helper.number) is not helper:
            return
        how = helper.ended()
        with self._changed:
            del self._team[helper.number]
            if helper in self._free:
                self._free.remove(helper)
            self._changed.notify_all()
        self._close_helper(helper)
        if helper.ready:
            self.lost += 1
            self._due_s[helper.number] = 0.0
            return
        killed = failure is None and helper.process.returncode < 0
        if killed and not self._failed_starts:  # an accident, perhaps: casts wait, unless the next one is killed too
            self.lost += 1
            self._failed_starts = 1
            self._due_s[helper.number] = 0.0
            return
        said = helper.said.decode(errors="replace").strip()
        more = f"; it said: {said}" if said else ""
        self._could_not_begin(helper.number, failure or self._failure(f"{how} before it had begun{more}"))

    def _close_helper(self, helper: Helper) -> None:
        """A helper has ended, and is nobody's any more: print its last words, and close what leads to it."""
        for pipe, _ in helper.outputs:
            reader = self._readers.get(pipe.fileno())
            if reader is not None:
                reader()
            self._unwatch(pipe.fileno())
        self._unwatch(helper.life.fileno())
        if helper.at_work is None:  # else whoever waits for it does, in `_give`
            helper.hang_up()
        helper.close()

    def _could_not_begin(self, number: int, failure: Failure) -> None:
        with self._changed:
            self._trouble = failure
            self._failed_starts += 1
            self._changed.notify_all()
        wait_s = min(_MOST_AGAIN_S, _AGAIN_S * 2.0 ** min(self._failed_starts, 10))
        self._due_s[number] = time.monotonic() + wait_s

    # The end

    def stop(self) -> None:
        """End all helpers, in the middle of what they do. Idempotent. Blocking: until they have, or `_STOPS_S`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is None:
            self._close()
            return
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(_STOPS_S)

    def _end_all(self) -> None:
        team = list(self._team.values())
        for helper in team:
            if helper.at_work is None:
                helper.dismiss()
            else:
                helper.kill()
        deadline_s = time.monotonic() + _LEAVES_S
        for helper in team:
            helper.ended(max(0.0, deadline_s - time.monotonic()))
            with self._changed:
                del self._team[helper.number]
            self._close_helper(helper)
        self._free.clear()
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._poller.close()
            os.close(self._wake_fd)

    def close_after_fork(self) -> None:
        """In a forked child: close the copies of the descriptors, so that helpers see their leader's end."""
        for helper in list(self._team.values()):
            helper.hang_up()
            helper.close()
        self._poller.close()
        os.close(self._wake_fd)

    # Looking. Takes no lock.

    def figures(self) -> tuple[int, int, int]:
        """Return how many are ready, how many are at work, and how many have been lost."""
        team = list(self._team.values())
        return sum(h.ready for h in team), sum(h.at_work is not None for h in team), self.lost

    def lines(self) -> list[str]:
        """Return lines for a dump."""
        trouble = [f"could not begin: {self._trouble.message}"] if self._trouble is not None else []
        lost = [f"{self.lost} have ended and were replaced"] if self.lost else []
        return [*(helper.line() for helper in list(self._team.values())), *lost, *trouble]


class _Lines:
    """Passes on what a helper prints, whole lines at a time."""

    def __init__(self, pipe: IO[bytes], into_fd: int, prefix: bytes, keep: Callable[[bytes], None]) -> None:
        self.fd = pipe.fileno()
        self._into_fd, self._prefix, self._keep = into_fd, prefix, keep
        self._begun = b""

    def pass_on(self) -> bool:
        """Print what has come; return whether more may."""
        while True:
            try:
                printed = os.read(self.fd, _READ_NBYTES)
            except BlockingIOError:
                return True
            self._keep(printed)
            *lines, self._begun = (self._begun + printed).split(b"\n")
            if self._begun and (not printed or len(self._begun) > _MAX_LINE_NBYTES):
                lines.append(self._begun)
                self._begun = b""
            if lines:
                text = b"".join(self._prefix + line + b"\n" for line in lines)
                with contextlib.suppress(OSError):  # this process has closed its own stream: there is nobody to read it
                    while text:
                        text = text[os.write(self._into_fd, text) :]
            if not printed:
                return False

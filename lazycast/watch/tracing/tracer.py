"""What the engine calls to note what casts do, if this rank is traced: it appends a tuple, and a thread writes.

Guarantees:

* Noting takes no lock, formats nothing and never waits for the disk. At most `_MAX_WAITING` events wait to be written;
  what comes beyond that is counted, and the file says how many are missing where.
* Written events reach the file every `_EVERY_S`; a process that is killed loses what came after, and nothing else.
* After `stop` nothing is written, and what was noted before is in the file, which ends as JSON does; if the disk takes
  longer than `_STOPS_WITHIN_S`, a warning says so, and the rest is written after it.
* A forked child writes nothing, and does not hold the file open.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lazycast.here import own_thread
from lazycast.watch.tracing.events import ABOUT, Event, line

logger = logging.getLogger("lazycast")

_EVERY_S = 0.2
_MAX_WAITING = 100_000
_MAX_TEXT = 300
_STOPS_WITHIN_S = 5.0

#: What keeps the thread busy that does it; everything else is waiting, and overlaps.
_WORK = frozenset(
    {"blocked", "broadcast", "encode", "send", "arrive", "decode", "materialize", "share", "arrive value"}
)


_Who = tuple[int, str | int | bytes | None, str, int | None]


class Named(Protocol):
    """What says which cast is meant: a `Call` before it is sent, a `Cast` afterwards."""

    @property
    def seq(self) -> int: ...

    @property
    def key(self) -> str | int | bytes | None: ...

    @property
    def placement(self) -> str: ...


#: Whose file may be open, also after its object has let go of it.
_tracers: weakref.WeakSet[Tracer] = weakref.WeakSet()


class Tracer:
    """One file of one rank.

    Args:
        folder: made if it does not exist.
        about: what the file is to say of itself; `object`, `name`, `rank`, `host` and `clock` at least.
        on_stop: called first when it is stopped, so that nobody notes anything more.
    Raises: OSError if the file cannot be made.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], on_stop: Callable[[Tracer], None] = lambda tracer: None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _fresh(folder, f"{about['name']}-{about['object'][:8]}-rank{about['rank']}")
        self._rank: int = about["rank"]
        self._file = self.path.open("xb", buffering=0)  # what a buffer held at a fork would be written twice
        self._on_stop = on_stop
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._missing = 0
        self._threads: dict[int | str, tuple[int, str]] = {}  # by ident, or name of a track: number and name
        self._numbers = itertools.count(1)  # to count the threads known would give two that are new at once the same
        self._named: set[int] = set()
        self._spans = 0
        self._stopping = threading.Event()
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        head = {**about, "pid": os.getpid(), "monotonic_us": now_ns / 1e3, "wall_us": wall_ns / 1e3}
        title = f"rank {about['rank']} ({about['host']}) {about['name']}"
        self._file.write(b"[\n")
        for name, args in (
            (ABOUT, head),
            ("process_name", {"name": title}),
            ("process_sort_index", {"sort_index": self._rank}),
        ):
            self._file.write(line({"ph": "M", "name": name, "pid": self._rank, "tid": 0, "ts": 0, "args": args}))
        self._thread = threading.Thread(target=self._run, name=f"lazycast-{about['name']}-trace", daemon=True)
        _tracers.add(self)
        self._thread.start()

    # Called by the engine, from any thread, mostly with its lock held

    def took(
        self, what: str, began_s: float, ended_s: float, of: Named | None, *, track: str | None = None, **more: Any
    ) -> None:
        """Note a phase of a cast, from `began_s` to `ended_s` (monotonic seconds), on the calling thread.

        With `track` it is on that one, which is no thread of this process.
        """
        self._put((what, began_s, ended_s, self._tid() if track is None else self._tid_of(track), _who(of), more))

    def happened(self, what: str, of: Named | None, **more: Any) -> None:
        """Note that something happens now."""
        self._put((what, time.monotonic(), None, self._tid(), _who(of), more))

    def _tid(self) -> int:
        ident = threading.get_ident()
        known = self._threads.get(ident)
        if known is None:
            known = self._threads[ident] = next(self._numbers), threading.current_thread().name
        return known[0]

    def _tid_of(self, track: str) -> int:
        known = self._threads.get(track)
        if known is None:
            known = self._threads.setdefault(track, (next(self._numbers), track))
        return known[0]

    def _put(self, noted: tuple[Any, ...]) -> None:
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(noted)
        else:
            self._missing += 1

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    # The writing thread

    def stop(self) -> None:
        """Write what was noted, and the end. Blocking: as long as that takes, up to 5 s. Idempotent."""
        self._on_stop(self)
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_STOPS_WITHIN_S)
            if self._thread.is_alive():
                logger.warning("lazycast: the trace %s is not all written after %.1f s", self.path, _STOPS_WITHIN_S)

    def close_after_fork(self) -> None:
        """In a forked child, which has no thread that writes: let go of the file."""
        self._file.close()  # there is no buffer whose content would be written here as well; twice is fine

    def _run(self) -> None:
        own_thread()
        try:
            while not self._stopping.wait(_EVERY_S):
                self._write()
            self._write()
            self._file.write(line({"ph": "M", "name": "end", "pid": self._rank, "tid": 0, "ts": 0, "args": {}})[:-2])
            self._file.write(b"\n]\n")
        except OSError as exc:  # a full disk must not end casts
            logger.error("lazycast: the trace %s ends here: %s", self.path, exc)
            self._waiting = deque(maxlen=0)
        finally:
            self._file.close()

    def _write(self) -> None:
        waiting = self._waiting
        lines: list[bytes] = []
        for _ in range(len(waiting)):
            what, began_s, ended_s, tid, who, more = waiting.popleft()
            lines += map(line, self._events(what, began_s, ended_s, tid, who, more))
        missing, self._missing = self._missing, 0
        if missing:
            lines += map(line, self._events("events left out", time.monotonic(), None, 0, None, {"count": missing}))
        if lines:
            self._file.write(b"".join([*map(line, self._names()), *lines]))

    def _names(self) -> list[Event]:
        """Name the threads that are new."""
        found = []
        for number, name in list(self._threads.values()):
            if number not in self._named:
                self._named.add(number)
                args = {"name": name}
                found.append(
                    {"ph": "M", "name": "thread_name", "pid": self._rank, "tid": number, "ts": 0, "args": args}
                )
        return found

    def _events(
        self, what: str, began_s: float, ended_s: float | None, tid: int, who: _Who | None, more: dict[str, Any]
    ) -> Sequence[Event]:
        args, ts = _args(who, more), round(began_s * 1e6, 3)
        where: Event = {"name": what, "pid": self._rank, "tid": tid}
        if ended_s is None:
            return [{**where, "cat": "cast", "ph": "i", "s": "t", "ts": ts, "args": args}]
        if what in _WORK:
            # Both ends are rounded, not the time between: slices that nest in time do so in the file.
            took = max(0.0, round(round(ended_s * 1e6, 3) - ts, 3))
            return [{**where, "cat": "cast", "ph": "X", "ts": ts, "dur": took, "args": args}]
        self._spans += 1
        pair = {**where, "cat": "wait", "id": f"{self._rank}.{self._spans}"}
        end = max(ts, round(ended_s * 1e6, 3))
        return [{**pair, "ph": "b", "ts": ts, "args": args}, {**pair, "ph": "e", "ts": end}]


def _who(of: Named | None) -> _Who | None:
    """Say which cast is meant, without what hangs on it: what waits to be written must keep no value alive."""
    if of is None:
        return None
    return of.seq, of.key, of.placement, getattr(of, "nbytes", None)  # a call that is not encoded has no such


def _args(who: _Who | None, more: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if who is not None:
        seq, key, placement, nbytes = who
        args = {"seq": seq, "key": key.hex() if isinstance(key, bytes) else key}
        if placement:  # it is decided
            args["placement"] = placement
        if nbytes is not None:
            args["nbytes"] = nbytes
    return {**args, **{name: _clipped(value) for name, value in more.items()}}


def _clipped(value: Any) -> Any:
    return value[:_MAX_TEXT].encode(errors="replace").decode() if isinstance(value, str) else value


def _fresh(folder: Path, stem: str) -> Path:
    """Return a name that no file there has yet: an object may be traced several times."""
    stem = re.sub(r"[^\w.-]+", "_", stem)
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def _after_fork_in_child() -> None:
    for tracer in list(_tracers):
        tracer.close_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)

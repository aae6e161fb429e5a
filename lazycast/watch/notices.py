"""What an operator reads in the log of one object: its beginning, calls that failed, ranks that are lost or silent.

Guarantees:

* `failed` only notes, so it may be called with the lock held; the engine's thread logs, without it (`tell`).
* A record holds plain data: nobody who keeps records keeps an error, a future or a value alive.
* Of calls that fail with errors of one class, `BURST` at most are logged in `WINDOW_S`. When that time is over, or the
  object is closed, one more record says how many were left out.
* A record is one line of bounded length, whatever the text of an error is.
* What a handler or filter raises ends no cast; it is printed to standard error.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from lazycast.tracebacks import formatted

logger = logging.getLogger("lazycast")

#: How many failed calls of one class of error are logged in a window, and how long that is (seconds).
BURST: Final = 5
WINDOW_S: Final = 10.0
_MAX_TEXT = 2000  # characters
_SHOWN_RANKS = 20

_Key = str | int | bytes | None


@dataclass
class _Window:
    """What has been logged of one class of error since `began_s` (monotonic seconds)."""

    began_s: float
    told: int = 0
    left_out: int = 0


_DROPPED = "dropped"  # in the place of an error's name, of casts that were dropped


class Notices:
    """Logs for one object on one rank.

    Args:
        name, rank: of the object.
        lock: the owner's. `failed` is called with it, everything else without.
    """

    def __init__(self, name: str, rank: int, lock: threading.RLock) -> None:
        self._name, self._rank, self._lock = name, rank, lock
        self._noted: list[tuple[str, dict[str, Any]]] = []
        self._windows: dict[str, _Window] = {}  # by class of error
        self._silent: set[int] = set()  # of whom it was logged: several lanes notice it. On the thread that keeps time
        #: When `tell` has something to log (monotonic seconds); None: nothing.
        self.due_s: float | None = None

    # Failed calls

    def failed(self, exc: BaseException, now_s: float, *, key: _Key, seq: int | None) -> None:
        """With the lock held: note a call that failed. Takes some microseconds, and runs nobody's code."""
        error = type(exc).__name__
        if not self._is_told(error, now_s):
            return
        args = BaseException.args.__get__(exc)  # type: ignore[attr-defined]  # not `exc.args`: that may be anybody's code
        text = args[0] if args and type(args[0]) is str else ""
        peer = getattr(exc, "rank", None) if type(exc).__module__ == "lazycast.errors" else None
        fields = self._fields("failed", key=key, seq=seq, peer=peer, error=error, count=1)
        self._noted.append((f"a call failed: {error}{': ' * bool(text)}{self._own(text)}", fields))

    def dropped(self, now_s: float, *, key: _Key, seq: int) -> None:
        """With the lock held: note a cast that the root let go of since no rank had asked for it."""
        if self._is_told(_DROPPED, now_s):
            fields = self._fields("dropped", key=key, seq=seq, count=1)
            self._noted.append((f"dropped cast #{seq}: the window is full, and no rank had asked for it", fields))

    def _is_told(self, what: str, now_s: float) -> bool:
        """Whether there have been few enough of these lately for this one to be logged; else it is counted."""
        window = self._windows.get(what)
        if window is None:
            window = self._windows[what] = _Window(now_s)
        elif now_s - window.began_s >= WINDOW_S:
            self._end_window(what, window)
            window.began_s, window.told = now_s, 0
        if window.told >= BURST:
            window.left_out += 1
            self.due_s = min(now_s if self.due_s is None else self.due_s, window.began_s + WINDOW_S)
            return False
        window.told += 1
        self.due_s = now_s
        return True

    def tell(self, now_s: float, *, all_of_it: bool = False) -> float | None:
        """Log what was noted. Without the lock.

        Args:
            all_of_it: say how many were left out though their time is not over.
        Returns: when to come back at the latest (monotonic seconds); None: when something more fails.
        """
        with self._lock:
            for error, window in self._windows.items():
                if window.left_out and (all_of_it or now_s - window.began_s >= WINDOW_S):
                    self._end_window(error, window)
            noted, self._noted = self._noted, []
            ends = [window.began_s + WINDOW_S for window in self._windows.values() if window.left_out]
            self.due_s = min(ends, default=None)
        for text, fields in noted:
            self._log(logging.WARNING, text, fields)
        return self.due_s

    def _end_window(self, error: str, window: _Window) -> None:
        """With the lock held: note how many were left out."""
        count, window.left_out = window.left_out, 0
        if count and error == _DROPPED:
            fields = self._fields("left out", count=count)
            self._noted.append((f"dropped {count} more cast{'s' * (count > 1)} within {WINDOW_S:g} s", fields))
        elif count:
            calls = "1 more call" if count == 1 else f"{count} more calls"
            fields = self._fields("left out", error=error, count=count)
            self._noted.append((f"{calls} failed within {WINDOW_S:g} s: {error}", fields))

    # Everything else, which is logged at once

    def constructed(
        self,
        *,
        size: int,
        root: int | None,
        host: str,
        backend: str,
        placement: str,
        hosts: Collection[Collection[int]],
        not_shared: str | None,
    ) -> None:
        """Log that the object is ready.

        Args:
            root: None where every rank is one.
            host: this rank's. hosts: the ranks of each host, those that share memory.
            not_shared: why this rank shares memory with nobody, if so.
        """
        beside = tuple(rank for ranks in hosts if self._rank in ranks for rank in ranks if rank != self._rank)
        shared = f"shares memory with {_ranks(beside)}" if not_shared is None else f"shares no memory: {not_shared}"
        where = f"{size} rank{'s' * (size > 1)} on {len(hosts)} host{'s' * (len(hosts) > 1)}"
        where += f", root {root}" if root is not None else ", every rank a root"
        fields = self._fields("constructed") | {
            "lazycast_size": size,
            "lazycast_root": root,
            "lazycast_backend": backend,
            "lazycast_placement": placement,
            "lazycast_hosts": tuple(map(tuple, hosts)),
            "lazycast_shares_with": () if not_shared is not None else beside,
        }
        text = f"ready on {host}: {where}; backend {backend}; placement {placement}; rank {self._rank} {shared}"
        self._log(logging.INFO, text, fields)

    def lost(self, peer: int, text: str) -> None:
        """Log that a rank has ended without a farewell."""
        self._log(logging.WARNING, text, self._fields("lost", peer=peer))

    def silent(self, peer: int, host: str, silent_s: float, link: str | None, why: str) -> None:
        """Log that nothing has come from a rank of another host for `silent_s` (seconds)."""
        if peer in self._silent:
            return
        self._silent.add(peer)
        text = f"rank {peer} ({host}) has not been heard for {silent_s:.1f} s over {link} ({why}); casts wait for it"
        self._log(logging.WARNING, text, self._fields("silent", peer=peer))

    def heard_again(self, peer: int, host: str, silent_s: float, link: str | None) -> None:
        """Log that such a rank is heard again."""
        if peer not in self._silent:
            return
        self._silent.discard(peer)
        text = f"rank {peer} ({host}) is heard again over {link}, after {silent_s:.1f} s"
        self._log(logging.WARNING, text, self._fields("heard again", peer=peer))

    def lags(self, peer: int, host: str, casts: int, oldest: str, for_s: float, key: _Key, seq: int) -> None:
        """Log that a rank has stopped asking while others go on: since `for_s` (seconds), for so many casts."""
        waiting = "1 cast" if casts == 1 else f"{casts} casts"
        text = f"rank {peer} ({host}) has not asked for {waiting}, the oldest {oldest} for {for_s:.1f} s"
        fields = self._fields("lags", peer=peer, key=key, seq=seq, count=casts)
        self._log(logging.WARNING, f"{text}, while others go on: has its loop stopped?", fields)

    def waits(
        self, label: str, waited_s: float, text: str, *, key: _Key, seq: int | None, silent: Collection[int]
    ) -> None:
        """Log that a call has waited for `warn_after_s`. `silent`: the ranks that do not answer."""
        fields = self._fields("waits", key=key, seq=seq) | {"lazycast_silent": tuple(silent)}
        self._log(logging.WARNING, f"{self._own(label)}: still waiting after {waited_s:.1f} s: {text}", fields)

    def _fields(
        self,
        kind: str,
        *,
        key: _Key = None,
        seq: int | None = None,
        peer: int | None = None,
        error: str | None = None,
        count: int | None = None,
    ) -> dict[str, Any]:
        # With a prefix: `logging` refuses names that a record has already, and some set `rank` on all of theirs.
        return {
            "lazycast_kind": kind,
            "lazycast_object": self._name,
            "lazycast_rank": self._rank,
            "lazycast_key": key,
            "lazycast_seq": seq,
            "lazycast_peer": peer,
            "lazycast_error": error,
            "lazycast_count": count,
        }

    def _own(self, text: str) -> str:
        """Return a text without the name that every line has."""
        return text.removeprefix(f"lazycast {self._name!r}: ")

    def _log(self, level: int, text: str, fields: dict[str, Any]) -> None:
        try:
            logger.log(level, "lazycast %r: %s", self._name, _line(text), extra=fields)
        except Exception as exc:  # a filter or a handler of somebody's: that must not end the engine, and casts with it
            print(f"lazycast {self._name!r}: logging failed\n{formatted(exc)}", file=sys.stderr)


def _line(text: str) -> str:
    """Make one line of a text, and not too long a one: what an exception says must not pass for another record."""
    if len(text) > _MAX_TEXT:
        text = (
            f"{text[: _MAX_TEXT // 2]} [... {len(text) - _MAX_TEXT} characters left out ...] {text[-_MAX_TEXT // 2 :]}"
        )
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _ranks(ranks: Collection[int]) -> str:
    shown = ", ".join(map(str, list(ranks)[:_SHOWN_RANKS]))
    more = f" and {len(ranks) - _SHOWN_RANKS} more" if len(ranks) > _SHOWN_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {shown}{more}"

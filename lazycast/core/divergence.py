"""Debug mode: where calls are made, and whether those that meet were meant for each other.

Only calls without a key are compared: they meet by their number, so one call more or less on a rank shifts all that
follow. A *site* is the line of a call, outside lazycast, and the line that called the function it is in. Its *place* is
that function and the line that called it. Ranks whose sites differ are normal: `if lazy.is_root: lazy.broadcast(x)` on
one line, `else: lazy.broadcast()` on another, or a root that casts from many places to ranks that receive in one. So a
pair of sites that has met before never is a divergence, nor is a new one unless what has met before speaks against it.
The new pair of R, a site of the root's, and S, another one of this rank's, is a divergence if

1. R has met R and S has met S: all ranks make these calls together, and now they are mixed up; likewise with places; or
2. S has met R: the same two calls were made in another order here than on the root; or
3. R has met one site only, and S one other only, each often: `_SURE_NEAR` times if each of these two pairs is of one
   function, the branches of an `if`; `_SURE` times else.

Assumptions: all ranks run the same files. A program that lets its ranks choose by themselves on which of two lines they
receive is not out of step; it is taken for it by the third rule alone, if its choices happened to agree with the
root's so often before.
"""

from __future__ import annotations

import hashlib
import sys
from types import FrameType

from lazycast.core.dump import named
from lazycast.net.wire import Key, Origin

#: How many calls of the root are shown to a rank that waits for one in vain.
SHOWN_CALLS = 8

_SURE = 16
_SURE_NEAR = 2
_MAX_PAIRS = 4096
_DIGEST_NBYTES = 8
_MAX_SITE = 160
_INSIDE = ("lazycast.testing", "lazycast.tools")  # of ours, but users of the library


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return (name == "lazycast" or name.startswith("lazycast.")) and not name.startswith(_INSIDE)


def origin(nth: int) -> Origin:
    """Return where the call that is being made comes from. `nth`: its number among those without a key, else 0."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    if frame is None:
        return Origin("nowhere", b"", b"", nth)
    code, caller = frame.f_code, frame.f_back
    path = "/".join(code.co_filename.split("/")[-2:])
    site = f"{path}:{frame.f_lineno} ({code.co_name})"[-_MAX_SITE:]
    way = _digest(f"{caller.f_code.co_filename.rpartition('/')[2]}:{caller.f_lineno}" if caller is not None else "")
    place = _digest(f"{path} {code.co_name}") + way
    label = _digest(f"{path}:{frame.f_lineno}") + way
    return Origin(site.encode("utf-8", "replace").decode(), label, place, nth)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=_DIGEST_NBYTES).digest()


def made(seq: int, key: Key | None, where: Origin | None) -> str:
    """Name a call of the root."""
    number = f" (number {where.nth} without a key)" if where is not None and where.nth else ""
    return f"#{seq}{named(key)}{number}" + (f" at {where.site}" if where is not None else "")


def _function(where: Origin) -> bytes:
    return where.place[:_DIGEST_NBYTES]


class Pairings:
    """Which sites have met, on one rank. Not thread-safe. Bounded: beyond that many pairs, new ones are spared."""

    def __init__(self) -> None:
        self._times: dict[tuple[bytes, bytes], int] = {}  # by sites of the root's and of this rank's; places too
        self._here: dict[bytes, set[bytes]] = {}  # by site of the root's
        self._there: dict[bytes, set[bytes]] = {}  # by site of this rank's
        self._function: dict[bytes, bytes] = {}  # by site

    def meet(self, root: Origin, here: Origin) -> str | None:
        """Note that two calls have met; return what speaks against it if they were not meant for each other."""
        pair = root.label, here.label
        if pair in self._times:
            self._times[pair] += 1
            return None
        if len(self._times) >= _MAX_PAIRS:
            return None
        evidence = self._evidence(root, here) if root.label != here.label else None
        if evidence is None:
            self._times[pair] = 1
            self._here.setdefault(root.label, set()).add(here.label)
            self._there.setdefault(here.label, set()).add(root.label)
            self._function[root.label], self._function[here.label] = _function(root), _function(here)
            places = root.place, here.place
            self._times[places] = self._times.get(places, 0) + 1
        return evidence

    def _evidence(self, root: Origin, here: Origin) -> str | None:
        same_lines = self._times.get((root.label,) * 2, 0), self._times.get((here.label,) * 2, 0)
        same_places = self._times.get((root.place,) * 2, 0), self._times.get((here.place,) * 2, 0)
        if all(same_lines) or (root.place != here.place and all(same_places)):
            return "until now all ranks have made these two calls together"
        if (here.label, root.label) in self._times:
            return "before, these two calls have met the other way round"
        other_here, times_here = self._only([(root.label, s) for s in self._here.get(root.label, ())], 1)
        other_there, times_there = self._only([(r, here.label) for r in self._there.get(here.label, ())], 0)
        near = self._function.get(other_here) == _function(root) and self._function.get(other_there) == _function(here)
        if min(times_here, times_there) >= (_SURE_NEAR if near else _SURE):
            return (
                f"until now each of the two has met one other call only, the root's {times_here} times and this "
                f"rank's {times_there} times"
            )
        return None

    def _only(self, pairs: list[tuple[bytes, bytes]], side: int) -> tuple[bytes, int]:
        """Return the only partner there is, one side of the only pair, and how often they met; else nobody and 0."""
        return (pairs[0][side], self._times[pairs[0]]) if len(pairs) == 1 else (b"", 0)

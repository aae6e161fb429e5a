"""The root's book of what every rank remembers. Plain data under a lock of its own; nothing is called under it.

Guarantees:

* A value is known once every rank has said that it keeps it, and its cast has succeeded. Nothing that failed is.
* What is known takes up to `nbytes` on any rank, by what ranks have said; the least recently used goes first.
* The numbers of what goes are handed out once (`take_drops`), to be said with the next cast. None is used again.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import msgspec

from lazycast.codec.pickling import Encoded
from lazycast.net.members import bits
from lazycast.net.wire import MaterializerRef
from lazycast.options import Memo, exact, shown

_MOST_KNOWN = 1 << 16
_MOST_DROPS = 200  # in one message


class _Begun(msgspec.Struct, eq=False):
    """A cast whose value is to be remembered."""

    ident: bytes
    number: int
    missing: int  # as a set of ranks: see `net.members`
    nbytes: int = 0
    unkept: bool = False


class _Known(msgspec.Struct, eq=False):
    number: int
    nbytes: int


def ident_by_key(
    memo: Memo,
    payload: object,
    ref: MaterializerRef | None,
    finish: MaterializerRef | None,
    turns: tuple[int, int] = (0, 0),
) -> bytes:
    """Return what names a value, by the user's key. Raises TypeError for what is no key, and what `key` raises."""
    assert memo.key is not None
    key = exact(memo.key(payload))
    if type(key) not in (str, int, bytes):
        raise TypeError(f"Memo: key must return a str, int or bytes, got {shown(key)}")
    hashed = _hashed(ref, finish, turns)
    hashed.update(f"key {type(key).__name__}".encode())
    hashed.update(key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass"))
    return bytes(hashed.digest())


def ident_by_bytes(
    encoded: Encoded,
    ref: MaterializerRef | None,
    finish: MaterializerRef | None,
    turns: tuple[int, int] = (0, 0),
) -> bytes:
    """Return what names a value, by all bytes of its payload."""
    hashed = _hashed(ref, finish, turns)
    hashed.update(f"bytes {encoded.layout.stream_nbytes} {encoded.layout.frames}".encode())
    for _, part in encoded.parts():
        hashed.update(part)
    return bytes(hashed.digest())


def _hashed(ref: MaterializerRef | None, finish: MaterializerRef | None, turns: tuple[int, int]) -> Any:
    """Begin with the materializer: a name may have stood for several, one after the other (`Shipper.turns`)."""
    hashed = hashlib.sha256(f"{turns} ".encode())
    for part in (ref, finish):
        ident = b"-" if part is None else f"{part.ident} {part.part}".encode("utf-8", "surrogatepass")
        hashed.update(f"{len(ident)} ".encode() + ident)
    return hashed


class Book:
    """See the module's text. Thread-safe."""

    def __init__(self, nbytes: int, ranks: Collection[int]) -> None:
        self._nbytes, self._ranks = nbytes, bits(ranks)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._known_nbytes = 0
        self._begun: dict[int, _Begun] = {}  # by the number of the cast
        self._under_way: set[bytes] = set()
        self._again: dict[int, bytes] = {}  # by the number of the cast: what it has again
        self._drops: list[int] = []

    def look(self, ident: bytes, seq: int) -> int:
        """Return the number of what is known, which cast `seq` has again; 0 if it is not known."""
        with self._lock:
            known = self._known.get(ident)
            if known is None:
                return 0
            self._known.move_to_end(ident)
            self._again[seq] = ident
            return known.number

    def begin(self, ident: bytes, seq: int) -> int:
        """Return the number under which ranks are to keep what cast `seq` makes; 0 if another one does already."""
        with self._lock:
            if ident in self._under_way or ident in self._known:
                return 0
            number = next(self._numbers)
            self._begun[seq] = _Begun(ident, number, self._ranks)
            self._under_way.add(ident)
            return number

    def reported(self, seq: int, who: int, nbytes: int) -> None:
        """Book that a set of ranks has done its part, and keeps up to so many bytes of it each: 0 if one does not."""
        with self._lock:
            begun = self._begun.get(seq)
            if begun is not None:
                begun.missing &= ~who
                begun.nbytes = max(begun.nbytes, nbytes)
                begun.unkept |= nbytes == 0

    def decided(self, seq: int, *, good: bool, lost: bool = False) -> None:
        """Book the end of a cast. Every rank has been told of it. `lost`: some rank could not have its value again."""
        with self._lock:
            ident = self._again.pop(seq, None)
            if ident is not None and lost:
                self._forget(ident)
            begun = self._begun.pop(seq, None)
            if begun is None:
                return
            self._under_way.discard(begun.ident)
            if good and not begun.unkept and not begun.missing and begun.nbytes <= self._nbytes:
                self._known[begun.ident] = _Known(begun.number, begun.nbytes)
                self._known_nbytes += begun.nbytes
                while self._known_nbytes > self._nbytes or len(self._known) > _MOST_KNOWN:
                    self._forget(next(iter(self._known)))
            elif good:  # others may keep it
                self._drops.append(begun.number)

    def _forget(self, ident: bytes) -> None:
        known = self._known.pop(ident, None)
        if known is not None:
            self._known_nbytes -= known.nbytes
            self._drops.append(known.number)

    def take_drops(self) -> list[int]:
        """Return what the ranks need not keep any more, for the next cast to say."""
        with self._lock:
            taken, self._drops = self._drops[:_MOST_DROPS], self._drops[_MOST_DROPS:]
            return taken

    def put_back(self, drops: list[int]) -> None:
        """The cast that was to say so was not sent."""
        with self._lock:
            self._drops[:0] = drops

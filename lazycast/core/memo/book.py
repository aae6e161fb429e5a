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
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from lazycast.codec.pickling import Encoded
from lazycast.net.members import bits
from lazycast.net.wire import MaterializerRef
from lazycast.options import Memo, exact, shown

_MOST_KNOWN = 1 << 16
#: In one message, so that it stays a header; as many as one cast may bring that are new.
_MOST_DROPS = MOST_ITEMS = 1000


class _Begun(msgspec.Struct, eq=False):
    """A cast whose value, or the results of whose items, are to be remembered."""

    missing: int  # as a set of ranks: see `net.members`
    idents: dict[int, bytes] = msgspec.field(default_factory=dict)  # by number
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
    *,
    item: bool = False,
) -> bytes:
    """Return what names a value, by the user's key; with `item`, the result of a single item.

    Raises: TypeError for what is no key, and what `key` raises.
    """
    assert memo.key is not None
    key = exact(memo.key(payload))
    if type(key) not in (str, int, bytes):
        raise TypeError(f"Memo: key must return a str, int or bytes, got {shown(key)}")
    hashed = _hashed(ref, finish, turns, item=item)
    hashed.update(f"key {type(key).__name__}".encode())
    text = f"{key:x}" if isinstance(key, int) else key  # in decimals an int may have too many digits
    hashed.update(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return bytes(hashed.digest())


def ident_by_bytes(
    encoded: Encoded,
    ref: MaterializerRef | None,
    finish: MaterializerRef | None,
    turns: tuple[int, int] = (0, 0),
    *,
    item: bool = False,
) -> bytes:
    """Return what names a value, by all bytes of its payload; with `item`, the result of a single item."""
    hashed = _hashed(ref, finish, turns, item=item)
    hashed.update(f"bytes {encoded.layout.stream_nbytes} {encoded.layout.frames}".encode())
    for _, part in encoded.parts():
        hashed.update(part)
    return bytes(hashed.digest())


def _hashed(ref: MaterializerRef | None, finish: MaterializerRef | None, turns: tuple[int, int], *, item: bool) -> Any:
    """Begin with the materializer: a name may have stood for several, one after the other (`Shipper.turns`).

    A payload and an item that are the same have other values.
    """
    hashed = hashlib.sha256(f"{turns} {'item ' if item else ''}".encode())
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
        self._again: dict[int, list[bytes]] = {}  # by the number of the cast: what it has again
        self._drops: list[int] = []

    def look(self, ident: bytes, seq: int) -> int:
        """Return the number of what is known, which cast `seq` has again; 0 if it is not known."""
        with self._lock:
            known = self._known.get(ident)
            if known is None:
                return 0
            self._known.move_to_end(ident)
            self._again.setdefault(seq, []).append(ident)
            return known.number

    def lost(self, ident: bytes) -> None:
        """Forget what the root itself does not keep any more."""
        with self._lock:
            self._forget(ident)

    def begin(self, ident: bytes, seq: int) -> int:
        """Return a number under which ranks are to keep what cast `seq` makes; 0 if it is being made already.

        One cast may make several: then ranks keep all of them, or none.
        """
        with self._lock:
            if ident in self._under_way or ident in self._known:
                return 0
            number = next(self._numbers)
            self._begun.setdefault(seq, _Begun(self._ranks)).idents[number] = ident
            self._under_way.add(ident)
            return number

    def reported(self, seq: int, who: int, nbytes: int) -> None:
        """Book that a set of ranks has done its part, and keeps up to so many bytes of it each: 0 if one does not.

        Of several values it is the sum.
        """
        with self._lock:
            begun = self._begun.get(seq)
            if begun is not None:
                begun.missing &= ~who
                begun.nbytes = max(begun.nbytes, nbytes)
                begun.unkept |= nbytes == 0

    def decided(self, seq: int, *, good: bool, lost: bool = False, sizes: Mapping[int, int] | None = None) -> None:
        """Book the end of a cast. Every rank has been told of it.

        Args:
            lost: some rank could not have again what it was to.
            sizes: by number, the bytes that the root keeps: of several values ranks have told the sum alone.
        """
        with self._lock:
            for ident in self._again.pop(seq, ()):
                if lost:
                    self._forget(ident)
            begun = self._begun.pop(seq, None)
            if begun is None:
                return
            self._under_way.difference_update(begun.idents.values())
            if good:
                self._know(begun, sizes or {})

    def _know(self, begun: _Begun, sizes: Mapping[int, int]) -> None:
        kept = not begun.unkept and not begun.missing
        # Some rank may keep more bytes of them than the root.
        more = max(0, begun.nbytes - sum(sizes.get(number, 0) for number in begun.idents))
        more_each = -(-more // len(begun.idents))
        for number, ident in begun.idents.items():
            nbytes = sizes.get(number, 0) + more_each
            if kept and nbytes <= self._nbytes:
                self._known[ident] = _Known(number, nbytes)
                self._known_nbytes += nbytes
            else:  # others may keep it
                self._drops.append(number)
        while self._known_nbytes > self._nbytes or len(self._known) > _MOST_KNOWN:
            self._forget(next(iter(self._known)))

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

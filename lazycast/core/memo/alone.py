"""What a group of one remembers: the book and the store of one rank.

Guarantees: as for larger groups. What cannot be remembered is made again.
"""

from __future__ import annotations

from typing import Any

from lazycast.codec.pickling import Codec
from lazycast.core.memo.book import Book, ident_by_bytes, ident_by_key
from lazycast.core.memo.store import Store
from lazycast.core.performer import Result
from lazycast.core.workers import unforked
from lazycast.materialize.materializers import Shipped
from lazycast.missing import MISSING
from lazycast.options import Memo
from lazycast.tracebacks import describe

_MAX_REASON = 500


class Memory:
    """See the module's text. Thread-safe."""

    def __init__(self, memo: Memo, store: Store, codec: Codec, rank: int) -> None:
        self._memo, self._store, self._codec, self._rank = memo, store, codec, rank
        self._book = Book(memo.nbytes, (rank,))

    def look(
        self, shipped: Shipped, turns: tuple[int, int], payload: object, seq: int, *, readonly: bool
    ) -> tuple[bytes, Any]:
        """Return what names the value of a payload, and the value if it is remembered, or MISSING.

        Raises: whatever the user's key, or encoding the payload, raises.
        """
        with unforked():
            if self._memo.key is not None:
                ident = ident_by_key(self._memo, payload, shipped.ref, shipped.finish, turns)
            else:
                ident = ident_by_bytes(self._codec.encode(payload), shipped.ref, shipped.finish, turns)
            number = self._book.look(ident, seq)
            if not number:
                return ident, MISSING
            try:
                kept = self._store.get(number)
                body = kept.body()
                value = self._codec.decode(body.toreadonly() if readonly else body, kept.layout)
            except Exception as exc:  # no memory, or a value's own code: it is made again
                self._store.unkept = describe(exc)[:_MAX_REASON]
                self._decided(seq, good=False, lost=True)
                return ident, MISSING
        self._decided(seq, good=True)
        return ident, value

    def keep(self, ident: bytes, seq: int, result: Result) -> None:
        """Remember what was made, if that can be."""
        number = self._book.begin(ident, seq)
        if not number:
            return
        nbytes = 0
        if result.failure is None:
            try:
                with unforked():
                    kept = self._store.put(self._codec.encode(result.value))
                self._store.keep(number, kept)
                nbytes = kept.taken_nbytes
            except Exception as exc:  # whatever a value's own code raises
                self._store.unkept = describe(exc)[:_MAX_REASON]
        self._book.reported(seq, 1 << self._rank, nbytes)
        self._decided(seq, good=result.failure is None)

    def _decided(self, seq: int, *, good: bool, lost: bool = False) -> None:
        self._book.decided(seq, good=good, lost=lost)
        for number in self._book.take_drops():
            self._store.drop(number)

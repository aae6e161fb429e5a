"""What a group of one remembers: the book and the store of one rank.

Guarantees: as for larger groups. What cannot be remembered is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lazycast.codec.pickling import Codec
from lazycast.core.memo.book import Book, ident_by_bytes, ident_by_key
from lazycast.core.memo.items import Plan, Planner
from lazycast.core.memo.store import Kept, Store
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
        #: Finds which items of a payload are remembered, if it is to be taken apart.
        self.planner = Planner(memo, self._book, store, codec)
        self.by_key = memo.key is not None

    @unforked
    def look(
        self, shipped: Shipped, turns: tuple[int, int], payload: object, seq: int, *, readonly: bool
    ) -> tuple[bytes, Any]:
        """Return what names the value of a payload, and the value if it is remembered, or MISSING.

        Raises: whatever the user's key, or encoding the payload, raises.
        """
        if self._memo.key is not None:
            ident = ident_by_key(self._memo, payload, shipped.ref, shipped.finish, turns)
        else:
            ident = ident_by_bytes(self._codec.encode(payload), shipped.ref, shipped.finish, turns)
        number = self._book.look(ident, seq)
        if not number:
            return ident, MISSING
        try:
            kept = self._store.get(number)
            value = self._value_of(kept, readonly=readonly)
        except BaseException as exc:  # no memory, or a value's own code: it is made again
            self._store.unkept = describe(exc)[:_MAX_REASON]
            self._decided(seq, good=False, lost=True)
            return ident, MISSING
        self._store.count(kept)
        self._decided(seq, good=True)
        return ident, value

    def keep(self, ident: bytes, seq: int, result: Result, took_s: float) -> None:
        """Remember what was made in so many seconds, if that can be."""
        number = self._book.begin(ident, seq)
        if not number:
            return
        nbytes = 0
        if result.failure is None:
            try:
                kept = self._store.written(self._codec, result.value, took_s)
                self._store.keep(number, kept)
                nbytes = kept.taken_nbytes
            except BaseException as exc:  # whatever a value's own code raises
                self._store.unkept = describe(exc)[:_MAX_REASON]
        self._book.reported(seq, 1 << self._rank, nbytes)
        self._decided(seq, good=result.failure is None)

    @unforked
    def had(self, plan: Plan, seq: int, *, readonly: bool) -> list[Any] | None:
        """Return the results of items that are had again. None: one cannot be; then all are to be made."""
        try:
            had = [self._value_of(kept, readonly=readonly) for kept in plan.had]
        except BaseException as exc:  # as in `look`
            self._store.unkept = describe(exc)[:_MAX_REASON]
            self._decided(seq, good=False, lost=True)
            return None
        self._store.count(*plan.had)
        return had

    def keep_items(self, plan: Plan, seq: int, results: list[Any] | None, took_s: float) -> None:
        """Remember the results of items that are new, if that can be, all made in so many seconds. None: none were."""
        kept: dict[int, Kept] = {}
        if results is not None:
            new = [number for number in plan.numbers if number >= 0]
            try:
                for number, result in zip(new, results, strict=True):
                    if number:
                        kept[number] = self._store.written(self._codec, result, took_s / len(new))
            except BaseException as exc:  # whatever a value's own code raises
                self._store.unkept = describe(exc)[:_MAX_REASON]
                kept.clear()
        for number, one in kept.items():
            self._store.keep(number, one)
        sizes = {number: one.taken_nbytes for number, one in kept.items()}
        self._book.reported(seq, 1 << self._rank, sum(sizes.values()))
        self._decided(seq, good=results is not None, sizes=sizes)

    def _value_of(self, kept: Kept, *, readonly: bool) -> Any:
        body = kept.body()
        return self._codec.decode(body.toreadonly() if readonly else body, kept.layout)

    def _decided(self, seq: int, *, good: bool, lost: bool = False, sizes: Mapping[int, int] | None = None) -> None:
        self._book.decided(seq, good=good, lost=lost, sizes=sizes)
        for number in self._book.take_drops():
            self._store.drop(number)

"""What the root finds of the single items of a payload: which have a result that every rank keeps, and which are new.

Guarantees: the book is written to only when all items have been looked at. What cannot be taken apart is cast whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lazycast.codec.pickling import Codec
from lazycast.core.memo.book import MOST_ITEMS, Book, ident_by_bytes, ident_by_key
from lazycast.core.memo.store import Kept, Store
from lazycast.core.workers import unforked
from lazycast.materialize.each import Each, items_of
from lazycast.net.wire import MaterializerRef
from lazycast.options import Memo


class Plan(NamedTuple):
    """What becomes of each item.

    Attributes:
        numbers: as in `Cast.items`.
        new: the items whose results are to be made.
        had: the results that every rank has again.
    """

    numbers: list[int]
    new: list[Any]
    had: list[Kept]


@unforked
def items_to_plan(each: Each[Any, Any, Any, Any], payload: Any) -> list[Any] | None:
    """Take a payload apart. None: it cannot be, and whoever is to make the value says why; or there are too many."""
    try:
        items = items_of(each, payload)
        count = len(items)  # as whoever makes them counts: going through all may never end
        return [items[index] for index in range(count)] if count <= MOST_ITEMS else None
    except Exception:
        return None


class Planner:
    """See the module's text. Thread-safe."""

    def __init__(self, memo: Memo, book: Book, store: Store, codec: Codec) -> None:
        self._memo, self._book, self._store, self._codec = memo, book, store, codec

    @unforked
    def plan(
        self,
        ref: MaterializerRef | None,
        turns: tuple[int, int],
        items: Sequence[Any] | None,
        seq: int,
    ) -> Plan | None:
        """Look at the items of cast `seq`, in the order of casts.

        None: they cannot be sent one by one, or are none, or too many, or could not be had, as `items` None says.

        Whoever is to make the value then says what is wrong, if anything is.
        Raises: TypeError for a key that is none; whatever the user's key raises.
        """
        if items is None:
            return None
        try:
            idents = [] if self._memo.key is not None else [self._by_bytes(item, ref, turns) for item in items]
        except Exception:
            return None
        if not 0 < len(items) <= MOST_ITEMS:
            return None
        if self._memo.key is not None:
            idents = [ident_by_key(self._memo, item, ref, None, turns, item=True) for item in items]
        plan = Plan([], [], [])
        for item, ident in zip(items, idents, strict=True):
            if (again := self._again(ident, seq)) is not None:
                plan.had.append(again[1])
                plan.numbers.append(-again[0])
            else:
                plan.new.append(item)
                plan.numbers.append(self._book.begin(ident, seq))
        return plan

    def _by_bytes(self, item: Any, ref: MaterializerRef | None, turns: tuple[int, int]) -> bytes:
        return ident_by_bytes(self._codec.encode(item), ref, None, turns, item=True)

    def _again(self, ident: bytes, seq: int) -> tuple[int, Kept] | None:
        number = self._book.look(ident, seq)
        if not number:
            return None
        try:
            return number, self._store.get(number)
        except KeyError:  # this rank has lost it: it is made as if for the first time
            self._book.lost(ident)
            return None


def numbers_of_new(items: list[int]) -> list[int]:
    """Return which items of a payload are new, given what a cast says of each."""
    return [index for index, number in enumerate(items) if number >= 0]

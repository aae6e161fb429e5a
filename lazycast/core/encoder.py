"""Turns a call of the root into what goes out: a cast, the room that holds its payload, and code that is new.

Guarantees: only the thread that does the engine's work encodes, so casts get their turns in the order they are sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import astuple

from lazycast.codec import pickling
from lazycast.codec.trust import Policy
from lazycast.core.calls import Call
from lazycast.core.memo.book import Book, ident_by_bytes, ident_by_key
from lazycast.core.memo.items import Planner, items_to_plan
from lazycast.core.memo.store import Kept, Store
from lazycast.core.workers import unforked
from lazycast.materialize.each import Each
from lazycast.materialize.materializers import Shipper
from lazycast.materialize.staged import each_of
from lazycast.missing import MISSING
from lazycast.net.host.mesh import INLINE_NBYTES
from lazycast.net.relay import Relay, Room
from lazycast.net.wire import Cast, Code, MaterializerRef
from lazycast.options import OWNED, Memo

#: A cast, the room that holds its body, and the code that is to go before it.
Encoded = tuple[Cast, Room, list[tuple[Code, Room]]]


def laid_out(encoded: pickling.Encoded, relay: Relay, *, host: bool = False) -> Room:
    """Return what is encoded as it goes out, to all ranks or to those of this host. Raises MemoryError."""
    if encoded.nbytes <= INLINE_NBYTES and len(encoded.pieces) == 1 and not encoded.frames:
        return Room(memoryview(encoded.pieces[0]))  # a copy into memory of its own would be for nothing
    room = relay.room(encoded.nbytes, host=host)
    encoded.write_into(room.view)
    return room


class Encoder:
    """See the module's text."""

    def __init__(
        self,
        relay: Relay,
        policy: Policy,
        seqs: Iterator[int],
        *,
        agree: bool,
        memo: Memo | None = None,
        book: Book | None = None,
        store: Store | None = None,
    ) -> None:
        self._relay = relay
        self.codec = policy.codec
        self._encode, self._decode = unforked(policy.codec.encode), unforked(policy.codec.decode)
        self.shipper = Shipper(policy)
        self._seqs = seqs
        self._agree = agree
        self._turn = 0
        self._memo, self._book, self._store = memo, book, store
        self._planner: Planner | None = None
        if memo is not None and book is not None and store is not None:
            self._planner = Planner(memo, book, store, policy.codec)

    def encode(self, call: Call) -> Encoded:
        """Encode a payload, or what takes its place, and name its materializer. Raises whatever user code raises."""
        ref = finish = join = None
        each = False
        codes: list[tuple[Code, Room]] = []
        if call.materialize is not None:
            ref, finish, fresh = astuple(self.shipper.ship(call.materialize, prepared=call.prepared))
            each = call.placement in OWNED and self._is_shared(call)
            if each:
                join, more = self.shipper.ship_join(call.materialize)
                fresh = [*fresh, *more]
            if fresh:
                codes = [self._code(name, code) for name, code in fresh]
        items = self._items(call, ref) if each and call.memo else []
        ident = self._ident_by_key(call, ref, finish) if call.memo and not items else None
        if ident is not None and (again := self._known(call, ident)) is not None:
            return again, Room(memoryview(b"")), codes
        staged = finish is not None and call.prepared
        if call.mark is not None and not call.prepared:
            encoded = pickling.Encoded()  # every rank has its own
        else:
            what = call.hint if call.mark is not None else (call.payload, call.hint)
            encoded = self._encode(what if staged else call.payload)
        keep = 0
        if call.memo and not items and self._book is not None:
            if ident is None:
                ident = ident_by_bytes(encoded, ref, finish, self.shipper.turns(call.materialize, ref, finish))
                if (again := self._known(call, ident)) is not None:
                    return again, Room(memoryview(b"")), codes
            keep = self._book.begin(ident, call.seq)
        if encoded.cut and call.prepared:
            self._cut(call, encoded)
        room = laid_out(encoded, self._relay)
        agree = self._agree and call.placement != "demand"
        layout = encoded.layout
        cast = Cast(
            call.seq,
            call.key,
            call.placement,
            agree,
            ref,
            encoded.nbytes,
            layout.stream_nbytes,
            layout.frames,
            finish=finish,
            turn=self._next_turn() if call.placement == "shard" else 0,
            fingerprint=call.mark,
            sent_s=time.monotonic(),
            origin=call.ask.origin,
            priority=call.priority,
            trace=call.ask.traced.carrier if call.ask.traced is not None else None,
            keep=keep,
            each=each,
            join=join,
            items=items,
        )
        return cast, room, codes

    def _items(self, call: Call, ref: MaterializerRef | None) -> list[int]:
        """Find out which items of a call all ranks remember, and leave the others; return what is to be said of each.

        Nothing, if its items are not remembered one by one.
        """
        each = call.materialize
        if self._planner is None or not isinstance(each, Each):  # a second stage needs the payload
            return []
        items = call.items if self.splits(call) else items_to_plan(each, call.payload)
        plan = self._planner.plan(ref, self.shipper.turns(each, ref, None), items, call.seq)
        if plan is None:
            call.memo = self._memo is not None and self._memo.key is None  # a key is of an item
            return []
        call.payload, call.had = plan.new, plan.had
        if self._store is not None:
            self._store.count(*plan.had)
        return plan.numbers

    def splits(self, call: Call) -> bool:
        """Whether user code, which may take its time, takes the payload of a call apart first: into `call.items`."""
        each = call.materialize
        apart = self._planner is not None and isinstance(each, Each) and each.split is not None
        return apart and call.memo and call.placement in OWNED and self._is_shared(call)

    @staticmethod
    def _is_shared(call: Call) -> bool:
        """Whether several work on the items of a call. A chosen placement is chosen by what one rank needs for all."""
        if call.measured or call.mark is not None or call.prepared:
            return False
        return each_of(call.materialize) is not None

    @unforked
    def _ident_by_key(self, call: Call, ref: MaterializerRef | None, finish: MaterializerRef | None) -> bytes | None:
        """What names the value of a call, if the user says what does."""
        if self._memo is None or self._memo.key is None:
            return None
        turns = self.shipper.turns(call.materialize, ref, finish)
        return ident_by_key(self._memo, call.payload, ref, finish, turns)

    def _known(self, call: Call, ident: bytes) -> Cast | None:
        """What to say in place of casting what every rank remembers."""
        assert self._book is not None
        number = self._book.look(ident, call.seq)
        if not number:
            return None
        return Cast(
            call.seq,
            call.key,
            call.placement,
            True,
            None,
            sent_s=time.monotonic(),
            origin=call.ask.origin,
            priority=call.priority,
            trace=call.ask.traced.carrier if call.ask.traced is not None else None,
            again=number,
        )

    def _cut(self, call: Call, encoded: pickling.Encoded) -> None:
        """What the root has made is more than what the others get of it: it keeps what they get."""
        made = pickling.as_it_arrives(encoded, self.codec)
        if call.hint is MISSING:
            call.payload = made
        else:
            call.hint = made if call.mark is not None else made[1]

    def check(self, cast: Cast, room: Room) -> None:
        """Make sure that what was encoded can be rebuilt, here at least. Raises whatever decoding raises."""
        if not cast.stream_nbytes:
            return
        self._decode(room.view, pickling.Layout(cast.stream_nbytes, cast.frames))

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn - 1

    def code(self, ident: str) -> tuple[Code, Room]:
        """The code of a materializer, by its digest. Raises `CannotEncode` where it is not known, or `MemoryError`."""
        return self._code(ident, self.shipper.code_for(ident))

    def again(self, ident: str, kept: Kept) -> tuple[Code, Room]:
        """A value for a rank that was to have it again, and has lost it. Raises `MemoryError`."""
        room = self._relay.room(kept.nbytes)
        pickling.copy(room.view[: kept.nbytes], kept.body())
        layout = kept.layout
        code = Code(next(self._seqs), ident, kept.nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames)
        return code, room

    def items_again(self, ident: str, kept: Sequence[Kept]) -> tuple[Code, Room]:
        """The same of the results of items: a list of how each is laid out, and its bytes. Raises `MemoryError`."""
        bodies = [np.frombuffer(one.body(), np.uint8) for one in kept]
        layouts = [(one.layout.stream_nbytes, one.layout.frames) for one in kept]
        encoded = self._encode([(*layout, body) for layout, body in zip(layouts, bodies, strict=True)])
        layout = encoded.layout
        code = Code(next(self._seqs), ident, encoded.nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames)
        return code, laid_out(encoded, self._relay)

    def _code(self, ident: str, code: bytes) -> tuple[Code, Room]:
        room = self._relay.room(len(code))
        pickling.copy(room.view, code)
        return Code(next(self._seqs), ident, len(code)), room

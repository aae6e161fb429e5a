"""What a rank does with values that are to be remembered: write down, keep or let go, and have again.

Guarantees: a value is written down before anybody can change it, and kept only if every rank has it. A value that
cannot be written down costs time only: it is made again. One that cannot be had again the root sends, or casts
anew if it has none itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from lazycast.codec.pickling import Codec
from lazycast.core.arrival import Arrival
from lazycast.core.memo.store import Kept, Store
from lazycast.core.performer import Result
from lazycast.net.wire import Cast, Verdict
from lazycast.tracebacks import describe

_MAX_REASON = 500  # characters


class Keeping:
    """See the module's text. Without the engine's lock, but for `settle`."""

    def __init__(self, store: Store, codec: Codec) -> None:
        self.store, self._codec = store, codec

    def put_down(self, arrival: Arrival, result: Result) -> None:
        """Write down a value that is to be remembered, before anybody can change it."""
        if result.failure is None and arrival.wanted and not arrival.over:
            self._put_down(arrival, 1, [arrival.message.keep], [result.value])

    def put_down_items(self, arrival: Arrival, results: Sequence[Any]) -> None:
        """The same with the results of items, given those of all that are new."""
        numbers = [number for number in arrival.message.items if number >= 0]
        new = [(number, result) for number, result in zip(numbers, results, strict=True) if number]
        if new and arrival.wanted and not arrival.over:
            self._put_down(arrival, len(numbers), *zip(*new, strict=True))

    def _put_down(self, arrival: Arrival, made: int, numbers: Sequence[int], values: Sequence[Any]) -> None:
        """`made`: how many were made by now, these among them."""
        took_s = (time.monotonic() - (arrival.arrived_s or arrival.message.sent_s)) / made  # on the root none arrives
        try:
            kept = [self.store.written(self._codec, value, took_s) for value in values]
        except BaseException as exc:  # whatever a value's own code raises; it is made again the next time
            self.store.unkept = describe(exc)[:_MAX_REASON]
        else:
            arrival.kept = list(zip(numbers, kept, strict=True))

    def settle(self, arrival: Arrival, verdict: Verdict) -> dict[int, int]:
        """With the lock held: keep what was written down of a cast, if every rank has it, or let go of it.

        Returns its bytes, by number.
        """
        kept, arrival.kept = arrival.kept, []
        for number, one in kept if verdict.failure is None else ():
            self.store.keep(number, one)
        return {number: one.taken_nbytes for number, one in kept}

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget values."""
        for number in numbers:
            self.store.drop(number)

    def items_again(self, message: Cast) -> list[Kept] | None:
        """Return the results of items that are had again, before what is dropped goes. None: not all are here."""
        again = [-number for number in message.items if number < 0]
        try:
            had = [self.store.get(number) for number in again]
        except KeyError as exc:
            self.store.unkept = describe(exc)[:_MAX_REASON]
            self.store.count(hits=len(again))
            return None
        self.store.count(*had)
        return had

    def had_again(self, message: Cast, body: memoryview) -> tuple[Cast, memoryview, Kept | None]:
        """Do what the root says of what is remembered; return a cast as if what is had again had come with it.

        And what was kept, if that was found.
        """
        store = self.store
        found = None
        try:
            if message.again:
                kept = store.get(message.again)
                found = kept.body(), kept
                store.count(kept)
        except (KeyError, MemoryError) as exc:
            store.unkept = describe(exc)[:_MAX_REASON]
        self.drop(message.drop)
        if not message.again:
            return message, body, None
        if found is None:  # it counts as a body that could not be taken
            return msgspec.structs.replace(message, nbytes=1), memoryview(b""), None
        body, kept = found
        layout = kept.layout
        message = msgspec.structs.replace(
            message, nbytes=kept.nbytes, stream_nbytes=layout.stream_nbytes, frames=layout.frames
        )
        return message, body, kept

"""What this rank reads of the others on its host, and of itself: their slots as memory of its own.

Guarantees:

* A view is writable and private: a write copies the page for this rank alone.
* When the last object made on a view is gone, this rank's copies of its pages are dropped, and then its flag in the
  writer's ledger: in this order, or the next message there would show what was written to the old one.
* One persistent mapping per writer; a view costs no descriptor.
* Descriptors, and places in memory, are checked before they are used: a writer that lies loses its connection, and
  cannot make this process read behind the end of a mapping.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from lazycast.codec.pickling import copy
from lazycast.net.host.arena import CAPACITY, Slot, ledger_of
from lazycast.net.host.memory import PAGE, Region, check_foreign, pages


class _Writer(NamedTuple):
    arena: Region
    ledger: np.ndarray


class Views:
    """One rank's view of its host. Thread-safe.

    Args:
        ranks: the ranks of the host, in order; this one included.
        me: this rank.
    """

    def __init__(self, ranks: list[int], me: int) -> None:
        self._ranks, self._me = ranks, ranks.index(me)
        self._writers: dict[int, _Writer] = {}
        self._lock = threading.Lock()

    def knows(self, writer: int) -> bool:
        """Whether a writer's memory is mapped here."""
        return writer in self._writers

    def learn(self, writer: int, arena_fd: int, ledger_fd: int, arena_nbytes: int) -> None:
        """Map a writer's memory. The descriptors stay the caller's. Raises ValueError if they are not what they should.

        MemoryError if there is no room for the mappings.
        """
        ledger_nbytes = pages(CAPACITY * len(self._ranks))
        check_foreign(arena_fd, arena_nbytes)
        check_foreign(ledger_fd, ledger_nbytes)
        arena = Region(arena_fd, arena_nbytes, private=True)
        ledger = ledger_of(Region(ledger_fd, ledger_nbytes), len(self._ranks))
        with self._lock:
            self._writers[writer] = _Writer(arena, ledger)

    def close(self) -> None:
        """Let go of all mappings: from here on only values that are held keep one."""
        with self._lock:
            self._writers.clear()

    def view(self, writer: int, row: int, offset: int, nbytes: int, segment_fd: int | None = None) -> memoryview:
        """Return a slot as memory of this rank, held until nothing refers to it. The descriptor stays the caller's."""
        if segment_fd is not None:
            check_foreign(segment_fd, pages(nbytes))
        known = self._writer(writer, row, offset, nbytes, segment=segment_fd is not None)
        region = known.arena if segment_fd is None else Region(segment_fd, pages(nbytes), private=True)
        ledger, me = known.ledger, self._me

        def released() -> None:
            region.forget(offset, pages(nbytes))
            ledger[row, me] = 0

        return region.hold(offset, nbytes, released)

    def _writer(self, writer: int, row: int, offset: int, nbytes: int, *, segment: bool = False) -> _Writer:
        """Return a writer, if what it says of a slot can be true."""
        known = self._writers.get(writer)
        if known is None:
            raise ValueError(f"rank {writer} names a slot of memory that it has not brought")
        end = 0 if segment else known.arena.nbytes - pages(nbytes)
        if not nbytes or row >= CAPACITY or offset > end or offset % PAGE:
            raise ValueError(f"rank {writer} names a slot that cannot be: {nbytes} bytes at {offset}, row {row}")
        return known

    def copy_into(self, body: memoryview, writer: int, row: int, offset: int) -> None:
        """Copy a slot of a writer's arena that was shared with this rank, and let go of it."""
        known = self._writer(writer, row, offset, body.nbytes)
        copy(body, known.arena.whole[offset : offset + body.nbytes])  # looking at a page makes no copy of it to drop
        known.ledger[row, self._me] = 0

    def offset_of(self, address: int, nbytes: int) -> int | None:
        """Return where in this rank's own arena bytes lie that it looks at as a value; None if they do not."""
        known = self._writers.get(self._ranks[self._me])
        if known is None or not known.arena.address <= address <= known.arena.address + known.arena.nbytes - nbytes:
            return None
        return address - known.arena.address

    def own(self, slot: Slot) -> memoryview:
        """Return a slot that this rank wrote as a value of its own; it keeps the writer's hold on the slot."""
        if slot.handed_over:
            raise ValueError("a slot with a segment of its own has been handed over: there is nothing to look at here")
        if slot.segment_fd is None:
            region = self._writers[self._ranks[self._me]].arena
        else:
            region = Region(slot.segment_fd, pages(slot.nbytes), private=True)
        writer = [slot.view]

        def released() -> None:
            region.forget(slot.offset, pages(slot.nbytes))
            writer.clear()

        return region.hold(slot.offset, slot.nbytes, released)

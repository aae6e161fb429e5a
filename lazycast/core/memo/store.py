"""What a rank remembers: values as they are encoded, in memory of its own, each under the root's number for it.

Guarantees:

* Whoever gets a value again has it for himself: a private view of the memory, without a copy. What is written to it
  nobody else sees.
* The place of a value that was dropped is used again only when nobody holds anything made from it.
* Memory is taken as it is used, and kept for the next value.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import NamedTuple

from lazycast.codec.pickling import Codec, Encoded, Layout, allocate, copy
from lazycast.core.workers import unforked
from lazycast.net.host import headroom
from lazycast.net.host.memory import Region, create, pages
from lazycast.net.host.slots import FreeSpace

#: How much address space there is for what is kept, a multiple; memory is taken from the start on, as it is used.
_ROOM = 4
#: Values below this are copied.
_COPY_NBYTES = 64 << 10


class Remembered(NamedTuple):
    """How much is kept, how often something was had again, and how long making that had taken (seconds)."""

    values: int = 0
    nbytes: int = 0
    hits: int = 0
    saved_s: float = 0.0


NOTHING = Remembered()


class Kept:
    """One value. `took_s` is how long it took to make."""

    def __init__(self, store: Store, offset: int, nbytes: int, layout: Layout, took_s: float) -> None:
        self._store, self._offset, self.took_s = store, offset, took_s
        self.holds = 0  # how often its memory was handed out
        self._ended: deque[None] = deque()  # and how often that has come to an end
        self.nbytes, self.layout = nbytes, layout

    @property
    def taken_nbytes(self) -> int:
        """The memory that it takes."""
        return pages(self.nbytes)

    def body(self) -> memoryview:
        """Return its bytes as memory of the caller's own. Raises MemoryError."""
        return self._store.body_of(self, self._offset)

    def released(self) -> None:
        """What was made from it, once, is gone. Not said of what was held when this process forked."""
        self._ended.append(None)  # one step: the collector may run this anywhere

    def __del__(self) -> None:
        if self.holds != len(self._ended):
            return  # a forked child may still look at it: its place is not used again
        self._store.freed.append((self._offset, self.taken_nbytes))  # one step: the collector may run this anywhere


class Store:
    """See the module's text. Thread-safe.

    Args:
        nbytes: how much is kept. Besides there is what is being written down, and what was dropped and is still held.
        copy_all: whether values are wanted on the heap.
    """

    def __init__(self, nbytes: int, *, copy_all: bool = False) -> None:
        self._size = _ROOM * pages(nbytes)
        self._copy_all = copy_all
        self._lock = threading.RLock()  # a finalizer may look in the middle
        self._kept: dict[int, Kept] = {}
        self._free = FreeSpace(self._size)
        self.freed: deque[tuple[int, int]] = deque()
        self._fd: int | None = None
        self._closed = False
        self._hits, self._saved_s = 0, 0.0
        self.unkept: str | None = None  # why a value could not be kept, last

    @unforked
    def written(self, codec: Codec, value: object, took_s: float) -> Kept:
        """Write down a value that took so long to make, and make sure that it can be read.

        Raises: MemoryError, CannotEncode, and whatever the value's own code raises.
        """
        encoded = codec.encode(value)
        kept = self.put(encoded, took_s)
        body = kept.body()
        if not codec.is_plain(body, kept.layout):
            codec.decode(body, kept.layout)
        return kept

    def put(self, encoded: Encoded, took_s: float) -> Kept:
        """Write down a value that took so long to make; it is kept once it has a number. Raises MemoryError."""
        size = pages(encoded.nbytes)
        with self._lock:
            if self._closed:
                raise MemoryError("the object is closed")
            if self._fd is None:
                self._take_memory()
            while self.freed:
                self._free.give(*self.freed.popleft())
            headroom.check(size)
            offset = self._free.take(size)
            if offset is None:
                raise MemoryError(f"no room for {size} bytes of {self._size}: values that were dropped are still held")
            kept = Kept(self, offset, encoded.nbytes, encoded.layout, took_s)
            region = self._region  # `close` may let go of it meanwhile
        encoded.write_into(region.whole[offset : offset + encoded.nbytes])
        return kept

    def _take_memory(self) -> None:
        fd = create(self._size)
        try:
            self._region = Region(fd, self._size)
        except BaseException:  # there may be no address space for it
            os.close(fd)
            raise
        self._fd = fd

    def keep(self, number: int, kept: Kept) -> None:
        """Give a value its number."""
        with self._lock:
            if not self._closed:
                self._kept[number] = kept

    def get(self, number: int) -> Kept:
        """Return a value. Raises KeyError."""
        with self._lock:
            return self._kept[number]

    def count(self, *kept: Kept, hits: int | None = None) -> None:
        """Count what was had again; `hits`, where the root sends some of it."""
        with self._lock:
            self._hits += len(kept) if hits is None else hits
            self._saved_s += sum(one.took_s for one in kept)

    def drop(self, number: int) -> None:
        """Forget a value, if it is here."""
        with self._lock:
            self._kept.pop(number, None)

    def body_of(self, kept: Kept, offset: int) -> memoryview:
        """Return the bytes of a value as memory of its own."""
        nbytes = kept.nbytes
        with self._lock:
            if self._closed or self._fd is None:
                raise MemoryError("the object is closed")
            if nbytes >= _COPY_NBYTES and not self._copy_all:
                region = Region(self._fd, pages(nbytes), private=True, start=offset)
                kept.holds += 1
                return region.hold(0, nbytes, kept.released)
            mapped = self._region
        body = allocate(nbytes)
        copy(body, mapped.whole[offset : offset + nbytes])
        return body

    def figures(self) -> Remembered:
        """Return what is kept, and what that was good for. Takes no lock."""
        kept = list(self._kept.values())
        return Remembered(len(kept), sum(one.taken_nbytes for one in kept), self._hits, self._saved_s)

    def line(self) -> str:
        """Return a line for a dump. Takes no lock."""
        values, nbytes, hits, _ = self.figures()
        why = f"; the last that could not be kept: {self.unkept}" if self.unkept is not None else ""
        return f"{values} values kept here, {nbytes} bytes, {hits} had again{why}"

    def close(self) -> None:
        """Forget all values. What was made of them lives on."""
        with self._lock:
            self._closed = True
            self._kept.clear()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
                del self._region  # who keeps a closed object must not keep its memory

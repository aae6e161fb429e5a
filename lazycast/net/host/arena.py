"""What this rank has written for the others on its host: one warm arena, and segments for what does not fit.

Guarantees:

* A slot is reused only after every reader, and the writer itself, have let go of it. Each has one byte per slot in the
  ledger, a shared memory of its own: letting go is one store, without a message.
* Memory is created on first use, and its pages are kept and reused. A fresh page costs far more than the copy into it
  (64 MiB of them 55 to 150 ms, the copy 5).
* Readers cannot map an arena for shared writing; what they change they change for themselves.
* What is touched for the first time is checked against the cgroup's limit before.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazycast.net.host import headroom
from lazycast.net.host.memory import Region, create, pages, seal_against_writers
from lazycast.net.host.slots import FreeSpace

#: How many slots a rank can have in use, held ones included.
CAPACITY = 1 << 14

_STEP_NBYTES = 16 << 20
_BLOCK_NBYTES = 512  # of `st_blocks`, whatever the file system's own are
_LOOK_S = 0.2  # how long whoever looks waits for the lock: it may be a signal handler in the thread that holds it
_FEW = 24  # slots: so many are looked at one by one in the time that NumPy takes for any number, 10 µs


@dataclass
class Slot:
    """Room for one message. `view` is the writer's; the slot is its own as long as that lives."""

    row: int
    offset: int
    nbytes: int
    view: memoryview
    segment_fd: int | None  # it has a segment of its own, to be handed over with the message
    handed_over: bool = False  # with that


@dataclass
class _Extent:
    offset: int
    nbytes: int
    segment: Region | None
    fd: int | None = None  # of the segment, until it is handed over


@contextlib.contextmanager
def _descriptors(*sizes: int) -> Iterator[list[int]]:
    """Create memories; close what there is, and raise MemoryError, if one of them or what follows fails."""
    fds: list[int] = []
    try:
        fds += (create(size) for size in sizes)
        yield fds
    except BaseException as exc:
        for fd in fds:
            os.close(fd)
        if isinstance(exc, OSError):
            raise MemoryError(f"cannot make {sum(sizes)} bytes of shared memory: {exc}") from exc
        raise


def ledger_of(region: Region, ranks: int) -> np.ndarray:
    """Return a ledger as an array of (slot, index of the rank in the host): 1 where that rank holds the slot."""
    flags = np.frombuffer(region.hold(0, CAPACITY * ranks, lambda: None), np.uint8)
    return flags.reshape(CAPACITY, ranks)


class Arena:
    """One rank's shared memory. Thread-safe.

    Args:
        ranks: the ranks of the host, in order; this one included.
        me: this rank.
        nbytes: the arena's size, and the most that segments may take besides.
    """

    def __init__(self, ranks: list[int], me: int, nbytes: int) -> None:
        self._ranks, self._me = ranks, ranks.index(me)
        self._index = {rank: index for index, rank in enumerate(ranks)}
        self.nbytes = pages(nbytes)
        self._lock = threading.RLock()  # see `_look`
        self._extents: dict[int, _Extent] = {}
        self._rows = list(range(CAPACITY - 1, -1, -1))
        self._free = FreeSpace(self.nbytes)
        self._touched = 0
        self._segments_nbytes = 0
        self._fds: tuple[int, int] | None = None
        self._closed = False

    def _create(self) -> None:
        ledger_nbytes = pages(CAPACITY * len(self._ranks))
        with _descriptors(self.nbytes, ledger_nbytes) as (arena_fd, ledger_fd):
            region = Region(arena_fd, self.nbytes)
            seal_against_writers(arena_fd)
            self._ledger = ledger_of(Region(ledger_fd, ledger_nbytes), len(self._ranks))
            self._flags = self._ledger.reshape(-1).data
        self._region, self._fds = region, (arena_fd, ledger_fd)

    def allocate(self, nbytes: int) -> Slot:
        """Return room for `nbytes` > 0, held by this rank until its `view` is gone.

        Raises: MemoryError naming the holders, or the cgroup's limit, or because it is closed.
        """
        size = pages(nbytes)
        with self._lock:
            if self._closed:  # a worker was about to share its value meanwhile
                raise MemoryError("the arena is closed")
            if self._fds is None:
                self._create()
            self._reclaim()
            if not self._rows:
                raise MemoryError(f"all {CAPACITY} slots are in use: {self._holders()}")
            offset = self._free.take(size)
            if offset is None:
                segment, fd = self._segment(size)
                extent, region, offset = _Extent(0, size, segment, fd), segment, 0
            else:
                fd = None
                extent, region = _Extent(offset, size, None), self._region
                if offset + size > self._touched:
                    self._touch(offset, size)
            row = self._rows.pop()
            self._extents[row] = extent
            self._ledger[row, self._me] = 1
        return Slot(row, offset, nbytes, region.hold(offset, nbytes, lambda: self._let_go(row)), fd)

    def _touch(self, offset: int, size: int) -> None:
        """Take pages into use for the first time, some more than asked for: looking at the limits takes 0.8 ms."""
        end = offset + size
        for target in (min(self.nbytes, end + _STEP_NBYTES), end):
            try:
                headroom.check(target - self._touched)
            except MemoryError:
                if target == end:
                    self._free.give(offset, size)
                    raise
            else:
                self._touched = target
                return

    def _segment(self, size: int) -> tuple[Region, int]:
        if self._segments_nbytes and self._segments_nbytes + size > self.nbytes:
            raise MemoryError(
                f"no room for {size} bytes: the arena of {self.nbytes} bytes and as much in segments of their own are "
                f"taken by values that are held: {self._holders()}; drop values, or copy what you keep, or raise "
                "arena_nbytes"
            )
        headroom.check(size)
        with _descriptors(size) as (fd,):
            segment = Region(fd, size)
            seal_against_writers(fd)
        self._segments_nbytes += size
        return segment, fd

    @property
    def fds(self) -> tuple[int, int]:
        """The descriptors of the arena and its ledger, for readers."""
        assert self._fds is not None
        return self._fds

    def offset_of(self, address: int, nbytes: int) -> int | None:
        """Return where in the arena bytes lie that were written there; None if they do not."""
        region: Region | None = getattr(self, "_region", None)
        if region is None or not region.address <= address <= region.address + region.nbytes - nbytes:
            return None
        return address - region.address

    def share(self, slot: Slot, readers: list[int]) -> None:
        """Book that `readers` hold a slot, before the message goes to them."""
        flags = self._ledger[slot.row]
        for rank in readers:
            flags[self._index[rank]] = 1

    def hand_over(self, slot: Slot) -> int | None:
        """Return the descriptor of a segment, which is the caller's from now on; None for a slot of the arena."""
        if slot.segment_fd is None:
            return None
        slot.segment_fd, slot.handed_over = None, True
        with self._lock:
            extent = self._extents.get(slot.row)  # none once this rank has closed: then the descriptor is closed too
            if extent is None:
                return None
            fd, extent.fd = extent.fd, None
            return fd

    def take_back(self, row: int, reader: int) -> None:
        """Book that a reader holds nothing of a slot, since it could not take it. Raises ValueError for no slot."""
        if row >= CAPACITY or not hasattr(self, "_ledger"):
            raise ValueError(f"rank {reader} gives back row {row}, which it cannot have")
        self._ledger[row, self._index[reader]] = 0

    def _let_go(self, row: int) -> None:
        self._ledger[row, self._me] = 0

    def _reclaim(self) -> None:
        """With the lock held: free what nobody holds."""
        if not self._extents:
            return
        for row in self._unheld():
            extent = self._extents.pop(row)
            if extent.segment is None:
                self._free.give(extent.offset, extent.nbytes)
            else:
                self._segments_nbytes -= extent.nbytes
                if extent.fd is not None:  # it was never shared
                    os.close(extent.fd)
            self._rows.append(row)

    @contextlib.contextmanager
    def _look(self) -> Iterator[None]:
        """Hold the lock, and free what nobody holds; not in the middle of a change, where a finalizer may look."""
        changing = self._lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition does
        with self._lock:
            if self._fds is not None and not changing:
                self._reclaim()
            yield

    def _unheld(self) -> list[int]:
        if len(self._extents) <= _FEW:
            ranks, flags = len(self._ranks), self._flags
            return [row for row in self._extents if 1 not in flags[row * ranks : (row + 1) * ranks]]
        rows = np.fromiter(self._extents, np.intp, len(self._extents))
        unheld: list[int] = rows[~self._ledger[rows].any(axis=1)].tolist()
        return unheld

    def _holders(self) -> str:
        """With the lock held: say who holds how much."""
        said = []
        for index, rank in enumerate(self._ranks):
            held = [extent.nbytes for row, extent in self._extents.items() if self._ledger[row, index]]
            if held:
                said.append(f"rank {rank} holds {len(held)} values, {sum(held)} bytes")
        return "; ".join(said) or "nobody"

    def leases(self) -> list[str] | None:
        """Return a line for each slot that somebody holds: where, how large, and who. None if it is locked just now."""
        changing = self._lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition does
        if not self._lock.acquire(timeout=_LOOK_S):
            return None
        try:
            if self._fds is None:
                return []
            if not changing:
                self._reclaim()
            return [self._lease(row, extent) for row, extent in sorted(self._extents.items())]
        finally:
            self._lock.release()

    def _lease(self, row: int, extent: _Extent) -> str:
        holders = [str(rank) for index, rank in enumerate(self._ranks) if self._ledger[row, index]]
        where = f"at {extent.offset}" if extent.segment is None else "in a segment of its own"
        return f"slot {row}: {extent.nbytes} bytes {where}, held by rank {', '.join(holders)}"

    def in_use(self) -> tuple[int, int]:
        """Return slots and bytes that somebody holds."""
        with self._look():
            return len(self._extents), sum(extent.nbytes for extent in self._extents.values())

    def taken_nbytes(self) -> int:
        """Return the memory that the arena has taken so far, and its segments take: what is free again stays warm."""
        with self._look():
            if self._fds is None:
                return 0
            return os.fstat(self._fds[0]).st_blocks * _BLOCK_NBYTES + self._segments_nbytes

    def close(self) -> None:
        """Close the descriptors and let go of the mappings. The memory itself goes with the last value on any rank."""
        with self._lock:
            fds, self._fds, self._closed = self._fds, None, True
            unshared = [extent.fd for extent in self._extents.values() if extent.fd is not None]
            for fd in (*(fds or ()), *unshared):
                os.close(fd)
            self._extents.clear()
            if fds is not None:  # who keeps a closed object must not keep its memory
                del self._region
                self._ledger = np.zeros_like(self._ledger)  # for values that end later
                self._flags = self._ledger.reshape(-1).data

"""An arena and its readers, in one process: places, holds, segments, limits and seals."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from lazycast.net.host import arena as arena_module
from lazycast.net.host import headroom
from lazycast.net.host.arena import CAPACITY, Arena, Slot
from lazycast.net.host.memory import PAGE, Region, create, pages
from lazycast.net.host.views import Views
from tests.locking import waits_for

RANKS = [3, 5, 8]
ME, READER, OTHER = 5, 3, 8


def handed_over(arena: Arena, slot: Slot) -> None:
    """Do as whoever has sent a slot does."""
    fd = arena.hand_over(slot)
    if fd is not None:
        os.close(fd)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(RANKS, ME, 8 * PAGE)
    yield made
    made.close()


def reader(arena: Arena, rank: int = READER) -> Views:
    views = Views(RANKS, rank)
    views.learn(ME, *arena.fds, arena.nbytes)
    return views


def written(arena: Arena, nbytes: int, fill: int) -> Slot:
    slot = arena.allocate(nbytes)
    slot.view[:] = bytes([fill]) * nbytes
    return slot


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:lazycast" in line for line in maps)


# Places and holds


def test_nothing_is_made_before_the_first_message() -> None:
    before = os.listdir("/proc/self/fd")
    arena = Arena(RANKS, ME, 1 << 40)
    assert arena.in_use() == (0, 0)
    assert os.listdir("/proc/self/fd") == before
    arena.close()
    arena.close()


def test_all_that_changes_an_arena_waits_for_its_lock(arena: Arena) -> None:
    slot = arena.allocate(9 * PAGE)
    assert slot.segment_fd is not None
    for call in (lambda: arena.allocate(1), arena.in_use, lambda: handed_over(arena, slot), arena.close):
        assert waits_for(arena._lock, call)


def test_a_slot_is_whole_pages_of_the_size_that_was_asked_for(arena: Arena) -> None:
    first, second = arena.allocate(1), arena.allocate(PAGE + 1)
    assert (first.offset, first.nbytes, first.view.nbytes, first.segment_fd) == (0, 1, 1, None)
    assert (second.offset, second.nbytes, second.view.nbytes) == (PAGE, PAGE + 1, PAGE + 1)
    assert not first.view.readonly
    assert arena.in_use() == (2, 3 * PAGE)


def test_the_arena_takes_what_was_written_to_at_most_and_keeps_it(arena: Arena) -> None:
    assert arena.taken_nbytes() == 0
    slots = [written(arena, 2 * PAGE, 1), written(arena, PAGE, 2)]
    assert arena.taken_nbytes() == 3 * PAGE
    slots.clear()
    again = written(arena, 3 * PAGE, 3)
    assert arena.taken_nbytes() == 3 * PAGE
    beside = arena.allocate(6 * PAGE)  # does not fit
    assert arena.taken_nbytes() == 9 * PAGE
    handed_over(arena, beside)
    del beside, again
    assert arena.taken_nbytes() == 3 * PAGE


def test_the_writer_holds_its_slot_and_the_lowest_place_is_reused(arena: Arena) -> None:
    first, second = arena.allocate(PAGE), arena.allocate(PAGE)
    assert arena.allocate(1).offset == 2 * PAGE  # and is dropped at once
    assert arena.allocate(1).offset == 2 * PAGE
    del first
    assert arena.allocate(2 * PAGE).offset == 2 * PAGE  # the lowest place is too small
    assert arena.allocate(PAGE).offset == 0
    assert second.offset == PAGE
    assert arena.in_use() == (1, PAGE)


def test_readers_keep_a_slot_until_their_last_view_is_gone(arena: Arena) -> None:
    slot = written(arena, 2 * PAGE, 7)
    arena.share(slot, [READER, OTHER])
    one = reader(arena, READER).view(ME, slot.row, slot.offset, slot.nbytes)
    two = reader(arena, OTHER).view(ME, slot.row, slot.offset, slot.nbytes)
    del slot
    assert arena.in_use() == (1, 2 * PAGE)
    assert arena.allocate(1).offset == 2 * PAGE
    array = np.frombuffer(one, np.uint8)[17:18][:]
    part = memoryview(two)[5:6]
    del one, two
    assert arena.in_use() == (1, 2 * PAGE)
    assert (array[0], part[0]) == (7, 7)
    del array
    assert arena.in_use() == (1, 2 * PAGE)
    del part
    assert arena.in_use() == (0, 0)
    assert arena.allocate(1).offset == 0


def test_a_reader_that_has_not_looked_yet_holds_too(arena: Arena) -> None:
    slot = written(arena, PAGE, 1)
    arena.share(slot, [READER])
    row, offset = slot.row, slot.offset
    del slot
    assert arena.allocate(PAGE).offset == PAGE
    view = reader(arena).view(ME, row, offset, PAGE)
    assert bytes(view) == b"\1" * PAGE
    del view
    assert arena.in_use() == (0, 0)


def test_what_a_reader_writes_is_its_own_and_gone_with_its_view(arena: Arena) -> None:
    one, two = reader_after_first(arena, READER), reader_after_first(arena, OTHER)
    for fill in (1, 2, 3):  # in the same place each time
        slot = written(arena, 2 * PAGE, fill)
        assert slot.offset == 0
        arena.share(slot, [READER, OTHER])
        mine = one.view(ME, slot.row, slot.offset, slot.nbytes)
        assert bytes(mine) == bytes([fill]) * 2 * PAGE
        mine[: PAGE + 3] = b"\xff" * (PAGE + 3)
        others = two.view(ME, slot.row, slot.offset, slot.nbytes)
        assert bytes(others) == bytes(slot.view) == bytes([fill]) * 2 * PAGE
        del mine, others, slot


def reader_after_first(arena: Arena, rank: int) -> Views:
    arena.allocate(1)
    return reader(arena, rank)


def test_the_writers_own_value_is_private_and_keeps_its_slot(arena: Arena) -> None:
    slot = written(arena, PAGE, 4)
    views = reader(arena, ME)
    mine = views.own(slot)
    mine[:] = b"\xee" * PAGE
    assert bytes(slot.view) == b"\4" * PAGE
    del slot
    assert arena.in_use() == (1, PAGE)
    del mine
    assert arena.in_use() == (0, 0)
    again = written(arena, PAGE, 5)
    assert again.offset == 0
    assert bytes(views.own(again)) == b"\5" * PAGE


def test_what_is_copied_frees_its_slot_and_shows_what_the_writer_put_there(arena: Arena) -> None:
    views = reader_after_first(arena, READER)
    for fill in (1, 2, 3):  # in the same place each time, where this rank has also written
        slot = written(arena, PAGE + 5, fill)
        arena.share(slot, [READER])
        body = memoryview(bytearray(PAGE + 5))
        views.copy_into(body, ME, slot.row, slot.offset)
        body[0] = 0xFF
        assert bytes(slot.view) == bytes([fill]) * (PAGE + 5)
        assert bytes(body) == b"\xff" + bytes([fill]) * (PAGE + 4)
        del slot
        assert arena.in_use() == (0, 0)
        slot = written(arena, PAGE + 5, 9)
        arena.share(slot, [READER])
        views.view(ME, slot.row, slot.offset, slot.nbytes)[:] = b"\xee" * (PAGE + 5)
        del slot


@pytest.mark.parametrize("held", [0, 1, arena_module._FEW + 1, 200])
def test_however_many_are_held_the_lowest_free_place_is_found(held: int) -> None:
    arena = Arena(RANKS, ME, 1024 * PAGE)
    kept = {n: arena.allocate(PAGE) for n in range(held + 1)}
    assert [slot.offset for slot in kept.values()] == [n * PAGE for n in range(held + 1)]
    for n in (held, held // 2, 0):
        arena.share(kept[n], [READER])
        view = reader(arena).view(ME, kept[n].row, kept[n].offset, PAGE)
        del kept[n]
        assert arena.allocate(PAGE).offset == (held + 1) * PAGE, "its reader holds it"
        del view
        kept[n] = arena.allocate(PAGE)
        assert kept[n].offset == n * PAGE
    kept.clear()
    assert arena.in_use() == (0, 0)
    arena.close()


AT_EXIT = """
import builtins, sys
import numpy as np
from lazycast.net.host.arena import Arena
from lazycast.net.host.memory import PAGE
from lazycast.net.host.views import Views

class Looks:
    def __init__(self, memory):
        self.array = np.frombuffer(memory, np.uint8)
        self.me = self  # until the last collection
    def __del__(self):
        assert len(set(self.array.tobytes())) == 1

def value(fill, nbytes):
    slot = arena.allocate(nbytes)
    slot.view[:] = bytes([fill]) * nbytes
    arena.share(slot, [1])
    if not views.knows(0):
        views.learn(0, *arena.fds, arena.nbytes)
    return Looks(views.view(0, slot.row, slot.offset, nbytes, slot.segment_fd))

arena, views = Arena([0, 1], 0, 8 * PAGE), Views([0, 1], 1)
builtins.kept = value(1, PAGE)
sys.modules["kept"] = value(2, 20 * PAGE)
kept, zz = value(3, 2 * PAGE), value(4, 3)
"""


def test_values_may_live_to_the_very_end_of_a_process() -> None:
    done = subprocess.run([sys.executable, "-X", "dev", "-c", AT_EXIT], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_value_outlives_the_arena_and_the_reader() -> None:
    arena = Arena(RANKS, ME, 8 * PAGE)
    slot = written(arena, PAGE, 9)
    arena.share(slot, [READER])
    value = np.frombuffer(reader(arena).view(ME, slot.row, slot.offset, slot.nbytes), np.uint8)
    arena.close()
    del slot, arena
    gc.collect()
    assert (value == 9).all()


# Segments


def test_what_does_not_fit_gets_a_segment_that_goes_with_its_last_view(arena: Arena) -> None:
    full = written(arena, 8 * PAGE, 1)
    before = mappings()
    slot = written(arena, 3 * PAGE - 5, 2)
    assert slot.segment_fd is not None
    assert slot.offset == 0
    assert arena.in_use() == (2, 11 * PAGE)
    arena.share(slot, [READER])
    views = reader(arena)
    value = views.view(ME, slot.row, slot.offset, slot.nbytes, slot.segment_fd)
    mine = reader(arena, ME).own(slot)
    handed_over(arena, slot)
    del slot
    assert bytes(value) == bytes(mine) == b"\2" * (3 * PAGE - 5)
    value[:] = b"\3" * (3 * PAGE - 5)
    assert bytes(mine) == b"\2" * (3 * PAGE - 5)
    assert bytes(full.view) == b"\1" * 8 * PAGE
    del value
    assert arena.in_use() == (2, 11 * PAGE)
    del mine
    assert arena.in_use() == (1, 8 * PAGE)
    del views
    gc.collect()
    assert mappings() == before


def test_segments_take_as_much_as_the_arena_and_then_the_holders_are_named(arena: Arena) -> None:
    held = [arena.allocate(4 * PAGE) for _ in range(4)]
    arena.share(held[0], [READER])
    arena.share(held[3], [READER, OTHER])
    with pytest.raises(MemoryError) as caught:
        arena.allocate(PAGE)
    message = str(caught.value)
    assert f"no room for {PAGE} bytes: the arena of {8 * PAGE} bytes" in message
    assert f"rank {READER} holds 2 values, {8 * PAGE} bytes; rank {ME} holds 4 values, {16 * PAGE} bytes" in message
    assert f"rank {OTHER} holds 1 values, {4 * PAGE} bytes" in message
    assert "drop values, or copy what you keep, or raise arena_nbytes" in message
    handed_over(arena, held[2])
    handed_over(arena, held.pop())
    held.pop()
    again = arena.allocate(PAGE)  # the segment that nobody shares is gone
    assert again.segment_fd is not None
    handed_over(arena, again)


def test_a_message_larger_than_the_arena_gets_a_segment(arena: Arena) -> None:
    slot = written(arena, 20 * PAGE, 6)
    assert slot.segment_fd is not None
    handed_over(arena, slot)


def test_slots_can_run_out(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "CAPACITY", 2)
    small = Arena(RANKS, ME, 8 * PAGE)
    held = [small.allocate(1), small.allocate(1)]
    with pytest.raises(MemoryError, match=rf"all 2 slots are in use: rank {ME} holds 2 values, {2 * PAGE} bytes"):
        small.allocate(1)
    held.pop()
    assert small.allocate(1).offset == PAGE
    small.close()
    assert CAPACITY >= 10_000


# Limits


def test_only_what_is_touched_for_the_first_time_is_checked(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(headroom, "check", asked.append)
    arena.allocate(2 * PAGE)
    assert sum(asked) >= 2 * PAGE
    before = len(asked)
    first = arena.allocate(PAGE)
    second = arena.allocate(PAGE)
    assert (first.offset, second.offset) == (0, PAGE)
    assert len(asked) == before


def test_near_the_limit_nothing_is_taken_and_what_was_touched_still_works(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazycast.net.host.arena._STEP_NBYTES", 0)  # nothing is taken ahead
    arena.allocate(2 * PAGE)

    def refuse(nbytes: int) -> None:
        raise MemoryError("the limit is near")

    monkeypatch.setattr(headroom, "check", refuse)
    with pytest.raises(MemoryError, match="the limit is near"):
        arena.allocate(8 * PAGE)
    assert arena.in_use() == (0, 0)
    held = arena.allocate(2 * PAGE)
    assert held.offset == 0
    with pytest.raises(MemoryError, match="the limit is near"):  # a segment is new memory as well
        arena.allocate(8 * PAGE)
    assert arena.in_use() == (1, 2 * PAGE)
    monkeypatch.undo()
    assert arena.allocate(6 * PAGE).offset == 2 * PAGE


@pytest.mark.parametrize("where", ["arena", "segment"])
def test_without_descriptors_it_is_a_memory_error_and_nothing_leaks(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(RANKS, ME, 2 * PAGE)
    held = [arena.allocate(2 * PAGE)] if where == "segment" else []
    made = os.memfd_create
    left = 0 if where == "segment" else 1  # for the arena, but not for its ledger

    def create_some(*args: object) -> int:
        nonlocal left
        if not left:
            raise OSError(24, "Too many open files")
        left -= 1
        return made(*args)

    monkeypatch.setattr(os, "memfd_create", create_some)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match="Too many open files"):
        arena.allocate(PAGE)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    monkeypatch.undo()
    del held[:]
    assert arena.allocate(PAGE).offset == 0
    arena.close()


def test_a_slot_that_is_never_shared_leaves_no_descriptor() -> None:
    arena = Arena(RANKS, ME, PAGE)
    held = arena.allocate(PAGE)
    descriptors = len(os.listdir("/proc/self/fd"))
    slot = arena.allocate(PAGE)
    assert slot.segment_fd is not None
    fd = slot.segment_fd
    del slot
    arena.in_use()
    left = len(os.listdir("/proc/self/fd")) - descriptors
    if left:
        os.close(fd)
    arena.close()
    del held
    assert not left, "the descriptor of the segment is still open"


def test_a_closed_arena_gives_nothing_and_makes_no_memory_anew() -> None:
    """A worker may still be about to share its value when the object is closed."""
    descriptors = len(os.listdir("/proc/self/fd"))
    for used in (False, True):
        arena = Arena(RANKS, ME, 8 * PAGE)
        if used:
            arena.allocate(100)
        arena.close()
        with pytest.raises(MemoryError, match="closed"):
            arena.allocate(100)
        assert len(os.listdir("/proc/self/fd")) == descriptors


# Seals


def both_kinds(arena: Arena) -> list[int]:
    whole, beyond = arena.allocate(8 * PAGE), arena.allocate(PAGE)
    del whole
    assert beyond.segment_fd is not None
    return [arena.fds[0], beyond.segment_fd]


def test_a_reader_cannot_map_memory_for_shared_writing(arena: Arena) -> None:
    fds = both_kinds(arena)
    for fd in fds:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(MemoryError, match="Operation not permitted"):
            Region(fd, PAGE)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        Region(fd, PAGE, private=True)
        Region(fd, PAGE, writable=False)


def test_nobody_can_resize_memory_under_another(arena: Arena) -> None:
    fds = both_kinds(arena)
    for fd in (*fds, arena.fds[1]):
        for nbytes in (0, PAGE - 1, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, nbytes)


def test_created_memory_is_zeroed_sized_sealed_and_not_inherited() -> None:
    fd = create(3 * PAGE)
    try:
        assert os.fstat(fd).st_size == 3 * PAGE
        assert not os.get_inheritable(fd)
        assert os.pread(fd, 3 * PAGE, 0) == bytes(3 * PAGE)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, PAGE)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("nbytes", "expected"), [(0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2), (10 * PAGE, 10)])
def test_pages_round_up(nbytes: int, expected: int) -> None:
    assert pages(nbytes) == expected * PAGE

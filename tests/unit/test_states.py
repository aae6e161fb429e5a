"""The arena and the mailbox in any order of what can be done to them, against the simplest models there are."""

from __future__ import annotations

import gc
import os
from collections import Counter, deque
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lazycast.core.mailbox import Mailbox
from lazycast.net.host.arena import Arena, Slot
from lazycast.net.host.memory import PAGE, pages
from lazycast.net.host.views import Views
from lazycast.net.wire import Key

RANKS, ME, READERS = [0, 1, 2], 1, (0, 2)
ARENA_NBYTES = 6 * PAGE
INDEX = st.integers(0, 1 << 30)


@dataclass
class Written:
    """A slot that its writer holds."""

    slot: Slot
    content: bytes


@dataclass
class Told:
    """A slot that a reader has been told of and not looked at."""

    reader: int
    row: int
    offset: int
    fd: int | None
    content: bytes


@dataclass
class Held:
    """A reader's own view of a slot, and what it is to show."""

    row: int
    view: memoryview
    content: bytes


class Arenas(RuleBasedStateMachine):
    """Allocate, lease, look, write, drop, die; small enough to wrap and to overflow into segments all the time.

    The model: each slot has holders, and each holder sees its own bytes, whatever the others do.
    """

    @initialize()
    def begin(self) -> None:
        self.arena = Arena(RANKS, ME, ARENA_NBYTES)
        self.views = {reader: Views(RANKS, reader) for reader in READERS}
        self.written: list[Written] = []
        self.told: list[Told] = []
        self.held: list[Held] = []
        self.dead: set[int] = set()
        self.nbytes_of: dict[int, int] = {}  # by row: what is in use
        self.fill = 0

    def _holders(self) -> Counter[int]:
        rows = [item.slot.row for item in self.written]
        return Counter(rows + [item.row for item in self.told] + [item.row for item in self.held])

    @rule(nbytes=st.integers(1, 3 * PAGE))
    def allocate(self, nbytes: int) -> None:
        in_use = {row: self.nbytes_of[row] for row in self._holders()}
        refusal = ""
        try:
            slot = self.arena.allocate(nbytes)
        except MemoryError as exc:
            refusal = str(exc)
        if refusal:
            assert "no room for" in refusal
            assert sum(in_use.values()) + pages(nbytes) > ARENA_NBYTES, f"{in_use} are taken, {nbytes} do not fit"
            return
        assert slot.row not in in_use, "the slot is in use"
        self.nbytes_of[slot.row] = pages(nbytes)
        self.fill = self.fill % 250 + 1
        content = bytes([self.fill]) * nbytes
        slot.view[:] = content
        self.written.append(Written(slot, content))

    @precondition(lambda self: self.written)
    @rule(index=INDEX)
    def lease(self, index: int) -> None:
        """Tell the readers of a slot; the writer lets go."""
        item = self.written.pop(index % len(self.written))
        slot = item.slot
        readers = [reader for reader in READERS if reader not in self.dead]
        self.arena.share(slot, readers)
        segment_fd = self.arena.hand_over(slot)
        for reader in readers:
            fd = None if segment_fd is None else os.dup(segment_fd)  # as a message carries it
            self.told.append(Told(reader, slot.row, slot.offset, fd, item.content))
        if segment_fd is not None:
            os.close(segment_fd)

    @precondition(lambda self: any(item.reader not in self.dead for item in self.told))
    @rule(index=INDEX)
    def look(self, index: int) -> None:
        looking = [item for item in self.told if item.reader not in self.dead]
        item = looking[index % len(looking)]
        self.told.remove(item)
        views = self.views[item.reader]
        if not views.knows(ME):
            views.learn(ME, *self.arena.fds, self.arena.nbytes)
        view = views.view(ME, item.row, item.offset, len(item.content), item.fd)
        if item.fd is not None:
            os.close(item.fd)
        self.held.append(Held(item.row, view, item.content))

    @precondition(lambda self: self.held)
    @rule(index=INDEX, share=st.floats(0, 1))
    def write(self, index: int, share: float) -> None:
        """A reader writes to a part of its own."""
        item = self.held[index % len(self.held)]
        upto = int(share * len(item.content))
        item.view[:upto] = b"\xff" * upto
        item.content = b"\xff" * upto + item.content[upto:]

    @precondition(lambda self: self.held)
    @rule(index=INDEX)
    def drop(self, index: int) -> None:
        del self.held[index % len(self.held)]

    @precondition(lambda self: self.written)
    @rule(index=INDEX)
    def give_up(self, index: int) -> None:
        """The writer drops a slot that it never sent."""
        del self.written[index % len(self.written)]

    @precondition(lambda self: not self.dead)
    @rule(reader=st.sampled_from(READERS))
    def die(self, reader: int) -> None:
        """A reader that looks at nothing any more: what it was told of stays held."""
        self.dead.add(reader)

    @invariant()
    def everybody_sees_his_own(self) -> None:
        for held in getattr(self, "held", ()):
            assert bytes(held.view) == held.content
        for written in getattr(self, "written", ()):
            assert bytes(written.slot.view) == written.content

    @invariant()
    def what_nobody_holds_is_free(self) -> None:
        if hasattr(self, "arena"):
            holders = self._holders()
            assert self.arena.in_use() == (len(holders), sum(self.nbytes_of[row] for row in holders))

    def teardown(self) -> None:
        if not hasattr(self, "arena"):
            return
        for told in self.told:
            if told.fd is not None:
                os.close(told.fd)
        self.written.clear()
        self.held.clear()
        slots, _ = self.arena.in_use()
        assert slots == len({item.row for item in self.told})
        self.arena.close()
        gc.collect()


KEYS: st.SearchStrategy[Key | None] = st.sampled_from([None, "1", 1, b"1"])


class Mailboxes(RuleBasedStateMachine):
    """Asks and arrivals by key, taking, clearing. The model: two queues for each key, one of which is empty."""

    @initialize()
    def begin(self) -> None:
        self.box: Mailbox[int, int] = Mailbox()
        self.asks: dict[Key | None, deque[int]] = {}
        self.arrivals: dict[Key | None, deque[int]] = {}
        self.number = 0

    def _meet(
        self, mine: dict[Key | None, deque[int]], others: dict[Key | None, deque[int]], key: Key | None
    ) -> int | None:
        if others.get(key):
            return others[key].popleft()
        mine.setdefault(key, deque()).append(self.number)
        return None

    @rule(key=KEYS)
    def ask(self, key: Key | None) -> None:
        self.number += 1
        assert self.box.ask(key, self.number) == self._meet(self.asks, self.arrivals, key)

    @rule(key=KEYS)
    def arrive(self, key: Key | None) -> None:
        self.number += 1
        assert self.box.arrive(key, self.number) == self._meet(self.arrivals, self.asks, key)

    @rule(key=KEYS)
    def take(self, key: Key | None) -> None:
        waiting = self.arrivals.get(key)
        assert self.box.take(key) == (waiting.popleft() if waiting else None)

    @rule()
    def clear(self) -> None:
        self.box.clear_asks()
        self.asks.clear()

    @invariant()
    def it_holds_what_waits_and_nothing_else(self) -> None:
        if hasattr(self, "box"):
            assert sorted(self.box.asks()) == sorted(n for waiting in self.asks.values() for n in waiting)
            assert sorted(self.box.arrivals()) == sorted(n for waiting in self.arrivals.values() for n in waiting)
            lines = [*self.box._asks.values(), *self.box._arrivals.values()]
            assert all(lines), "a key without anything left behind"
            assert len(self.box._order) == sum(map(len, self.box._arrivals.values())), "a place left behind"


TestArenas = Arenas.TestCase
TestMailboxes = Mailboxes.TestCase
TestArenas.settings = TestMailboxes.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
# Seconds of processor time, which are minutes on a busy machine.
TestArenas.pytestmark = TestMailboxes.pytestmark = [pytest.mark.timeout(400)]

"""Gives what every rank has to every rank, along a tree of MPI's ranks: up to rank 0, and down to all.

Guarantees:

* A rank talks to its parent and its children alone, with one message each way: 2(n - 1) in a round. The length is
  asked of MPI (`Improbe`), so that tables have the size they have.
* Nobody is through with a round before all have come to it: what rank 0 sends down has something of everybody.
* Why a round failed is found out between all ranks (`_mpi_verdict`). That takes `SILENT_S` from when the first rank's
  time is over; as much again for each leader that has not come; and up to `LONGEST_S` while answers come. A round that
  all have come to in the meantime ends well.
* Nothing blocks inside MPI, and what MPI still holds when a round fails is kept for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
from mpi4py import MPI

from lazycast.net.tree import children, parent

from ._mpi_progress import TAG_FAILURE, TAG_MEETING, Pace, abandon
from ._mpi_verdict import Inquiry, Letters, Verdict, Word

#: Children per rank; more than a cast's tree has, since here what takes time is that ranks wake one after another.
FANOUT = 8
_STALL_S = 0.1  # beyond the longest nap: this process was not run, and others on its machine hardly were
_LAST_WORDS_S = 0.2  # what a verdict gets to be on its way: MPI may have to connect first


class Failed(Exception):
    """A round that came to nothing."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.why)
        self.verdict = verdict


class _Incoming(NamedTuple):
    source: int
    buffer: bytearray
    request: MPI.Request


class Tree:
    """One rank's part."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._round = 0
        self._early: list[tuple[int, Word]] = []  # of ranks that are a round ahead
        self.disturbed = False  # whether something may be left under way, though all rounds went well

    def swap(self, blob: bytes, timeout_s: float) -> list[bytes]:
        """Return everybody's blob, in rank order.

        Raises: Failed, and then no other round can follow.
        Collective: every rank. Blocking: see the module's text.
        """
        self._round += 1
        swap = _Swap(self._comm, blob)
        if self._comm.size > 1:
            try:
                self._wait(swap, timeout_s)
            finally:
                self.disturbed = self.disturbed or swap.said
                swap.abandon()
        return [swap.table[rank] for rank in range(self._comm.size)]

    def _wait(self, swap: _Swap, timeout_s: float) -> None:
        pace, seen_s = Pace(), time.monotonic()
        inquiry = Inquiry(self._comm.rank, self._comm.size, self._round, limit_s=timeout_s, now_s=seen_s)
        early, self._early = self._early, []
        moved = self._hear(early, swap, inquiry, seen_s)
        stalled_s = 0.0  # which is no silence of others
        cause: MPI.Exception | None = None
        while True:
            if inquiry.verdict is not None:
                swap.say_the_last()
                raise Failed(inquiry.verdict) from cause
            if moved:
                pace.reset()
            else:
                time.sleep(pace.nap_s())
            before_s, seen_s = seen_s, time.monotonic()
            if inquiry.begun:
                stalled_s += max(0.0, seen_s - before_s - _STALL_S)
            now_s = seen_s - stalled_s
            try:
                moved = swap.step()
                if swap.done:
                    return
                moved = self._hear(swap.words(), swap, inquiry, now_s) or moved
            except MPI.Exception as exc:
                cause = exc
                swap.say(inquiry.lose(swap.asked, str(exc)))
            swap.say(inquiry.look(swap.table, now_s))

    def _hear(self, words: Collection[tuple[int, Word]], swap: _Swap, inquiry: Inquiry, now_s: float) -> bool:
        for source, word in words:
            self.disturbed = True
            if word.round > self._round:
                self._early.append((source, word))
            elif word.round == self._round:
                swap.say(inquiry.hear(source, word, now_s))
            elif word.kind == "ask":  # about a round that went well here: this rank is not who is missing there
                swap.say([(source, Word(word.round, "here"))])
        return bool(words)


class _Swap:
    """The messages of one rank in one round."""

    def __init__(self, comm: MPI.Intracomm, blob: bytes) -> None:
        self._comm = comm
        self.table = {comm.rank: blob}  # grows as those below come, until that of all is here
        self.asked = comm.rank  # the rank that MPI was called about last
        self._children = children(comm.rank, size=comm.size, root=0, fanout=FANOUT)
        self._parent = parent(comm.rank, size=comm.size, root=0, fanout=FANOUT)
        self._below = len(self._children)  # how many of their tables are not here
        self._awaited = set(self._children)  # whose table has not begun to come
        self._gone_up = False
        self._receives: list[_Incoming] = []
        self._sends: list[tuple[int, MPI.Request]] = []
        self._hearing: list[_Incoming] = []
        self._saying: list[MPI.Request] = []
        self.said = False  # whether another rank was told anything

    @property
    def done(self) -> bool:
        return self._gone_up and not (self._awaited or self._receives or self._sends)

    def step(self) -> bool:
        """Do what can be done without waiting; return whether that was anything."""
        moved = False
        if not self._below and not self._gone_up:
            self._gone_up = moved = True
            self._awaited = set() if self._parent is None else {self._parent}
            self._send(self._children if self._parent is None else [self._parent])
        for peer in list(self._awaited):
            self.asked = peer
            if self._begin(peer, TAG_MEETING, self._receives):
                self._awaited.remove(peer)
                moved = True
        for source, buffer in self._complete(self._receives):
            found = msgspec.msgpack.decode(buffer, type=dict[int, bytes])
            moved = True
            if source == self._parent:
                self.table = found
                self._send(self._children)
            else:
                self.table |= found
                self._below -= 1
        for peer, request in list(self._sends):
            self.asked = peer
            if request.Test():
                self._sends.remove((peer, request))
                moved = True
        return moved

    def words(self) -> list[tuple[int, Word]]:
        """Return what others say about this round's failure, and maybe about that of another one."""
        try:
            while self._begin(MPI.ANY_SOURCE, TAG_FAILURE, self._hearing):
                pass
        except MPI.Exception:  # somebody is lost: this asks who
            for peer in range(self._comm.size):
                self.asked = peer
                self._comm.Iprobe(peer, TAG_FAILURE)
            self.asked = self._comm.rank
            raise
        heard = self._complete(self._hearing)
        return [(source, msgspec.msgpack.decode(buffer, type=Word)) for source, buffer in heard]

    def say(self, letters: Letters) -> None:
        for peer, word in letters:
            self.said = True
            try:
                data = msgspec.msgpack.encode(word)
                self._saying.append(self._comm.Isend([data, MPI.BYTE], dest=peer, tag=TAG_FAILURE))
            except MPI.Exception:  # it is lost, and MPI says so again to who waits for it
                continue

    def say_the_last(self) -> None:
        """Wait until what was said is on its way. Who is missing may never take it."""
        pace, until_s = Pace(), time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until_s:
            with contextlib.suppress(MPI.Exception):
                self._saying = [request for request in self._saying if not request.Test()]
            if not self._saying:
                return
            time.sleep(pace.nap_s())

    def abandon(self) -> None:
        """Let go of what is under way; what MPI still holds is kept for it."""
        receives = [incoming.request for incoming in (*self._receives, *self._hearing)]
        abandon([*receives, *(request for _, request in self._sends), *self._saying])

    def _begin(self, source: int, tag: int, into: list[_Incoming]) -> bool:
        """Begin to receive a message, if there is one."""
        status = MPI.Status()
        message = self._comm.Improbe(source, tag, status)
        if message is None:
            return False
        buffer = bytearray(status.Get_count(MPI.BYTE))
        into.append(_Incoming(status.Get_source(), buffer, message.Irecv([buffer, MPI.BYTE])))
        return True

    def _complete(self, receives: list[_Incoming]) -> list[tuple[int, bytearray]]:
        """Take out what has come."""
        come = []
        for incoming in list(receives):
            self.asked = incoming.source
            if incoming.request.Test():
                receives.remove(incoming)
                come.append((incoming.source, incoming.buffer))
        return come

    def _send(self, peers: Sequence[int]) -> None:
        data = msgspec.msgpack.encode(self.table)
        for peer in peers:
            self.asked = peer
            self._sends.append((peer, self._comm.Isend([data, MPI.BYTE], dest=peer, tag=TAG_MEETING)))

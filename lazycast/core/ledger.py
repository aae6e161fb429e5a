"""The root's books: who has read which cast, who has reported on it, and what follows. Plain data, no threads.

Guarantees:

* A cast gets exactly one verdict: a failure as soon as the first is reported, success when all ranks have.
* A rank's report is its word on itself. What it says of another (an owner that did not share) counts once that one says
  so too, or has gone; if it says the opposite, the two do not agree, and that is what the verdict says.
* An entry goes when its last report and its last read are in, so memory follows what is under way. The bytes of a cast
  that has failed, or was withdrawn, count no more: the ranks have let go of them.
* Every answer is a function of what was told before; the caller acts on it outside any lock.
* What many ranks have done is booked in one step. Ranks are looked at one by one only when a limit is near, or somebody
  wants to know who is missing.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np
import numpy.typing as npt

from lazycast.core.dump import named
from lazycast.core.situation import ranks
from lazycast.net.members import bits, ranks_of
from lazycast.net.wire import ENDS, Failure, Key, Verdict


class _Entry(msgspec.Struct, eq=False):
    key: Key | None
    nbytes: int
    unread: int  # as sets of ranks: see `net.members`
    unreported: int
    decided: bool = False
    sent_s: float = 0.0
    hearsay: dict[int, Failure] = msgspec.field(default_factory=dict)  # by rank: what it says of another


class Ledger:
    """Keeps account of the casts a root has sent. `others` are the ranks beside the root. Not thread-safe."""

    def __init__(self, root: int, others: Collection[int]) -> None:
        self._root = root
        self._others = bits(others)
        self._width = self._others.bit_length()
        self._slowest: tuple[int, int] | None = None  # as `unread` says, until something changes
        self.entries: dict[int, _Entry] = {}
        #: Bytes of all casts on the books: what some rank has not read is part of it.
        self.open_nbytes = 0
        self.last_sent_s = 0.0
        self._gone: dict[int, Failure] = {}

    def sent(self, seq: int, key: Key | None, nbytes: int, *, agree: bool, sent_s: float = 0.0) -> None:
        """Book a cast that goes out now."""
        self.last_sent_s = sent_s
        unreported = self._others | 1 << self._root if agree else 0
        self.entries[seq] = _Entry(key, nbytes, self._others, unreported, not agree, sent_s)
        self.open_nbytes += nbytes
        self._slowest = None

    def read(self, who: int, seq: int) -> None:
        """Book that a set of ranks has asked for a cast."""
        entry = self.entries.get(seq)
        if entry is None or not entry.unread & who:
            return
        entry.unread &= ~who
        self._slowest = None
        if not entry.unread:
            self._forget_if_done(seq, entry)

    def report(
        self,
        rank: int,
        seq: int,
        failure: Failure | None,
        *,
        known: bool = False,
        who: int = 0,
        read: bool = False,
    ) -> Verdict | None:
        """Book a rank's report; return the verdict if it follows from it.

        A rank that has done its part may still report a failure: that it has waited too long for the others.

        Args:
            known: the failure is the root's own word.
            who: the set of ranks that have done their part, if it speaks for others too.
            read: they have also asked for it.
        """
        who = who or 1 << rank
        entry = self.entries.get(seq)
        if entry is None or not who & (self._others | 1 << self._root):
            return None
        if read and entry.unread & who:
            entry.unread &= ~who
            self._slowest = None
        said_of_another = failure is not None and failure.rank != rank and failure.kind != "withdrawn"
        if failure is not None and said_of_another and not known and not entry.decided:
            failure = self._credible(entry, rank, failure)
            if failure is None:
                return None
        elif failure is None and entry.hearsay and not entry.decided:
            failure = self._contradicted(entry, who)
        first = bool(who & entry.unreported)
        entry.unreported &= ~who
        verdict = None
        if not entry.decided and (failure is not None or (first and not entry.unreported)):
            entry.decided = True
            verdict = Verdict(seq, failure)
            if failure is not None:
                self._free(seq)
        if not entry.unread or entry.hearsay:
            self._forget_if_done(seq, entry)
        return verdict

    def _credible(self, entry: _Entry, rank: int, failure: Failure) -> Failure | None:
        """Return what the root makes of a rank's word on another; None while that one has not spoken for itself."""
        about = failure.rank
        if about in self._gone:
            return self._gone[about]
        if failure.kind in ENDS or entry.unreported >> about & 1:
            entry.hearsay[rank] = failure
            return None
        return _disagreement(rank, failure)

    @staticmethod
    def _contradicted(entry: _Entry, who: int) -> Failure | None:
        """Return the failure that follows if ranks have done their part, and another has said of one that it failed."""
        said = ((by, failure) for by, failure in entry.hearsay.items() if who >> failure.rank & 1)
        return next((_disagreement(by, failure) for by, failure in said if failure.kind not in ENDS), None)

    def withdraw(self, seq: int, failure: Failure, *, agree: bool) -> Verdict | None:
        """Book that the root takes back a cast that has gone out; None if it has its verdict already.

        A cast that needs no reports is taken back wherever it is not done.
        """
        if agree:
            return self.report(self._root, seq, failure)
        self._free(seq)
        return Verdict(seq, failure)

    def untouched(self) -> int | None:
        """Return the oldest cast that no rank has asked for."""
        readers = self._others
        return next((seq for seq, entry in self.entries.items() if readers and entry.unread == readers), None)

    def drop(self, seq: int) -> None:
        """Book that no rank is to ask for a cast any more: it holds nothing back."""
        entry = self.entries[seq]
        entry.unread = 0
        self._slowest = None
        self._forget_if_done(seq, entry)

    def _free(self, seq: int) -> None:
        """Nobody holds the bytes of a cast any more, whoever has not asked for it."""
        entry = self.entries.get(seq)
        if entry is None:
            return
        self.open_nbytes -= entry.nbytes
        entry.nbytes = 0
        self._slowest = None

    def gone(self, rank: int, failure: Failure) -> list[Verdict]:
        """Book that a rank answers no more; return the verdicts that follow: failure, wherever it had not reported."""
        who = 1 << rank
        self._others &= ~who
        self._gone[rank] = failure
        self._slowest = None
        verdicts = []
        for seq, entry in list(self.entries.items()):
            heard_of = any(said.rank == rank for said in entry.hearsay.values())
            if (entry.unreported & who or heard_of) and not entry.decided:
                entry.decided = True
                verdicts.append(Verdict(seq, failure))
                self._free(seq)
            entry.unread &= ~who
            entry.unreported &= ~who
            self._forget_if_done(seq, entry)
        return verdicts

    def _forget_if_done(self, seq: int, entry: _Entry) -> None:
        if entry.decided and entry.hearsay:
            entry.unreported &= ~bits(entry.hearsay)
            entry.hearsay.clear()
        if not entry.unread and not entry.unreported:
            del self.entries[seq]
            self.open_nbytes -= entry.nbytes

    def unread(self) -> tuple[int, int]:
        """Return casts and bytes that the slowest rank has not read (each the largest over the ranks)."""
        if self._slowest is None:
            casts, nbytes = self._loads()
            self._slowest = int(casts.max(initial=0)), int(nbytes.max(initial=0))
        return self._slowest

    def _loads(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return how many casts and bytes each rank has not read, by rank."""
        unread = [entry for entry in self.entries.values() if entry.unread]
        width = (self._width + 7) // 8
        said = b"".join([entry.unread.to_bytes(width, "little") for entry in unread])
        by_entry = np.frombuffer(said, np.uint8).reshape(len(unread), width)
        of_rank = np.unpackbits(by_entry, axis=1, bitorder="little").astype(np.int64)
        return of_rank.sum(axis=0), np.array([entry.nbytes for entry in unread], np.int64) @ of_rank

    @property
    def readers(self) -> int:
        """How many ranks there are beside the root."""
        return self._others.bit_count()

    def is_unread(self, rank: int, seq: int) -> bool:
        """Whether a rank has not asked for a cast."""
        entry = self.entries.get(seq)
        return entry is not None and bool(entry.unread >> rank & 1)

    def unread_of(self, rank: int) -> int:
        """Return how many casts a rank has not asked for."""
        return sum(entry.unread >> rank & 1 for entry in self.entries.values())

    def unread_by_rank(self, *, casts: int, nbytes: int) -> dict[int, list[tuple[int, Key | None]]]:
        """Return, for each rank with at least so much unread, which casts those are: (number, key), oldest first."""
        of_casts, of_nbytes = self._loads()
        slow = np.flatnonzero((of_casts >= casts) | (of_nbytes >= nbytes)).tolist()
        return {
            rank: [(seq, entry.key) for seq, entry in sorted(self.entries.items()) if entry.unread >> rank & 1]
            for rank in slow
            if self._others >> rank & 1
        }

    def unreported(self, seq: int) -> list[int]:
        """Return the ranks whose report on a cast is missing."""
        entry = self.entries.get(seq)
        return ranks_of(entry.unreported) if entry is not None and not entry.decided else []

    def reported(self, seq: int) -> list[int]:
        """Return the ranks that have reported on a cast whose verdict is not known."""
        entry = self.entries.get(seq)
        if entry is None or entry.decided:
            return []
        return ranks_of((self._others | 1 << self._root) & ~entry.unreported)

    def undecided(self, seq: int) -> bool:
        """Whether the verdict on a cast that agrees is still to come."""
        entry = self.entries.get(seq)
        return entry is not None and not entry.decided

    def lines(self) -> list[str]:
        """Return a summary, and a line for each cast that some rank has not asked for or reported on."""
        casts, nbytes = self.unread()
        entries = sorted(self.entries.items())
        first = f"{len(entries)} on the books; the slowest rank has {casts} casts, {nbytes} bytes unread"
        return [first, *(_line(seq, entry) for seq, entry in entries)]

    def __len__(self) -> int:
        return len(self.entries)


def _line(seq: int, entry: _Entry) -> str:
    unread = f", not asked for by {ranks(ranks_of(entry.unread))}" if entry.unread else ""
    unreported = f", not reported by {ranks(ranks_of(entry.unreported))}" if entry.unreported else ""
    decided = ", decided" if entry.decided else ""
    return f"#{seq}{named(entry.key)}: {entry.nbytes} bytes{unread}{unreported}{decided}"


def _disagreement(by: int, failure: Failure) -> Failure:
    """What rank `by` says of another, which says that it did its part: that `by` says so is all that is known."""
    text = f"rank {by} says of rank {failure.rank}, which has done its part: {failure.message}"
    return msgspec.structs.replace(failure, kind="refused", rank=by, host="", message=text, loss=None, overdue=None)

"""Why a round of MPI's ranks comes to nothing: what a rank says and hears about it, without MPI and without a clock.

A rank whose time is over asks a leader, rank 0, to find out who is missing. The leader asks all others directly, for
who is missing may be anywhere in the tree; those that wait in the round answer; and it tells all the verdict.

Guarantees:

* The first whose time is over ends the round for all, in its words. Who has answered, or whose blob the leader has, is
  not named as missing.
* If rank 0 is silent the one in the middle leads, then the last one: one host that is missing has not all of them. If
  all three are silent, each rank whose time is over leads for itself.
* MPI's word that a rank is lost is a verdict at once, and nobody is asked.
* A rank that comes when the verdict has been given hears it, and fails as the others did.
* Bounded: a leader has `SILENT_S` to say something, and `LONGEST_S` to come to a verdict. It waits while answers come,
  and `SILENT_S` beyond the last one: who is alive answers within a nap.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

SILENT_S = 1.0
LONGEST_S = 3.0

Kind = Literal["late", "ask", "here", "verdict"]


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """Why a round has failed."""

    missing: list[int]  # did not come within:
    limit_s: float
    lost: int | None = None  # with whom MPI has failed, and then nobody is missing
    why: str = ""


class Word(msgspec.Struct, frozen=True, array_like=True):
    """What a rank tells another: "my time is over", "are you there?", "I am here", "this is why"."""

    round: int
    kind: Kind
    limit_s: float = 0.0
    verdict: Verdict | None = None


Letters = Sequence[tuple[int, Word]]  # to whom, and what


class Inquiry:
    """One rank's part, in one round. Times are of one clock, in seconds."""

    def __init__(self, rank: int, size: int, number: int, *, limit_s: float, now_s: float) -> None:
        self.verdict: Verdict | None = None
        self._rank, self._number, self._limit_s = rank, number, limit_s
        self._others = [other for other in range(size) if other != rank]
        self._due_s = now_s + limit_s  # when this rank acts, if it hears nothing
        leaders = [0, size // 2, size - 1, rank]
        self._leaders = leaders[: leaders.index(rank) + 1]  # nobody needs another one than itself
        self._turn = -1  # which of them is to lead: nobody as long as this rank's time is not over
        self.begun = False  # whether anybody's time is over
        self._asked = False  # by the one whose turn it is, or by another one
        self._leads_until_s: float | None = None
        self._answered = {rank}

    def look(self, came: Collection[int], now_s: float) -> Letters:
        """Do what is due.

        Args:
            came: whose blobs this rank has.
        """
        if self.verdict is not None or now_s < self._due_s:
            return []
        if self._leads_until_s is None:
            return self._next(now_s)
        missing = [other for other in self._others if other not in self._answered and other not in came]
        return self._end(Verdict(missing, self._limit_s), None)

    def hear(self, source: int, word: Word, now_s: float) -> Letters:
        """Take what another rank says about this round."""
        if self.verdict is not None:
            return []
        if word.verdict is not None:
            return self._end(word.verdict, source)
        if word.kind == "here":
            self._answered.add(source)
            self._wait_for_answers(now_s)
            return []
        if not self.begun:
            self.begun, self._limit_s = True, word.limit_s
        if word.kind == "late":
            return [] if self._asked else self._lead(now_s)
        if self._leads_until_s is None:
            self._asked = True
            if source in self._leaders:
                self._turn = self._leaders.index(source)
            self._due_s = now_s + LONGEST_S + SILENT_S
        return [(source, self._word("here"))]

    def lose(self, rank: int, why: str) -> Letters:
        """Take MPI's word that it has failed with a rank."""
        return [] if self.verdict is not None else self._end(Verdict([], self._limit_s, rank, why), None)

    def _next(self, now_s: float) -> Letters:
        """Turn to the next leader: the time is over, or the one before is silent."""
        self.begun, self._asked = True, False
        self._turn += 1
        leader = self._leaders[self._turn]
        if leader == self._rank:
            return self._lead(now_s)
        self._due_s = now_s + SILENT_S
        return [(leader, self._word("late"))]

    def _lead(self, now_s: float) -> Letters:
        if self._leads_until_s is not None:
            return []
        self._leads_until_s = now_s + LONGEST_S
        self._wait_for_answers(now_s)
        return [(other, self._word("ask")) for other in self._others]

    def _wait_for_answers(self, now_s: float) -> None:
        """If all have answered nobody is missing: then the round may yet end well."""
        if self._leads_until_s is not None:
            all_here = len(self._answered) > len(self._others)
            self._due_s = self._leads_until_s if all_here else min(self._leads_until_s, now_s + SILENT_S)

    def _end(self, verdict: Verdict, source: int | None) -> Letters:
        """Adopt a verdict. Who leads tells all; who has seen a loss tells the leader."""
        self.verdict = verdict
        living = [other for other in self._others if other != verdict.lost]
        word = Word(self._number, "verdict", verdict=verdict)
        if self._leads_until_s is not None or (verdict.lost is not None and self._rank < min(living, default=-1)):
            return [(other, word) for other in living if other != source]
        return [(living[0], word)] if verdict.lost is not None and source is None and living else []

    def _word(self, kind: Kind) -> Word:
        return Word(self._number, kind, self._limit_s)

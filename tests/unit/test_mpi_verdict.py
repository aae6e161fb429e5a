"""How ranks of MPI find out why a round failed, with ranks and a clock that are played."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping

import pytest

from lazycast.backends._mpi_verdict import LONGEST_S, SILENT_S, Inquiry, Letters, Verdict, Word

NAP_S = 0.02
AGES_S = 1000.0


class Played:
    """Ranks that look at what has come once in a nap; what is said to who is not there waits for it."""

    def __init__(self, size: int, *, limits_s: Mapping[int, float], come_s: Mapping[int, float], seed: int = 0) -> None:
        self.size, self.now_s, self.said = size, 0.0, 0
        self.ranks: dict[int, Inquiry] = {}
        self.ended_s: dict[int, float] = {}
        self.lost: dict[int, int] = {}  # what a rank learns from MPI
        self.came: Callable[[int], Collection[int]] = lambda rank: {rank}
        self.slow_s: dict[int, float] = {}  # how long a rank takes to hear
        self._limits_s, self._come_s = limits_s, come_s
        self._random = random.Random(seed)
        self._mail: list[tuple[float, int, int, Word]] = []

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            self.now_s += NAP_S
            for rank in self._random.sample(range(self.size), self.size):
                if self._come_s.get(rank, 0.0) <= self.now_s:
                    self._step(rank)
            here = [rank for rank in range(self.size) if self._come_s.get(rank, 0.0) <= self.now_s]
            if here and all(self.ranks[rank].verdict for rank in here) and self.now_s >= max(self._come_s.values()):
                return

    def _step(self, rank: int) -> None:
        if rank not in self.ranks:
            limit_s = self._limits_s.get(rank, AGES_S)
            self.ranks[rank] = Inquiry(rank, self.size, 1, limit_s=limit_s, now_s=self.now_s)
        inquiry = self.ranks[rank]
        if inquiry.verdict is not None:
            return
        for letter in [letter for letter in self._mail if letter[0] <= self.now_s and letter[2] == rank]:
            self._mail.remove(letter)
            self._post(rank, inquiry.hear(letter[1], letter[3], self.now_s))
        if rank in self.lost:
            self._post(rank, inquiry.lose(self.lost[rank], "died"))
        self._post(rank, inquiry.look(self.came(rank), self.now_s))
        if inquiry.verdict is not None:
            self.ended_s[rank] = self.now_s

    def _post(self, source: int, letters: Letters) -> None:
        for to, word in letters:
            assert to != source
            arrives_s = self.now_s + self.slow_s.get(to, 0.0) + self._random.random() * 2 * NAP_S
            earlier_s = [at for at, before, dest, _ in self._mail if (before, dest) == (source, to)]
            self._mail.append((max([arrives_s, *earlier_s]), source, to, word))
            self.said += 1

    def verdicts(self) -> list[Verdict]:
        return [verdict for rank in self.ranks if (verdict := self.ranks[rank].verdict) is not None]


@pytest.mark.parametrize("seed", range(3))
def test_all_name_who_is_missing_and_so_do_those_once_they_come(seed: int) -> None:
    dice = random.Random(seed)
    for size in (2, 3, 4, 7, 12):
        for _ in range(10):
            missing = set(dice.sample(range(size), dice.randint(1, size - 1)))
            hasty = dice.choice([rank for rank in range(size) if rank not in missing])
            limits_s = {hasty: 0.3} if dice.random() < 0.5 else dict.fromkeys(range(size), 0.3)
            played = Played(size, limits_s=limits_s, come_s=dict.fromkeys(missing, 12.0), seed=dice.getrandbits(32))
            played.run(20.0)
            verdicts = played.verdicts()
            case = (size, missing, limits_s)
            assert verdicts == [Verdict(sorted(missing), 0.3)] * size, case
            most_s = 0.3 + 4 * SILENT_S + LONGEST_S + 10 * NAP_S
            assert all(at < most_s for rank, at in played.ended_s.items() if rank not in missing), case


def test_who_answers_slowly_is_waited_for_as_long_as_some_answer() -> None:
    played = Played(7, limits_s={3: 0.1}, come_s={6: 100.0})
    played.slow_s = {1: 0.35, 2: 0.7, 4: 1.05}
    played.run(50.0)
    assert [verdict.missing for verdict in played.verdicts()] == [[6]] * 6


def test_whose_blob_the_leader_has_is_not_named() -> None:
    played = Played(7, limits_s={0: 0.1}, come_s={6: 100.0})
    played.slow_s = {4: 60.0}  # stopped since
    played.came = lambda rank: {0, 1, 4, 5} if rank == 0 else {rank}
    played.run(99.0)
    assert [verdict.missing for verdict in played.verdicts()] == [[6]] * 6


def test_a_round_that_all_have_come_to_may_end_well_for_a_while() -> None:
    """Here it does not, since nobody has any table: then none is blamed."""
    played = Played(4, limits_s={1: 0.1}, come_s={2: 0.3})
    played.run(LONGEST_S)
    assert played.verdicts() == []
    played.run(10.0)
    assert played.verdicts() == [Verdict([], 0.1)] * 4


@pytest.mark.parametrize("lost", [0, 1, 5])
@pytest.mark.parametrize("witness", [0, 1, 6])
def test_a_loss_that_one_rank_has_seen_is_told_to_all_at_once(lost: int, witness: int) -> None:
    if lost == witness:
        return
    played = Played(7, limits_s={}, come_s={lost: AGES_S})
    played.lost = {witness: lost}
    played.run(1.0)
    assert played.verdicts() == [Verdict([], played.verdicts()[0].limit_s, lost, "died")] * 6
    assert played.said <= 7


def test_a_leader_that_is_lost_while_it_asks_is_named() -> None:
    played = Played(7, limits_s={4: 0.1}, come_s={0: AGES_S})
    played.run(0.4)
    played.lost = dict.fromkeys(range(1, 7), 0)
    played.run(1.0)
    assert [verdict.lost for verdict in played.verdicts()] == [0] * 6


def test_a_leader_that_goes_silent_after_it_has_asked_is_followed_by_the_next() -> None:
    inquiry = Inquiry(1, 3, 1, limit_s=10.0, now_s=0.0)
    assert inquiry.hear(0, Word(1, "ask", 0.3), 1.0) == [(0, Word(1, "here", 0.3))]
    assert inquiry.look({1}, 1.0 + LONGEST_S) == []
    asked_s = 1.0 + LONGEST_S + SILENT_S
    assert inquiry.look({1}, asked_s) == [(0, Word(1, "ask", 0.3)), (2, Word(1, "ask", 0.3))]
    assert inquiry.hear(2, Word(1, "here", 0.3), asked_s) == []
    verdict = Verdict([0], 0.3)
    word = Word(1, "verdict", verdict=verdict)
    assert inquiry.look({1}, asked_s + SILENT_S) == [(0, word), (2, word)]


def test_without_rank_0_one_other_asks_for_all_of_them() -> None:
    played = Played(32, limits_s=dict.fromkeys(range(32), 0.3), come_s={0: AGES_S})
    played.run(20.0)
    assert {tuple(verdict.missing) for verdict in played.verdicts()} == {(0,)}
    assert played.said < 6 * 32  # each for itself they ask 31 times 31

"""The root's books: a table of cases, and a naive model that counts everything anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.ledger import Ledger
from lazycast.net.wire import Failure, Verdict

FAILED = Failure("materialize", 1, "h", "no")
LOST = Failure("lost", 2, "h", "gone")


def ledger(size: int = 4, root: int = 0) -> Ledger:
    return Ledger(root, [rank for rank in range(size) if rank != root])


def test_success_is_the_verdict_of_the_last_report_whoever_gives_it() -> None:
    for last in range(4):
        books = ledger()
        books.sent(1, "k", 100, agree=True)
        assert [books.report(rank, 1, None) for rank in range(4) if rank != last] == [None] * 3
        assert books.unreported(1) == [last]
        assert books.report(last, 1, None) == Verdict(1)
        assert books.unreported(1) == []


def test_the_first_failure_is_the_verdict_and_later_reports_give_none() -> None:
    books = ledger()
    books.sent(1, "k", 100, agree=True)
    assert books.report(3, 1, None) is None
    assert books.report(1, 1, FAILED) == Verdict(1, FAILED)
    assert books.unreported(1) == [], "nobody is waited for once it is decided"
    assert books.report(0, 1, FAILED) is None
    assert books.report(2, 1, None) is None


def test_a_report_counts_once() -> None:
    books = ledger(size=2)
    books.sent(1, None, 0, agree=True)
    assert books.report(1, 1, None) is None
    assert books.report(1, 1, None) is None
    assert books.report(0, 1, None) == Verdict(1)


@pytest.mark.parametrize("agree", [True, False])
def test_a_report_that_says_that_a_cast_was_asked_for_books_that_too(agree: bool) -> None:
    books = ledger(size=3)
    books.sent(1, None, 100, agree=agree)
    assert books.unread() == (1, 100)
    books.report(0, 1, None)
    books.report(1, 1, None, read=True)
    assert not books.is_unread(1, 1)
    assert books.is_unread(2, 1)
    books.report(2, 1, None, read=True)
    assert books.unread() == (0, 0)
    assert (len(books), books.open_nbytes) == (0, 0)


def test_without_agreement_there_is_no_verdict() -> None:
    books = ledger()
    books.sent(1, "k", 100, agree=False)
    assert [books.report(rank, 1, FAILED) for rank in range(4)] == [None] * 4
    assert books.unreported(1) == []


def test_reports_and_reads_of_casts_that_are_not_booked_are_ignored() -> None:
    books = ledger()
    assert books.report(1, 99, FAILED) is None
    books.read(1 << 1, 99)
    books.sent(1, "k", 5, agree=True)
    books.read(1 << 0, 1)  # the root is no reader
    books.read(1 << 77, 1)
    assert books.report(77, 1, FAILED) is None
    assert books.unread() == (1, 5)


def test_the_slowest_rank_counts_and_casts_and_bytes_may_be_of_different_ranks() -> None:
    books = ledger(size=3)
    for seq, nbytes in ((1, 1), (2, 1), (3, 100)):
        books.sent(seq, f"k{seq}", nbytes, agree=False)
    books.read(1 << 1, 3)  # rank 1 has two casts of 2 bytes
    books.read(1 << 2, 1)
    books.read(1 << 2, 2)  # rank 2 has one of 100
    assert books.unread() == (2, 100)
    assert books.unread_by_rank(casts=2, nbytes=1000) == {1: [(1, "k1"), (2, "k2")]}
    assert books.unread_by_rank(casts=9, nbytes=100) == {2: [(3, "k3")]}
    assert books.unread_by_rank(casts=9, nbytes=1000) == {}


def test_reading_twice_counts_once() -> None:
    books = ledger(size=3)
    books.sent(1, "k", 10, agree=False)
    books.sent(2, "k", 10, agree=False)
    books.read(1 << 1, 1)
    books.read(1 << 1, 1)
    books.read(1 << 2, 1)
    assert books.unread() == (1, 10)


def test_an_entry_goes_with_the_last_read_and_report() -> None:
    books = ledger(size=2)
    books.sent(1, "k", 10, agree=True)
    books.report(0, 1, None)
    books.report(1, 1, None)
    assert len(books) == 1
    books.read(1 << 1, 1)
    assert len(books) == 0
    assert books.unread() == (0, 0)


def test_a_rank_that_has_gone_fails_what_it_has_not_reported_and_holds_nothing_back() -> None:
    books = ledger(size=3)
    books.sent(1, "a", 10, agree=True)
    books.sent(2, "b", 10, agree=True)
    books.sent(3, "c", 10, agree=False)
    books.sent(4, "d", 10, agree=True)
    books.report(2, 1, None)
    books.report(1, 4, FAILED)  # decided already
    for seq in (1, 2, 3, 4):
        books.read(1 << 1, seq)
    assert books.gone(2, LOST) == [Verdict(2, LOST)]
    assert books.unread() == (0, 0)
    assert books.unreported(1) == [0, 1]
    assert [books.report(rank, 1, None) for rank in (0, 1)] == [None, Verdict(1)]
    assert books.gone(2, LOST) == []


def test_a_cast_sent_after_a_rank_has_gone_is_not_kept_for_it() -> None:
    books = ledger(size=3)
    books.gone(2, LOST)
    books.sent(1, "k", 10, agree=False)
    assert books.unread() == (1, 10)
    books.read(1 << 1, 1)
    assert len(books) == 0


def test_a_cast_sent_after_a_rank_has_gone_still_gets_a_verdict() -> None:
    books = ledger(size=3)
    books.gone(2, LOST)
    books.sent(1, "k", 10, agree=True)
    verdicts = [books.report(rank, 1, None) for rank in (0, 1)]
    assert [v.seq for v in verdicts if v is not None] == [1], "nobody can wait for a rank that answers no more"


@dataclass
class Model:
    """Remembers all that was told and computes each answer from the whole."""

    size: int
    sent: dict[int, tuple[int, bool]] = field(default_factory=dict)
    reads: set[tuple[int, int]] = field(default_factory=set)
    reports: dict[int, set[int]] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)

    def unread(self, rank: int) -> list[int]:
        return [seq for seq in sorted(self.sent) if (rank, seq) not in self.reads]

    def largest_unread(self) -> tuple[int, int]:
        loads = [self.unread(rank) for rank in range(1, self.size)]
        return max(map(len, loads)), max(sum(map(self.nbytes, load)) for load in loads)

    def nbytes(self, seq: int) -> int:
        """What a cast holds on the ranks: nothing once it has failed."""
        verdict = self.verdicts.get(seq)
        return self.sent[seq][0] if verdict is None or verdict.failure is None else 0

    def verdict_after(self, rank: int, seq: int, failure: Failure | None) -> Verdict | None:
        told = self.reports.setdefault(seq, set())
        if seq not in self.sent or not self.sent[seq][1]:
            return None
        first = rank not in told
        told.add(rank)
        if seq in self.verdicts or (failure is None and (not first or len(told) < self.size)):
            return None
        self.verdicts[seq] = Verdict(seq, failure)
        return self.verdicts[seq]

    def under_way(self) -> int:
        return sum(
            any((rank, seq) not in self.reads for rank in range(1, self.size))
            or (agree and len(self.reports.get(seq, ())) < self.size)
            for seq, (_, agree) in self.sent.items()
        )


SEQS = st.integers(1, 4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.integers(0, 50), st.booleans()),
        st.tuples(st.just("read"), st.integers(1, 2), SEQS),
        st.tuples(st.just("report"), st.integers(0, 2), SEQS, st.booleans()),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_ledger_answers_as_the_naive_model_does(steps: list[tuple[object, ...]]) -> None:
    books, model = ledger(size=3), Model(3)
    for what, *args in steps:
        if what == "sent":
            nbytes, agree = args
            seq = len(model.sent) + 1
            model.sent[seq] = (nbytes, agree)  # type: ignore[assignment]
            books.sent(seq, f"k{seq}", nbytes, agree=agree)  # type: ignore[arg-type]
        elif what == "read":
            rank, seq = args
            if seq in model.sent:
                model.reads.add((rank, seq))  # type: ignore[arg-type]
            books.read(1 << rank, seq)  # type: ignore[arg-type]
        else:
            rank, seq, good = args
            failure = None if good else msgspec.structs.replace(FAILED, rank=rank)  # of itself
            if seq in model.sent:
                assert books.report(rank, seq, failure) == model.verdict_after(rank, seq, failure)  # type: ignore[arg-type]
        assert books.unread() == model.largest_unread()
        assert len(books) == model.under_way()
    expected = {rank: [(seq, f"k{seq}") for seq in model.unread(rank)] for rank in (1, 2) if model.unread(rank)}
    assert books.unread_by_rank(casts=1, nbytes=10_000) == expected


@pytest.mark.parametrize("root", [0, 1, 2])
def test_ranks_keep_their_numbers_for_any_root(root: int) -> None:
    books = ledger(size=3, root=root)
    books.sent(1, "k", 1, agree=True)
    assert books.unreported(1) == [0, 1, 2]
    assert set(books.unread_by_rank(casts=1, nbytes=1)) == {0, 1, 2} - {root}


def test_a_rank_that_has_done_its_part_may_still_find_that_its_time_is_over() -> None:
    books = ledger(size=2)
    books.sent(1, None, 0, agree=True)
    assert books.report(1, 1, None) is None
    assert books.report(1, 1, FAILED) == Verdict(1, FAILED)
    assert books.report(0, 1, None) is None  # there is one verdict
    assert books.report(1, 1, FAILED) is None


# What a rank says of another


def of(rank: int, kind: Any = "materialize") -> Failure:
    return Failure(kind, rank, "h", "no")


def agreeing(size: int = 3) -> Ledger:
    books = ledger(size=size)
    books.sent(1, None, 0, agree=True)
    for rank in range(1, size):
        books.read(1 << rank, 1)
    return books


@pytest.mark.parametrize("kind", ["materialize", "decode", "untrusted", "encode", "lost", "closed"])
def test_what_a_rank_says_of_another_waits_for_the_word_of_that_one(kind: Any) -> None:
    books = agreeing()
    assert books.report(2, 1, of(1, kind)) is None
    assert books.report(0, 1, None) is None
    assert books.undecided(1)
    assert books.report(1, 1, of(1)) == Verdict(1, of(1))
    assert len(books) == 0


@pytest.mark.parametrize("before", [True, False])
def test_two_ranks_that_contradict_each_other_are_both_named(before: bool) -> None:
    books = agreeing()
    reports: list[tuple[int, Failure | None]] = [(1, None), (2, of(1))]
    verdicts = [books.report(rank, 1, failure) for rank, failure in (reports if before else reversed(reports))]
    (verdict,) = (verdict for verdict in verdicts if verdict is not None)
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.failure.rank) == ("refused", 2)
    assert verdict.failure.message == "rank 2 says of rank 1, which has done its part: no"
    assert books.report(0, 1, None) is None
    assert len(books) == 0


@pytest.mark.parametrize("kind", ["lost", "closed"])
def test_nobody_is_lost_because_another_reports_so(kind: Any) -> None:
    books = agreeing()
    for rank in (0, 1):
        assert books.report(rank, 1, None) is None
    assert books.report(2, 1, of(1, kind)) is None
    assert books.undecided(1)
    gone = of(1, kind)
    assert books.gone(1, gone) == [Verdict(1, gone)]
    assert len(books) == 0


def test_what_is_said_of_who_has_gone_is_what_the_root_knows_of_it() -> None:
    books = agreeing()
    gone = Failure("lost", 1, "h", "the root has seen it")
    books.sent(2, None, 0, agree=True)
    books.gone(1, gone)
    books.sent(3, None, 0, agree=True)
    assert books.report(2, 3, of(1, "closed")) == Verdict(3, gone)


def test_the_roots_own_word_is_taken_from_whoever_repeats_it() -> None:
    books = agreeing()
    said = of(0, "encode")
    assert books.report(1, 1, said, known=True) == Verdict(1, said)


def test_the_oldest_that_nobody_has_asked_for_is_dropped_and_holds_nothing_back() -> None:
    ledger = Ledger(0, [1, 2])
    for seq in (1, 2, 3):
        ledger.sent(seq, f"k{seq}", 10, agree=False)
    assert ledger.untouched() == 1
    ledger.read(1 << 2, 1)
    assert ledger.untouched() == 2, "one rank has asked for the first"
    ledger.drop(2)
    assert ledger.unread() == (2, 20)
    assert ledger.untouched() == 3
    ledger.read(1 << 1, 2)  # it is asked for though it was dropped
    ledger.drop(3)
    assert ledger.untouched() is None
    ledger.read(1 << 1, 1)
    assert (len(ledger), ledger.open_nbytes, ledger.unread()) == (0, 0, (0, 0))


def test_what_is_dropped_before_its_verdict_is_kept_until_all_have_reported() -> None:
    ledger = Ledger(0, [1])
    ledger.sent(1, None, 10, agree=True)
    failure = Failure("withdrawn", 0, "host", "dropped")
    assert ledger.withdraw(1, failure, agree=True) == Verdict(1, failure)
    ledger.drop(1)
    assert ledger.unread() == (0, 0)
    assert len(ledger) == 1
    ledger.report(1, 1, None)
    assert (len(ledger), ledger.open_nbytes) == (0, 0)

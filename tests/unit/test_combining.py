"""What ranks below one say goes up together: as soon as all have said it, and no later if somebody wants to know."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.ledger import Ledger
from lazycast.net.combining import DELAY_S, Combining, combined_cost
from lazycast.net.members import bits, packed, ranks_of, unpacked
from lazycast.net.topology import place
from lazycast.net.wire import Cast, Cost, Failure, Read, Report, Spent

#: Rank 2 leads its host, and has the host of rank 6 below it; the root is rank 0.
HOSTS = ((0, 1), (2, 3), (4,), (5,), (6, 7))
BELOW = (2, 3, 6, 7)  # rank 6 leads the fifth host, the first below rank 2
FAILED = Failure("materialize", 3, "h", "no")
PIECE = functools.partial(Cast, ref=None, key=None, placement="every")


def at(rank: int = 2, *, casts: int = 64, nbytes: int = 1 << 20, costs: bool = False) -> Combining:
    return Combining(place(rank, 0, _hosts()), casts, nbytes, costs=costs)


def _hosts() -> list[list[int]]:
    """With a fan-out of three, the fifth host is the first below the second."""
    return [list(host) for host in HOSTS]


def agreeing(seq: int = 1, nbytes: int = 0) -> Cast:
    return PIECE(seq, agree=True, nbytes=nbytes)


def test_a_set_of_ranks_is_one_number_and_travels_as_bytes() -> None:
    assert ranks_of(bits([70, 3, 0])) == [0, 3, 70]
    assert (ranks_of(0), packed(0), unpacked(b"")) == ([], b"", 0)
    assert unpacked(packed(bits(range(10_000)))) == bits(range(10_000))


def test_the_place_of_this_test_is_as_it_says() -> None:
    assert ranks_of(place(2, 0, _hosts()).members(2)) == list(BELOW)
    assert ranks_of(place(2, 0, _hosts()).members(6)) == [6, 7]


def test_one_report_goes_up_when_all_are_in_whoever_gives_the_last() -> None:
    for last in BELOW:
        books = at()
        books.opened(agreeing(), 0.0)
        said = [books.report(Report(rank, 1, True), 0.0) for rank in BELOW if rank != last]
        assert said == [[]] * 3
        assert books.report(Report(last, 1, True), 0.0) == [Report(2, 1, True, whole=True)]
        assert len(books) == 0


def test_a_rank_that_says_it_again_and_again_fills_no_memory() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    again = Report(3, 1, False)
    assert [books.report(again, 0.0) for _ in range(1000)] == [[]] + [[again]] * 999
    assert books.asked(0.0) == [again]


def test_nobody_speaks_for_all_where_no_reports_are_due() -> None:
    """Ranks that give a cast up say so, also without agreement."""
    books = at()
    books.opened(PIECE(1, agree=False), 0.0)
    gave_up = Report(3, 1, True)
    assert books.report(gave_up, 0.0) == [gave_up]


def test_who_speaks_for_others_is_taken_at_its_word() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    for rank in (2, 3):
        assert books.report(Report(rank, 1, True), 0.0) == []
    assert books.report(Report(6, 1, True, whole=True), 0.0) == [Report(2, 1, True, whole=True)]


def test_a_failure_goes_up_at_once_and_the_rest_together() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    assert books.report(Report(2, 1, True), 0.0) == []
    assert books.report(Report(3, 1, True, FAILED), 0.0) == [Report(3, 1, True, FAILED)]
    assert books.report(Report(6, 1, True), 0.0) == []
    assert books.report(Report(7, 1, True), 0.0) == [Report(2, 1, True, whole=True)]
    assert len(books) == 0


@pytest.mark.parametrize("first", [True, False])
def test_who_has_said_that_another_is_lost_has_not_done_its_part(*, first: bool) -> None:
    """The root waits until the other has gone, whatever that one has said of itself."""
    topology, books, ledger = place(0, 0, _hosts()), at(), Ledger(0, BELOW)
    books.opened(agreeing(), 0.0)
    ledger.sent(1, None, 0, agree=True)
    assert ledger.report(0, 1, None) is None
    lost = Failure("lost", 7, "h", "rank 7 was lost")
    said = [Report(rank, 1, False, lost if rank == 6 else None) for rank in BELOW]
    if first:
        said.sort(key=lambda report: report.failure is None)
    for report in said:
        for message in books.report(report, 0.0):
            who = topology.members(message.rank) if message.whole else 1 << message.rank
            assert ledger.report(message.rank, 1, message.failure, who=who) is None
    assert ledger.unreported(1) == [6]
    assert [verdict.failure for verdict in ledger.gone(7, lost)] == [lost]
    assert len(books) == 1, "nobody has asked for it"


def test_all_that_fail_are_told_of_one_by_one() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    for rank in BELOW:
        failed = Report(rank, 1, True, FAILED)
        assert books.report(failed, 0.0) == [failed]
    assert len(books) == 0


def test_a_failure_after_all_have_reported_goes_up_by_itself() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    for rank in BELOW:
        books.report(Report(rank, 1, False), 0.0)
    late = Report(3, 1, False, FAILED)
    assert books.report(late, 0.0) == [late]


def test_who_has_asked_is_told_with_the_report_if_all_have_and_a_little_later_if_not() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    for rank in BELOW[:-1]:
        books.report(Report(rank, 1, rank != 3), 5.0)
    assert books.report(Report(7, 1, True), 5.0) == [Report(2, 1, False, whole=True)]
    assert books.take(5.0) == []
    books.read(Read(3, [1]), 5.01)
    assert books.due_s == 5.0 + DELAY_S
    assert books.take(5.0 + DELAY_S) == [Read(2, [1], packed(bits(BELOW)))]
    assert (len(books), books.due_s) == (0, None)


def test_what_some_have_asked_for_is_told_by_who_they_are() -> None:
    books = at()
    for seq in (1, 2, 3):
        books.opened(PIECE(seq, agree=False), 0.0)
    books.read(Read(3, [1, 3]), 5.0)
    books.read(Read(2, [1]), 5.0)
    books.read(Read(6, [2], packed(bits([6, 7]))), 5.0)
    said = {read.who: read.seqs for read in books.take(6.0)}
    assert said == {packed(bits([2, 3])): [1], packed(bits([3])): [3], packed(bits([6, 7])): [2]}


@pytest.mark.parametrize(("casts", "nbytes"), [(4, 1), (1, 400)])
def test_what_all_have_asked_for_is_told_at_once_when_the_root_may_be_held_back(casts: int, nbytes: int) -> None:
    books = at(casts=16, nbytes=1600)
    for seq in range(1, casts + 1):
        books.opened(PIECE(seq, agree=False, nbytes=nbytes), 0.0)
    for rank in BELOW[:-1]:
        books.read(Read(rank, list(range(1, casts + 1))), 5.0)
    assert books.take(5.0) == [], "the slowest has not asked, so nobody waits for this"
    books.read(Read(7, list(range(1, casts + 1))), 5.0)
    assert books.take(5.0) == [Read(2, list(range(1, casts + 1)), packed(bits(BELOW)))]


@pytest.mark.parametrize("agree", [False, True])
def test_the_last_to_ask_holds_the_root_back_no_longer_than_it_takes(*, agree: bool) -> None:
    """What the others had asked for was passed on before; what is missing is not gathered for another 20 ms."""
    books = at(casts=1)
    books.opened(PIECE(1, agree=agree, nbytes=0), 0.0)
    for rank in BELOW[:-1]:
        books.read(Read(rank, [1]), 5.0)
    assert books.take(6.0) == [Read(2, [1], packed(bits(BELOW[:-1])))]
    books.read(Read(7, [1]), 7.0)
    assert books.take(7.0) == [Read(2, [1], packed(bits([7])))]


@pytest.mark.parametrize("agree", [False, True])
def test_what_a_rank_has_asked_for_is_told_though_another_has_not_reported(*, agree: bool) -> None:
    """Two ranks that are slow with different casts hold the root back by one cast each, not by two."""
    ref: Any = object()
    books, ledger = at(costs=True), Ledger(0, BELOW)
    for seq, slow in ((1, 3), (2, 7)):
        books.opened(PIECE(seq, agree=agree, nbytes=0, ref=ref), 0.0)
        ledger.sent(seq, None, 0, agree=agree)
        for rank in BELOW:
            if rank != slow:
                assert books.report(Report(rank, seq, True), 5.0) == []
    assert books.take(5.0) == []
    for read in books.take(5.0 + DELAY_S):
        for seq in read.seqs:
            ledger.read(unpacked(read.who), seq)
    assert ledger.unread() == (1, 0)
    assert [books.report(Report(slow, seq, True), 6.0) for seq, slow in ((1, 3), (2, 7))] == [
        [Report(2, seq, True, whole=True)] for seq in (1, 2)
    ]
    assert books.take(6.0 + DELAY_S) == []
    assert len(books) == 0


def test_more_than_a_message_holds_is_divided() -> None:
    books = at(casts=1 << 20)
    seqs = list(range(1, 4501))
    for seq in seqs:
        books.opened(PIECE(seq, agree=False), 0.0)
    books.read(Read(3, seqs), 5.0)
    told = books.take(6.0)
    assert [len(read.seqs) for read in told] == [2000, 2000, 500]
    assert [seq for read in told for seq in read.seqs] == seqs


def test_whoever_wants_to_know_who_is_missing_finds_nothing_held() -> None:
    books = at()
    for seq in (1, 2):
        books.opened(agreeing(seq), 0.0)
    said = [Report(3, 1, True), Report(6, 1, False, whole=True), Report(2, 2, True)]
    for report in said:
        assert books.report(report, 0.0) == []
    assert books.asked(5.0) == said
    assert books.asked(5.0) == []
    last = Report(2, 1, True)
    assert books.report(last, 0.0) == [last], "it was asked about: it goes up by itself"
    books.opened(agreeing(3), 5.9)
    late = Report(2, 3, True)
    assert books.report(late, 5.9) == [late], "whoever asked may still wait for an answer"
    books.opened(agreeing(4), 7.0)
    assert books.report(Report(2, 4, True), 7.0) == [], "what comes after it is put together again"


def test_after_an_end_all_goes_up_as_it_comes() -> None:
    books = at()
    books.opened(agreeing(), 0.0)
    books.report(Report(3, 1, True), 0.0)
    books.read(Read(6, [7]), 5.0)
    assert books.stop() == [Report(3, 1, True)]
    assert books.take(5.0) == [Read(2, [1], packed(bits([3]))), Read(2, [7], packed(bits([6])))]
    books.opened(agreeing(2), 0.0)
    assert books.report(Report(2, 2, True), 5.0) == [Report(2, 2, True)]
    books.read(Read(6, [8]), 5.0)
    assert books.take(5.0) == [Read(2, [8], packed(bits([6])))]
    assert len(books) == 0


def test_what_was_dropped_need_not_be_asked_for() -> None:
    books = at()
    books.opened(PIECE(1, agree=False), 0.0)
    books.dropped(1)
    books.dropped(2)
    assert len(books) == 0


def test_a_call_that_failed_on_the_root_is_not_on_the_books() -> None:
    books = at()
    books.opened(PIECE(1, agree=False, failure=FAILED), 0.0)
    assert len(books) == 0


def test_costs_are_told_by_host_with_the_longest_making_of_all() -> None:
    books = at(costs=True)
    books.opened(agreeing(), 0.0)
    below = Cost(9.0, 0.1, 0.1, 0, None, [Spent(6, 2, 3.0, 1.0, 2.0)])
    books.report(Report(2, 1, False, None, Cost(0.5, 0.4, 0.3, 77)), 0.0)
    books.report(Report(3, 1, False, None, None), 0.0)
    (whole,) = books.report(Report(6, 1, False, None, below, whole=True), 0.0)
    assert whole.cost == Cost(0.5, 0.4, 0.3, 77, None, [Spent(2, 2, 0.5, 0.0, 0.5), Spent(6, 2, 3.0, 1.0, 2.0)])


def test_why_a_value_was_not_shared_is_passed_on() -> None:
    books = at(costs=True)
    books.opened(agreeing(), 0.0)
    for rank in BELOW:
        said = books.report(
            Report(rank, 1, False, None, Cost(0.1, 0.1, unshared=f"{rank}") if rank == 3 else None), 0.0
        )
    assert said[0].cost is not None
    assert said[0].cost.unshared == "3"


def test_reports_that_only_tell_costs_are_put_together_and_bounded() -> None:
    books = at(costs=True)
    ref: Any = object()
    for seq in range(1, 2001):
        books.opened(PIECE(seq, agree=False, ref=ref), 0.0)
        books.read(Read(2, [seq], packed(bits(BELOW))), 0.0)
        assert books.report(Report(3, seq, False, None, Cost(0.1, 0.1)), 0.0) == []
    books.take(1.0)
    assert len(books) <= 1024
    for rank in BELOW[:-1]:
        books.report(Report(rank, 2000, False), 0.0)
    assert [one.whole for one in books.report(Report(7, 2000, False), 0.0)] == [True]


def test_of_reports_that_only_tell_costs_the_oldest_is_let_go_of_first() -> None:
    """And none that a verdict waits for, or whose reports have all come."""
    books = at(costs=True)
    ref: Any = object()
    books.opened(agreeing(1), 0.0)
    for seq in range(2, 1026):
        books.opened(PIECE(seq, agree=False, ref=ref), 0.0)  # nobody asks for any, so each stays on the books
    for rank in BELOW:
        books.report(Report(rank, 3, False), 0.0)
    for seq in (1026, 1027, 1028):
        books.opened(PIECE(seq, agree=False, ref=ref), 0.0)
    held = {seq: books.report(Report(2, seq, False), 0.0) == [] for seq in (1, *range(3, 10), 1026, 1027, 1028)}
    let_go_of = [seq for seq, is_held in held.items() if not is_held]
    assert let_go_of == [3, 4, 5, 6], "2 went first, and of 3 all have reported"


def test_what_is_kept_is_the_most_of_any_rank_and_nothing_if_one_keeps_nothing() -> None:
    for less, kept in ((10, 40), (0, 0)):
        books = at()
        books.opened(agreeing(), 0.0)
        for rank in BELOW:
            said = books.report(Report(rank, 1, False, kept=less if rank == 6 else 30 + rank), 0.0)
        assert said[0].kept == (37 if kept else 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from(BELOW), st.integers(1, 3), st.booleans(), st.booleans()),
        st.tuples(st.just("read"), st.sampled_from(BELOW), st.integers(1, 3)),
        st.tuples(st.sampled_from(["flush", "stop", "take"])),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_root_learns_the_same_as_if_each_had_told_it(steps: list[tuple[Any, ...]]) -> None:
    """The books of a root that hears all by itself, and of one that hears it by way of rank 2."""
    topology, books = place(0, 0, _hosts()), at()
    straight, combined = Ledger(0, range(1, 8)), Ledger(0, range(1, 8))
    for seq in (1, 2, 3):
        books.opened(agreeing(seq, nbytes=seq), 0.0)
        for ledger in (straight, combined):
            ledger.sent(seq, None, seq, agree=True)
            for rank in (0, 1, 4, 5):
                ledger.report(rank, seq, None)
                ledger.read(1 << rank, seq)
    verdicts: list[list[Any]] = [[], []]

    def tell(ledger: Ledger, messages: list[Any], said: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Read):
                for seq in message.seqs:
                    ledger.read(unpacked(message.who) or 1 << message.rank, seq)
                continue
            who = topology.members(message.rank) if message.whole else 1 << message.rank
            if message.read:
                ledger.read(who, message.seq)
            said.append(ledger.report(message.rank, message.seq, message.failure, who=who))

    for what, *args in steps:
        if what == "report":
            rank, seq, read, good = args
            message: Any = Report(rank, seq, read, None if good else Failure("materialize", rank, "h", "no"))
            tell(straight, [message], verdicts[0])
            tell(combined, books.report(message, 0.0), verdicts[1])
        elif what == "read":
            message = Read(args[0], [args[1]])
            tell(straight, [message], verdicts[0])
            books.read(message, 0.0)
        elif what == "take":
            tell(combined, list(books.take(1.0)), verdicts[1])
        else:
            tell(combined, list(books.flush() if what == "flush" else books.stop()), verdicts[1])
        given = [[one for one in said if one is not None] for said in verdicts]
        assert given[0] == given[1], "verdicts are the same, and come at the same moment"
    tell(combined, list(books.flush()), verdicts[1])
    tell(combined, list(books.take(1e9)), verdicts[1])
    assert straight.lines() == combined.lines()


@pytest.mark.parametrize(("said", "expected"), [((None, 0.2, 0.1), 0.2), ((None, None, None), None)])
def test_the_longest_hold_of_an_interpreter_goes_up(said: tuple[float | None, ...], expected: float | None) -> None:
    reports = [
        Report(rank, 1, False, None, Cost(0.1, 1.0 - rank / 10, held_s=held_s)) for rank, held_s in enumerate(said)
    ]
    cost = combined_cost(0, reports)
    assert cost is not None
    assert (cost.materialize_s, cost.held_s) == (1.0, expected)

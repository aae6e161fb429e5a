"""Who may send what: nobody speaks for others but those whose messages come by way of it."""

from __future__ import annotations

import pytest

from lazycast.net.members import bits, packed
from lazycast.net.senders import Senders
from lazycast.net.topology import place
from lazycast.net.wire import (
    AnyMessage,
    Cast,
    Failure,
    Gone,
    Loss,
    Pass,
    Read,
    Relayed,
    Report,
    Status,
    Value,
    Verdict,
    WireError,
)

# Rank 0 is the root of host (0, 1); 2 leads (2, 3); 4 leads (4, 5).
HOSTS = [[0, 1], [2, 3], [4, 5]]
LOST = Failure("lost", 5, "h", "was lost")


def senders(rank: int) -> Senders:
    return Senders(place(rank, 0, HOSTS))


HONEST: list[tuple[int, int, AnyMessage]] = [  # to, from, what
    (1, 0, Verdict(1)),
    (2, 0, Cast(1, None, "every", True, None)),
    (3, 2, Status(3, 1, "agreeing", [])),
    (0, 1, Report(1, 1, True)),
    (0, 2, Report(2, 1, True)),
    (0, 2, Report(3, 1, True)),
    (0, 2, Report(2, 1, True, whole=True)),
    (0, 2, Read(2, [1], packed(bits([2, 3])))),
    (2, 3, Read(3, [1, 2])),
    (3, 2, Value(2, 1)),
    (0, 1, Pass(1, 1, 0, [1])),
    (0, 1, Gone(5, LOST)),
    (3, 2, Gone(5, LOST)),
    (0, 2, Report(3, 1, True, Failure("materialize", 3, "h", "of itself"))),
    (0, 2, Report(3, 1, True, Failure("decode", 2, "h", "of the owner on its host"))),
    (0, 2, Report(3, 1, True, Failure("lost", 2, "h", "the owner on its host ended"))),
    (0, 2, Report(3, 1, True, Failure("encode", 0, "h", "there is no code"))),
    (3, 2, Value(2, 1, failure=Failure("materialize", 2, "h", "of itself"))),
    (3, 2, Value(2, 1, failure=Failure("encode", 0, "h", "there is no code"))),
]


@pytest.mark.parametrize(("to", "peer", "message"), HONEST)
def test_what_ranks_send_is_taken(to: int, peer: int, message: AnyMessage) -> None:
    senders(to).check(peer, message)


FORGED: list[tuple[int, int, AnyMessage, str]] = [
    (2, 0, Relayed(-1, 1, 0), "for rank -1, which is not this way"),
    (2, 0, Status(4, 1, "agreeing", []), "for rank 4, which is not this way"),
    (1, 0, Report(0, 1, True), "rank 0 sent a report in the name of rank 0"),  # from above
    (0, 1, Report(2, 1, True), "rank 1 sent a report in the name of rank 2"),
    (0, 2, Report(1, 1, True), "in the name of rank 1"),
    (0, 2, Report(0, 1, True), "in the name of rank 0"),
    (0, 1, Report(99, 1, True), "in the name of rank 99"),
    (0, 1, Report(-1, 1, True), "in the name of rank -1"),
    (0, 2, Report(1, 1, True, whole=True), "in the name of rank 1"),
    (0, 2, Report(2, 1, True, Failure("materialize", 2, "h", "x"), whole=True), "a failure in the name of many"),
    (0, 2, Read(2, [1], packed(bits([1, 2]))), "rank 2 sent a read in the name of ranks that are not behind it"),
    (0, 1, Read(1, [1], packed(bits([2]))), "rank 1 sent a read in the name of ranks that are not behind it"),
    (0, 1, Read(1, [1], packed(bits([99_999]))), "in the name of ranks that are not behind it"),
    (0, 1, Verdict(1), "rank 1 sent a verdict, which only comes from rank None"),
    (3, 4, Cast(1, None, "every", True, None), "rank 4 sent a cast, which only comes from rank 2"),
    (1, 2, Status(1, 1, "agreeing", []), "only comes from rank 0"),
    (3, 2, Value(3, 1), "rank 2 sent a value in the name of rank 3"),
    (0, 2, Value(2, 1), "rank 2 sent a value in the name of rank 2"),  # of another host
    (0, 1, Pass(0, 1, 1, [0]), "rank 1 sent a pass in the name of rank 0"),
    (1, 2, Gone(5, LOST), "rank 2 sent a gone, which only comes from neighbours in the tree"),
    (0, 1, Gone(4, LOST), "rank 1 sent a gone of rank 4 that makes no sense"),  # the failure is that of rank 5
    (0, 1, Gone(1, Failure("decode", 1, "h", "x")), "rank 1 sent a gone of rank 1 that makes no sense"),
]


@pytest.mark.parametrize(("to", "peer", "message", "text"), FORGED)
def test_what_is_said_in_the_name_of_others_is_refused(to: int, peer: int, message: AnyMessage, text: str) -> None:
    with pytest.raises(WireError, match=text):
        senders(to).check(peer, message)


def lost(rank: int, by: int | None) -> Gone:
    loss = Loss(by, "unix socket", "it ended") if by is not None else None
    return Gone(rank, Failure("lost", rank, "h", "was lost", loss=loss))


@pytest.mark.parametrize(
    ("to", "peer", "message"),
    [
        (0, 2, lost(3, 2)),  # of one behind it
        (0, 2, lost(2, None)),  # of itself
        (0, 2, Gone(3, Failure("closed", 3, "h", "has closed"))),
        (1, 0, lost(5, 4)),  # from above
        (2, 0, Gone(1, Failure("closed", 1, "h", "has closed"))),
    ],
)
def test_the_end_of_those_a_rank_speaks_for_is_taken_as_it_is_told(to: int, peer: int, message: Gone) -> None:
    assert senders(to).attributed(peer, message) == message


def test_who_says_that_another_is_lost_is_named() -> None:
    told = senders(0).attributed(2, lost(1, 3))
    assert told is not None
    assert told.failure.message == "was lost; so says rank 3"


@pytest.mark.parametrize(
    "message",
    [
        Gone(1, Failure("closed", 1, "h", "has closed")),
        lost(1, None),
        lost(1, 0),  # noticed by us: so we know
        lost(1, 4),  # by one that does not speak by way of it
    ],
)
def test_what_a_child_has_only_heard_of_others_is_no_news(message: Gone) -> None:
    assert senders(0).attributed(2, message) is None


OF_OTHERS = [
    *((2, 3, Failure(kind, 3, "h", "of itself")) for kind in ("lost", "closed")),
    *((2, 3, Failure(kind, 5, "h", "of another host")) for kind in ("lost", "closed", "materialize", "timeout")),
    *(
        (2, 3, Failure(kind, 0, "h", "of the root"))
        for kind in ("lost", "closed", "materialize", "refused", "diverged")
    ),
    *((2, 2, Failure(kind, 99, "h", "of nobody")) for kind in ("materialize", "encode")),
    (2, 2, Failure("mismatch", -1, "h", "of nobody")),
    (1, 1, Failure("closed", 4, "h", "of another host")),
]


@pytest.mark.parametrize(("peer", "rank", "failure"), OF_OTHERS)
def test_a_report_says_nothing_of_who_its_sender_cannot_know(peer: int, rank: int, failure: Failure) -> None:
    with pytest.raises(WireError, match=f"sent a report that says of rank {failure.rank} what rank {rank} cannot know"):
        senders(0).check(peer, Report(rank, 1, True, failure))


@pytest.mark.parametrize(
    "failure",
    [
        *(Failure(kind, 2, "h", "of itself") for kind in ("lost", "closed")),
        *(Failure(kind, 3, "h", "of another") for kind in ("lost", "closed", "materialize", "encode", "timeout")),
        *(Failure(kind, 0, "h", "of the root") for kind in ("lost", "closed", "materialize")),
    ],
)
def test_a_value_fails_of_its_sender_alone(failure: Failure) -> None:
    with pytest.raises(WireError, match=f"rank 2 sent a value with a failure in the name of rank {failure.rank}"):
        senders(3).check(2, Value(2, 1, failure=failure))

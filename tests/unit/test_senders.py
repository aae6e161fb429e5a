"""Who may send what: nobody speaks for others but those whose messages come by way of it."""

from __future__ import annotations

import pytest

from lazycast.senders import Senders
from lazycast.topology import place
from lazycast.wire import (
    AnyMessage,
    Cast,
    Failure,
    Gone,
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
    (2, 3, Read(3, [1, 2])),
    (3, 2, Value(2, 1)),
    (0, 1, Pass(1, 1, 0, [1])),
    (0, 1, Gone(5, LOST)),
    (3, 2, Gone(5, LOST)),
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
    (0, 1, Verdict(1), "rank 1 sent a verdict, which only comes from rank None"),
    (3, 4, Cast(1, None, "every", True, None), "rank 4 sent a cast, which only comes from rank 2"),
    (1, 2, Status(1, 1, "agreeing", []), "only comes from rank 0"),
    (3, 2, Value(3, 1), "rank 2 sent a value in the name of rank 3"),
    (0, 2, Value(2, 1), "rank 2 sent a value in the name of rank 2"),  # of another host
    (0, 1, Pass(0, 1, 1, [0]), "rank 1 sent a pass in the name of rank 0"),
]


@pytest.mark.parametrize(("to", "peer", "message", "text"), FORGED)
def test_what_is_said_in_the_name_of_others_is_refused(to: int, peer: int, message: AnyMessage, text: str) -> None:
    with pytest.raises(WireError, match=text):
        senders(to).check(peer, message)

"""What goes up is sent when it is decided, and nothing is held when somebody has ended or wants to know."""

from __future__ import annotations

import pytest

from lazycast.net import wire
from lazycast.net.combining import Combining
from lazycast.net.members import bits, packed
from lazycast.net.topology import place
from lazycast.net.upwards import Upwards
from lazycast.net.wire import AnyMessage, Cast, Drop, Read, Report, RollCall

CAST = Cast(1, None, "every", True, None)


class Leader:
    """Rank 1, which leads the host of rank 2: what it sends, and how often it has woken its engine."""

    def __init__(self) -> None:
        self.sent: list[AnyMessage] = []
        self.woken = 0
        combining = Combining(place(1, 0, [[0], [1, 2]]), 64, 1 << 20, costs=False)
        self.up = Upwards(combining, 1, lambda header: self.sent.append(wire.decode(header)), self._wake)
        self.up.look_at(CAST)

    def _wake(self) -> None:
        self.woken += 1


@pytest.mark.parametrize("how", ["an end", "a roll call"])
def test_what_is_held_is_sent(how: str) -> None:
    leader = Leader()
    leader.up.take(Report(2, 1, False))
    assert leader.sent == []
    if how == "an end":
        leader.up.stop()
    else:
        leader.up.look_at(RollCall())
    assert leader.sent == [Report(2, 1, False)]
    leader.up.take(Report(1, 1, False))
    assert leader.sent[1:] == [Report(1, 1, False)]


def test_the_last_report_sends_one_for_all_and_says_so() -> None:
    leader, said = Leader(), []
    leader.up.said = lambda kind, seq: said.append((kind, seq))
    leader.up.take(Report(2, 1, True))
    assert said == []
    leader.up.take(Report(1, 1, True))
    assert leader.sent == [Report(1, 1, True, whole=True)]
    assert said == [("report", 1)]


def test_reads_are_sent_when_they_are_due_and_the_engine_is_woken_for_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lazycast.net.combining.DELAY_S", 1000.0)  # this test may take longer than a few milliseconds
    leader = Leader()
    leader.up.take(Read(2, [1]))
    leader.up.take(Read(1, [1]))
    assert (leader.sent, leader.woken) == ([], 1)
    due_s = leader.up.combining.due_s
    assert due_s is not None
    assert leader.up.tell_reads(due_s - 1) == due_s
    assert leader.up.tell_reads(due_s) is None
    assert leader.sent == [Read(1, [1], packed(bits([1, 2])))]
    assert leader.up.tell_reads(due_s + 1) is None


def test_an_end_sends_what_was_read_too() -> None:
    leader = Leader()
    leader.up.take(Read(2, [1]))
    leader.up.stop()
    assert leader.sent == [Read(1, [1], packed(bits([2])))]


def test_what_was_dropped_is_waited_for_no_more() -> None:
    leader = Leader()
    leader.up.look_at(Drop(1))
    for rank in (1, 2):
        leader.up.take(Report(rank, 1, False))
    assert leader.sent == [Report(1, 1, True, whole=True)]
    assert len(leader.up.combining) == 0

"""Roll calls: nobody is called on without a reason, queries wait for the answers, and silence is measured."""

from __future__ import annotations

import math
import time

import pytest

from lazycast.core.inquiry.rollcall import RollCalls
from lazycast.net.topology import place
from lazycast.net.wire import Query, Silence


def query(token: int, within_s: float = 1.0) -> Query:
    return Query(9, token, 1, None, within_s)


def silences(calls: RollCalls, now_s: float, heard: dict[int, float] | None = None) -> list[Silence]:
    ago = {rank: now_s - at_s for rank, at_s in (heard or {}).items()}
    return calls.silences(now_s, ago.get, 100)


def test_a_query_is_answered_as_soon_as_everybody_has_answered() -> None:
    calls = RollCalls([1, 2])
    assert calls.next_s() is None
    assert not calls.waiting
    assert calls.ask(query(7), 10.0)
    assert calls.next_s() == 10.6
    assert calls.waiting
    calls.present(1, 10.1)
    assert calls.ready(10.1) == []
    calls.present(2, 10.2)
    assert calls.ready(10.2) == [query(7)]
    assert silences(calls, 10.2) == []
    assert calls.ready(99.0) == []
    assert not calls.waiting


def test_who_does_not_answer_is_silent_since_the_first_call_and_the_query_gets_its_answer_in_time() -> None:
    calls = RollCalls([1, 2])
    calls.ask(query(7), 10.0)
    calls.present(1, 10.1)
    assert calls.ready(10.59) == []
    assert calls.ready(10.6) == [query(7)]
    assert calls.ask(query(8), 12.0)
    calls.present(1, 12.1)
    assert calls.ready(12.6) == [query(8)]
    assert silences(calls, 12.5, heard={2: 9.5}) == [Silence(2, 2.5, 3.0)]
    calls.present(2, 13.0)
    assert silences(calls, 13.0) == []


def test_when_a_far_rank_was_heard_is_known_from_its_last_answer() -> None:
    calls = RollCalls([1])
    calls.ask(query(7), 10.0)
    assert silences(calls, 10.5) == [Silence(1, 0.5, None)]
    calls.present(1, 11.0)
    calls.ask(query(8), 20.0)
    assert silences(calls, 21.0) == [Silence(1, 1.0, 10.0)]
    calls.heard(1, 20.5)
    assert silences(calls, 21.0) == [Silence(1, 1.0, 0.5)], "what it had sent before is no answer"


def test_who_speaks_for_others_was_heard_for_them_and_for_nobody_else() -> None:
    calls = RollCalls(range(1, 8), place(0, 0, [[0, 1], [2, 3], [4], [5], [6, 7]]).members)
    calls.ask(query(7), 10.0)
    calls.heard(2, 8.0, whole=True)
    calls.heard(6, 9.0, whole=True)
    ago = {silence.rank: silence.heard_s for silence in silences(calls, 10.5)}
    assert ago == {1: None, 2: 2.5, 3: 2.5, 4: None, 5: None, 6: 1.5, 7: 1.5}


def test_who_is_silent_is_known_soon_in_a_large_group() -> None:
    """The root's lane stands still meanwhile."""
    hosts = [list(range(first, first + 8)) for first in range(0, 10_000, 8)]
    calls = RollCalls(range(1, 10_000), place(0, 0, hosts).members)
    calls.ask(query(7), 10.0)
    for leader in range(8, 80, 8):
        calls.heard(leader, 9.0, whole=True)
    began_s = time.process_time()
    assert [silence.rank for silence in silences(calls, 10.5)] == list(range(1, 101))
    assert time.process_time() - began_s < 2.0


def test_queries_that_come_together_share_a_call() -> None:
    calls = RollCalls([1])
    assert calls.ask(query(1), 10.0)
    assert not calls.ask(query(2, within_s=10.0), 10.01)
    assert calls.ask(query(3), 10.5), "an older call may have been answered before this query came"
    calls.present(1, 10.6)
    assert calls.ready(10.6) == [query(1), query(3), query(2, within_s=10.0)]
    assert calls.ask(query(4), 10.61), "all have answered the last one"


def test_nobody_waits_for_a_rank_that_has_ended() -> None:
    calls = RollCalls([1, 2])
    calls.ask(query(7), 10.0)
    calls.gone(2)
    calls.present(1, 10.1)
    calls.present(2, 10.1)
    assert calls.ready(10.1) == [query(7)]
    assert silences(calls, 10.1) == []


@pytest.mark.parametrize("within_s", [math.inf, math.nan, 1e300, -1e300, -math.inf])
def test_a_rank_that_asks_for_a_time_that_cannot_be_harms_nobody(within_s: float) -> None:
    """The engine's thread sleeps until then, and there are times for which no thread can sleep."""
    calls = RollCalls([1])
    calls.ask(query(7, within_s), 10.0)
    next_s = calls.next_s()
    assert next_s is not None
    assert 10.0 <= next_s < 1e6
    assert calls.ready(next_s) == [query(7, within_s)] or math.isnan(within_s)
    assert not calls.waiting


def test_queries_are_answered_in_the_order_in_which_their_time_ends() -> None:
    calls = RollCalls([1])
    for token, within_s in enumerate((3.0, 1.0, 2.0)):
        calls.ask(query(token, within_s), 10.0)
    assert [q.token for q in calls.ready(11.25)] == [1, 2]
    assert calls.next_s() == pytest.approx(11.8)
    calls.gone(1)
    assert [q.token for q in calls.ready(11.25)] == [0]


def test_an_answer_costs_the_same_however_many_queries_wait() -> None:
    """Each of many ranks answers each roll call, and all of their calls may be waiting, when one rank is frozen."""
    calls = RollCalls(range(1, 1000))
    for token in range(50_000):
        calls.ask(Query(token % 50, token, 1, None, 1.0), 10.0)
    began_s = time.process_time()
    for rank in range(1, 999):
        calls.present(rank, 10.1)
        assert calls.ready(10.1) == []
        assert calls.next_s() is not None
    assert time.process_time() - began_s < 0.5


def test_a_rank_that_asks_again_and_again_about_one_call_has_one_query_open() -> None:
    calls = RollCalls([1])
    assert calls.ask(query(7, 60.0), 10.0)
    for _ in range(100):
        assert not calls.ask(query(7, 60.0), 11.0)
    calls.present(1, 12.0)
    assert calls.ready(12.0) == [query(7, 60.0)]
    assert calls.ask(query(7), 13.0)


def test_a_rank_that_asks_about_ever_new_calls_fills_no_memory_and_keeps_nobody_else_from_asking() -> None:
    calls = RollCalls([1])
    for token in range(10_000):
        calls.ask(query(token, 60.0), 10.0)
    other = Query(2, 1, 1, None, 1.0)
    calls.ask(other, 10.0)
    calls.present(1, 11.0)
    ready = calls.ready(11.0)
    assert len(ready) == 4096 + 1
    assert other in ready

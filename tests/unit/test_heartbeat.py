"""Signs of life: given on time; who gives none is said to be silent once, and once that it is back."""

from __future__ import annotations

from lazycast.net.heartbeat import MISSED, Heartbeat, News

NOTHING = News(False, [], [])
BEAT = News(True, [], [])


def test_a_sign_of_life_is_given_once_an_interval() -> None:
    heartbeat = Heartbeat([1], 100.0, 5.0)
    heard = {1: 1e9}
    assert heartbeat.turn(104.9, heard) == NOTHING
    assert heartbeat.turn(105.0, heard) == BEAT
    assert heartbeat.turn(105.1, heard) == NOTHING
    assert heartbeat.next_s == 110.0
    assert heartbeat.turn(110.5, heard) == BEAT


def turns(heartbeat: Heartbeat, heard: dict[int, float], start: int, stop: int) -> list[tuple[int, News]]:
    """Turn once a second; return what was said, and when."""
    said = [(second, heartbeat.turn(float(second), heard)) for second in range(start, stop)]
    return [(second, news) for second, news in said if news.silent or news.back]


def test_a_neighbour_that_falls_silent_is_named_once_and_once_when_it_is_back() -> None:
    heartbeat = Heartbeat([1, 2], 0.0, 1.0)
    heard = {1: 3.0, 2: 1e9}
    said = turns(heartbeat, heard, 1, 30)
    assert said == [(3 + MISSED + 1, News(True, [(1, MISSED + 1.0)], []))]
    heard[1] = 29.5
    assert heartbeat.turn(30.0, heard) == News(True, [], [(1, 26.5)])
    assert heartbeat.turn(31.0, heard) == BEAT


def test_a_neighbour_that_was_never_heard_is_silent_since_the_beginning() -> None:
    heartbeat = Heartbeat([1], 0.0, 1.0)
    said = turns(heartbeat, {}, 1, 30)
    assert said == [(MISSED + 1, News(True, [(1, MISSED + 1.0)], []))]
    assert turns(heartbeat, {1: 30.0}, 30, 32) == [(30, News(True, [], [(1, 30.0)]))]


def test_who_slept_itself_accuses_nobody_of_that_time() -> None:
    heartbeat = Heartbeat([1], 0.0, 1.0)
    heard = {1: 2.0}
    assert turns(heartbeat, heard, 1, 4) == []
    assert turns(heartbeat, heard, 60, 60 + MISSED) == []  # what came meanwhile is read in these seconds
    assert [second for second, _ in turns(heartbeat, heard, 60 + MISSED, 90)] == [60 + MISSED + 1]


def test_nobody_who_has_ended_is_called_silent() -> None:
    heartbeat = Heartbeat([1, 2], 0.0, 1.0)
    heartbeat.gone(1)
    assert turns(heartbeat, {2: 1e9}, 1, 30) == []

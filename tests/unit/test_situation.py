"""The words for whom a call waits."""

from __future__ import annotations

from lazycast.core.situation import Situation, ago, ranks, silent_words
from lazycast.errors import CastTimeoutError
from lazycast.net.wire import Silence


def test_ranks_are_named() -> None:
    assert (ranks([]), ranks([3]), ranks({2, 1})) == ("nobody", "rank 3", "ranks 1, 2")
    assert ranks(range(300)).endswith(", 98, 99 and 200 more")


def test_when_it_was_heard() -> None:
    assert (ago(None), ago(1.26)) == ("never heard", "last heard 1.3 s ago")


def test_a_situation_in_a_line() -> None:
    assert Situation("not arrived", (0,)).text() == "not arrived; missing: rank 0"
    silences = (Silence(3, 2.0, 5.0),)
    full = Situation("agreeing", (3,), (0, 1), silences, "rank 3 is silent", 64, ("made at f.py:1",))
    expected = "agreeing; missing: rank 3; answered: ranks 0, 1; rank 3 is silent; 64 bytes; made at f.py:1"
    assert full.text() == expected
    exc = full.explain(CastTimeoutError("x"), operation="broadcast", key="k", seq=None, age_s=1.5)
    assert (exc.operation, exc.key, exc.seq, exc.phase, exc.age_s) == ("broadcast", "k", None, "agreeing", 1.5)
    assert (exc.missing, exc.answered, exc.silent, exc.nbytes) == ((3,), (0, 1), (3,), 64)


def test_who_is_silent_is_accused_and_those_behind_it_are_not() -> None:
    silences = [Silence(4, 2.0), Silence(1, 2.04, 5.0), Silence(2, 0.5, 0.6)]
    said = silent_words(silences, lambda r: [4, 5] if r == 1 else [], lambda r: f"why {r}")
    assert said == (
        "rank 1 has not answered for 2.0 s, last heard 5.0 s ago (why 1); "
        "rank 2 has not answered for 0.5 s, last heard 0.6 s ago (why 2); behind it rank 4"
    )


def test_nothing_is_said_of_when_a_far_rank_was_heard() -> None:
    assert silent_words([Silence(4, 2.0)], lambda _: [], lambda _: "why") == "rank 4 has not answered for 2.0 s (why)"

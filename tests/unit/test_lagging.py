"""Who stops asking while casts go on is named, once; a group that rests is left alone."""

from __future__ import annotations

import math

from lazycast.core.lagging import Lag, Lagging
from lazycast.core.ledger import Ledger

AFTER_S = 10.0


def books() -> tuple[Ledger, Lagging]:
    ledger = Ledger(0, [1, 2, 3])
    return ledger, Lagging(ledger, AFTER_S)


def test_a_rank_that_lags_behind_the_others_is_named_once_with_its_oldest_cast() -> None:
    ledger, lagging = books()
    for seq in (1, 2):
        ledger.sent(seq, f"k{seq}", 5, agree=False, sent_s=100.0 + seq)
        for rank in (1, 3):
            ledger.read(1 << rank, seq)
    assert lagging.turn(110.9) == []
    assert lagging.next_s == 111.0
    assert lagging.turn(111.0) == [Lag(2, 10.0, 2, 1, "k1")]
    assert lagging.turn(200.0) == []


def test_it_is_named_again_only_after_it_has_asked() -> None:
    ledger, lagging = books()
    ledger.sent(1, None, 5, agree=False, sent_s=100.0)
    ledger.read(1 << 1, 1)
    assert [lag.rank for lag in lagging.turn(110.0)] == [2, 3]
    ledger.read(1 << 2, 1)
    ledger.sent(2, None, 5, agree=False, sent_s=115.0)
    ledger.read(1 << 1, 2)
    assert lagging.turn(lagging.next_s) == []
    assert [(lag.rank, lag.seq) for lag in lagging.turn(130.0)] == [(2, 2)]


def test_where_nobody_asks_and_nothing_is_cast_nobody_is_named() -> None:
    ledger, lagging = books()
    ledger.sent(1, "k", 5, agree=False, sent_s=100.0)
    assert lagging.turn(150.0) == []
    ledger.sent(2, "k", 5, agree=False, sent_s=155.0)  # the root goes on
    assert [(lag.rank, lag.casts, lag.seq) for lag in lagging.turn(160.0)] == [(1, 2, 1), (2, 2, 1), (3, 2, 1)]


def test_of_young_casts_nothing_is_said_and_it_looks_again_in_time() -> None:
    ledger, lagging = books()
    ledger.sent(1, "k", 5, agree=False, sent_s=100.0)
    ledger.read(1 << 1, 1)
    assert lagging.turn(103.0) == []
    assert lagging.next_s == 110.0


def test_without_warnings_nobody_is_named() -> None:
    ledger = Ledger(0, [1, 2])
    lagging = Lagging(ledger, math.inf)
    ledger.sent(1, "k", 5, agree=False, sent_s=0.0)
    ledger.read(1 << 1, 1)
    assert lagging.turn(1e6) == []
    assert lagging.next_s == math.inf, "there is nothing to come back for"

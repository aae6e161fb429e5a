"""The root is told in batches of what has been asked for, and at once when it may be held back."""

from __future__ import annotations

import pytest

from lazycast.core.reads import DELAY_S, Reads


def test_reads_are_gathered_for_a_while_and_told_together() -> None:
    reads = Reads(64, 1 << 20)
    assert reads.add(1, 10)
    assert reads.take(5.0) == [1], "the first is told at once"
    assert reads.add(2, 10)
    assert not reads.add(3, 10)
    assert reads.due_s == 5.0 + DELAY_S
    assert reads.take(5.0) == []
    assert reads.take(5.0 + DELAY_S) == [2, 3]
    assert (reads.due_s, len(reads)) == (None, 0)
    assert reads.take(9.0) == []


def test_a_read_after_a_while_is_told_at_once() -> None:
    reads = Reads(64, 1 << 20)
    reads.add(1, 10)
    reads.take(5.0)
    assert reads.add(2, 10)
    assert reads.take(7.0) == [2]


@pytest.mark.parametrize(("casts", "nbytes"), [(4, 1), (1, 400)])
def test_a_quarter_of_the_window_is_told_at_once(casts: int, nbytes: int) -> None:
    reads = Reads(16, 1600)
    reads.told_s = 5.0
    for seq in range(casts - 1):
        reads.add(seq, nbytes)
    assert reads.add(casts, nbytes)
    assert not reads.add(casts + 1, nbytes)
    assert len(reads.take(5.0)) == casts + 1


def test_the_count_of_bytes_begins_anew() -> None:
    reads = Reads(64, 1600)
    reads.add(1, 399)
    reads.take(6.0)
    reads.add(2, 1)
    assert reads.due_s == 6.0 + DELAY_S

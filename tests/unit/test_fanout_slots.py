"""Free space against a model: a set of pages that are taken."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from lazycast.net.host.slots import FreeSpace

SIZE = 64


class FreeSpaceMachine(RuleBasedStateMachine):
    """Takes and gives extents of a small range."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.space = FreeSpace(SIZE)
        self.used: set[int] = set()

    @rule(target=taken, nbytes=st.integers(1, SIZE // 3))
    def take(self, nbytes: int) -> object:
        fitting = [at for at in range(SIZE - nbytes + 1) if not self.used & set(range(at, at + nbytes))]
        offset = self.space.take(nbytes)
        if not fitting:
            assert offset is None
            return multiple()
        assert offset == fitting[0]  # the lowest place; so it overlaps nothing
        self.used |= set(range(offset, offset + nbytes))
        return offset, nbytes

    @rule(extent=consumes(taken))
    def give(self, extent: tuple[int, int]) -> None:
        offset, nbytes = extent
        self.space.give(offset, nbytes)
        self.used -= set(range(offset, offset + nbytes))

    @invariant()
    def free_is_what_is_not_taken_and_neighbours_are_joined(self) -> None:
        extents = self.space.extents()
        assert {at for start, end in extents for at in range(start, end)} == set(range(SIZE)) - self.used
        assert all(start < end for start, end in extents)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(extents))

    def teardown(self) -> None:
        free = {at for start, end in self.space.extents() for at in range(start, end)}
        assert free | self.used == set(range(SIZE))


TestFreeSpace = FreeSpaceMachine.TestCase


def test_all_of_it_can_be_taken_and_given_back_in_any_order() -> None:
    space = FreeSpace(12)
    assert [space.take(4) for _ in range(4)] == [0, 4, 8, None]
    assert space.extents() == []
    space.give(0, 4)
    space.give(8, 4)
    assert space.extents() == [(0, 4), (8, 12)]
    assert space.take(5) is None
    space.give(4, 4)
    assert space.extents() == [(0, 12)]
    assert space.take(12) == 0

"""The orders in which the steps of a case can happen: those that can be told apart, each once.

Steps of different ranks do not depend on each other, but for a message, which is taken after it was put. So orders that
are the same on each rank are one. To go through these and little more, an order is begun anew only where two steps of
a rank might as well have come the other way round (source sets), and not with what has been begun there (sleep sets):
Abdulla, Aronis, Jonsson, Sagonas: Optimal dynamic partial order reduction, POPL 2014, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from unittest import mock

from lazycast.core import engine

from .protocol_world import Case, Step, StepPerformer, World, timeless

Check = Callable[[World], None]
_NONE = -1


def explore(case: Case, check: Check, *, departures: int | None = None) -> int:
    """Run a case in every order of its steps, and check each end. Returns how many orders there were.

    Args:
        departures: where that is too much: how often an order may depart from always taking the first step there is.
    """
    with mock.patch.object(engine, "Performer", StepPerformer), timeless():
        if departures is None:
            return _Orders(case, check).go_through()
        return _depart(case, check, departures)


@dataclass
class _Place:
    """Where orders are before one of their steps. The steps before it are numbered from 0."""

    steps: list[Step]  # that are possible
    asleep: set[Step]  # to begin with one of these leads where another order has been
    last: tuple[int, ...]  # the last step of each rank
    begin: list[Step] = field(default_factory=list)  # what has been begun with, or is to be
    step: Step | None = None  # that an order takes now
    after: tuple[int, ...] = ()  # of each rank, the last step that this one comes after wherever the end is the same

    @property
    def rank(self) -> int:
        assert self.step is not None
        return self.step[1]


class _Orders:
    """Goes through the orders of a case, depth first: the path is what the present one has taken."""

    def __init__(self, case: Case, check: Check) -> None:
        self._case, self._check = case, check
        self._path: list[_Place] = []

    def go_through(self) -> int:
        world, ends = World(self._case), 0
        self._path.append(_Place(world.enabled(), set(), (_NONE,) * self._case.size))
        while True:
            ends += self._go_on(world)
            if not self._go_back():
                return ends
            world = World(self._case)
            for place in self._path[:-1]:
                assert place.step is not None
                world.do(place.step)

    def _go_on(self, world: World) -> bool:
        """Take steps until none is left. Returns whether that is an end where no other order has been."""
        while (place := self._path[-1]).steps:
            if not place.begin:
                place.begin += [step for step in place.steps if step not in place.asleep][:1]
            step = next((step for step in place.begin if step not in place.asleep), None)
            if step is None:
                return False
            self._take(place, step, world.put_by(step))
            world.do(step)
            last = tuple(len(self._path) - 1 if rank == step[1] else it for rank, it in enumerate(place.last))
            asleep = {other for other in place.asleep if other[1] != step[1]}  # the rest is another order from here on
            self._path.append(_Place(world.enabled(), asleep, last))
            # What a step makes impossible (a death, all that its rank had to do) is not met later on: before it, then.
            stopped = [other for other in place.steps if other != step and other not in self._path[-1].steps]
            place.begin += [other for other in stopped if other not in place.begin]
        _checked(world, self._check, [place.step for place in self._path[:-1] if place.step])
        return True

    def _go_back(self) -> bool:
        """Return to the last place from where something else is to be begun; whether there is one."""
        self._path.pop()
        while self._path:
            place = self._path[-1]
            assert place.step is not None
            place.asleep.add(place.step)
            if not place.asleep.issuperset(place.begin):
                return True
            self._path.pop()
        return False

    def _take(self, place: _Place, step: Step, cause: int) -> None:
        """Note a step, and, if it might have come before the last one of its rank, what to begin with there for that.

        Args:
            cause: the number of the step that put the message which this one takes.
        """
        rank = step[1]
        before = place.last[rank]
        nothing = (_NONE,) * self._case.size
        known = [self._path[it].after if it != _NONE else nothing for it in (before, cause)]
        after = [max(pair) for pair in zip(*known, strict=True)]
        after[rank] = len(self._path) - 1
        place.step, place.after = step, tuple(after)
        if before == _NONE:
            return
        there = self._path[before]
        # What takes no message is possible only if it was before: nobody but its own rank makes it so.
        possible = step in there.steps if cause == _NONE else self._path[cause].after[rank] < before
        if possible and step != there.step:
            self._begin(there, before, rank)

    def _begin(self, there: _Place, before: int, rank: int) -> None:
        """Have an order begun in which the last step comes before the one that is taken there, number `before`.

        It may begin with any of the steps since that can come first where all those are left out that come after it.
        """
        last = len(self._path) - 1
        kept = [it for it in range(before + 1, last) if self._path[it].after[rank] < before] + [last]
        first: list[Step] = []
        for number in kept:
            place = self._path[number]
            if all(place.after[self._path[it].rank] < it for it in kept if it < number):
                first += [place.step] if place.step else []
        if there.asleep.isdisjoint(first) and not any(step in there.begin for step in first):
            there.begin.append(first[-1])


def _depart(case: Case, check: Check, departures: int) -> int:
    """As `explore`, of the orders that depart some times from a steady one."""
    ends = 0
    todo: list[tuple[list[Step], int]] = [([], departures)]
    while todo:
        path, left = todo.pop()
        world = World(case)
        for step in path:
            world.do(step)
        while steps := world.enabled():
            if left:
                todo += [([*path, step], left - 1) for step in reversed(steps[1:])]
            path = [*path, steps[0]]
            world.do(steps[0])
        ends += 1
        _checked(world, check, path)
    return ends


def _checked(world: World, check: Check, path: Sequence[Step]) -> None:
    world.settle()
    try:
        check(world)
    except AssertionError as exc:
        raise AssertionError(f"{exc}\nafter {path}") from exc

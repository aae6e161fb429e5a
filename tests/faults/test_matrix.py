"""A part of the fault matrix: some cells in `make test`, some more in CI; all of it with `make test-faults`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests import namespaces
from tests.faults.matrix import start, verdict
from tests.faults.matrix.combinations import Combination, every, few, some
from tests.faults.matrix.network import CASES, Network, network

ATTEMPTS = 4
SELDOM, LONG = pytest.mark.exhaustive, (pytest.mark.exhaustive, pytest.mark.long)


def weighed(every: Iterable[Combination], few: Iterable[Combination], some: Iterable[Combination]) -> list[Any]:
    """Mark what `make test` leaves out, and what CI does."""
    here, there = set(few), set(some)
    return [it if it in here else pytest.param(it, marks=SELDOM if it in there else LONG) for it in every]


def judge(it: Combination, run: Callable[[int], start.Seen]) -> None:
    """Run a combination; with more patience if its fault, or an answer, came too late, and for no other reason."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            verdict.check(it, run(attempt))
        except verdict.TooLate as exc:
            if attempt == ATTEMPTS:
                raise
            sys.stderr.write(f"run again: {exc}\n")
        else:
            return


@pytest.fixture(scope="module")
def zygotes() -> Iterator[start.Zygotes]:
    with start.Zygotes() as them:
        yield them


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    namespaces.need()
    with network() as it:
        yield it


@pytest.mark.parametrize("it", weighed(every(), few(), some()), ids=lambda it: it.id)
def test_every_survivor_is_told_and_has_nothing_left_over(it: Combination, zygotes: start.Zygotes) -> None:
    judge(it, lambda patience: start.run(it, zygotes, patience=patience))


@pytest.mark.parametrize("it", weighed(CASES, (CASES[-2],), CASES[2::4]), ids=lambda it: it.id)
def test_over_a_wire_every_survivor_is_told(it: Combination, net: Network) -> None:
    judge(it, lambda patience: net.run(it, patience=patience))

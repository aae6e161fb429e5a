"""A representative part of the fault matrix; all of it with `-m ""`, or `make test-faults`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from tests import namespaces
from tests.faults.matrix import start, verdict
from tests.faults.matrix.combinations import Combination, every, some
from tests.faults.matrix.network import CASES, Network, network

CHOSEN = list(some())
REST = [it for it in every() if it not in CHOSEN]


def twice(it: Combination, run: Callable[[], start.Seen]) -> None:
    """Run a combination, and once more if its fault came too late, as on a busy machine; for no other reason."""
    try:
        verdict.check(it, run())
    except verdict.TooLate as exc:
        sys.stderr.write(f"run again: {exc}\n")
        verdict.check(it, run())


@pytest.fixture(scope="module")
def zygotes() -> Iterator[start.Zygotes]:
    with start.Zygotes() as them:
        yield them


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    namespaces.need()
    with network() as it:
        yield it


@pytest.mark.parametrize(
    "it", [*CHOSEN, *(pytest.param(it, marks=pytest.mark.exhaustive) for it in REST)], ids=lambda it: it.id
)
def test_every_survivor_is_told_and_has_nothing_left_over(it: Combination, zygotes: start.Zygotes) -> None:
    twice(it, lambda: start.run(it, zygotes))


@pytest.mark.parametrize(
    "it",
    [*CASES[::4], *(pytest.param(it, marks=pytest.mark.exhaustive) for it in CASES if it not in CASES[::4])],
    ids=lambda it: it.id,
)
def test_over_a_wire_every_survivor_is_told(it: Combination, net: Network) -> None:
    twice(it, lambda: net.run(it))

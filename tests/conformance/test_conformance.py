"""The conformance suite, on ranks that are threads of this process. `tests/launch` runs it under real launchers."""

from __future__ import annotations

import pytest

from lazycast import launch
from lazycast.start.discovery import resolve
from lazycast.testing import Outcome, run
from lazycast.testing.kit import behaviours, name_of

SELDOM = 2  # what two ranks mean shows with one and with four nearly always
CASES = [("auto", size, name_of(fn)) for size in (1, SELDOM, 4) for fn in behaviours(size)]
# The network path, which ranks of one host do not take by themselves; five ranks, so that one passes messages on.
CASES += [(False, 5, name_of(fn)) for fn in behaviours(5) if not name_of(fn).startswith("contract.")]

#: What takes seconds: one size shows it, the largest.
HEAVY = (
    "load.a_thousand_keyed_casts_from_several_threads_in_any_order",
    "contract.messages_of_all_sizes_arrive_whole_and_in_order",  # `launch/test_suite` has it on torch and MPI
    "lifecycle.fifty_objects_in_a_row",
    "trust.a_hostile_root_runs_nothing_and_is_told",
    "values.a_payload_beyond_the_chunk_size_is_intact",
    "values.payloads_arrive_equal_from_every_root",
    "placements.the_choice_of_a_placement_never_fails_a_value_that_does_not_pickle",
)


#: What is passed on. What is not here, three ranks of torch have over the network (`launch/test_suite`), and of what
#: takes seconds all else that is there.
PASSED_ON = ("values.", "failures.", "placements.", "roots.", "trust.", "load.")
THERE = (
    "values.a_payload_beyond_the_chunk_size_is_intact",
    "values.payloads_arrive_equal_from_every_root",
    "roots.every_rank_casts_with_keys_of_its_own",  # hundreds of casts: one and four ranks on a host have it
)


def _marks(shared_memory: bool | str, size: int, name: str) -> list[pytest.MarkDecorator]:
    over_network = name.startswith(PASSED_ON) and name not in THERE
    often = size != SELDOM and (name not in HEAVY if shared_memory else over_network)
    return [] if often else [pytest.mark.exhaustive]


def _run_one(name: str, shared_memory: bool | str) -> list[Outcome]:
    return run(resolve("auto"), only=name, shared_memory=shared_memory)


@pytest.mark.parametrize(
    ("shared_memory", "size", "name"),
    [pytest.param(*case, marks=_marks(*case)) for case in CASES],
    ids=[f"{name}-{size}-{'shared' if shared else 'network'}" for shared, size, name in CASES],
)
def test_behaviour(shared_memory: bool | str, size: int, name: str) -> None:
    seen = launch(_run_one, ranks=size, backend="threads", args=(name, shared_memory), timeout_s=200)
    for rank, outcomes in enumerate(seen):
        assert [outcome.name for outcome in outcomes] == [name]
        assert outcomes[0].passed, f"seen by rank {rank}:\n" + "\n".join(e for e in outcomes[0].errors if e)

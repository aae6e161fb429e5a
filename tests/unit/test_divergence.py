"""Whether calls that meet were meant for each other: programs that are in step are left alone, others are found out.

A program is written here as the sites at which the root and one rank make their calls, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core import divergence
from lazycast.core.divergence import Pairings, made, origin
from lazycast.net.wire import Origin

Site = str
"""Of the form `function.line`."""


def at(site: Site, nth: int = 1) -> Origin:
    return Origin(site, site.encode(), site.partition(".")[0].encode().ljust(8) + b"the way", nth)


def meet(root: Iterable[Site], rank: Iterable[Site]) -> list[int]:
    """Let the n-th call of the one meet the n-th of the other; return the numbers that were found to be divergences."""
    pairings = Pairings()
    pairs = enumerate(zip(root, rank, strict=False))
    return [n for n, (there, here) in pairs if pairings.meet(at(there), at(here)) is not None]


CHANCE = random.Random(3)
IN_STEP: dict[str, tuple[Sequence[Site], Sequence[Site]]] = {
    "one line": (["f.1"] * 100, ["f.1"] * 100),
    "several lines": (["f.1", "f.2", "g.3"] * 50, ["f.1", "f.2", "g.3"] * 50),
    "an if and its else": (["f.1"] * 100, ["f.2"] * 100),
    "two of these in a function": (["f.1", "f.3"] * 50, ["f.2", "f.4"] * 50),
    "two functions": (["root.1", "root.2"] * 50, ["rank.1", "rank.2"] * 50),
    "the root casts from many places, ranks receive in one": (
        [f"root.{CHANCE.randrange(9)}" for _ in range(500)],
        ["loop.1"] * 500,
    ),
    "ranks receive in many places": (["root.1"] * 500, [f"rank.{CHANCE.randrange(9)}" for _ in range(500)]),
    "a first message, then a loop": (["f.1", *["root.2"] * 99], ["f.1", *["rank.2"] * 99]),
    "a loop that also takes the first message": (["root.1", *["root.2"] * 99], ["rank.1"] * 100),
    "the root has a shortcut": (["f.1", "f.1", "f.0", "f.1", "g.7"] * 20, ["f.1"] * 100),
    "ranks have a shortcut": (["f.1"] * 100, ["f.1", "f.1", "f.0", "f.1", "g.7"] * 20),
    "phases": (["f.1"] * 40 + ["g.1"] * 40 + ["f.1"] * 40, ["f.2"] * 40 + ["g.2"] * 40 + ["f.2"] * 40),
    "each side chooses by itself": (
        [f"root.{CHANCE.randrange(2)}" for _ in range(500)],
        [f"rank.{CHANCE.randrange(2)}" for _ in range(500)],
    ),
    "a batch: first and rest": (["f.1"] * 120, ["f.2", "f.3", "f.3", "f.3"] * 30),
    "lines are executed once": ([f"f.{n}" for n in range(100)], [f"f.{n}" for n in range(100)]),
    "other lines, executed once": ([f"f.{n}" for n in range(100)], [f"g.{n}" for n in range(100)]),
}


@pytest.mark.parametrize("name", IN_STEP)
def test_ranks_in_step_are_left_alone(name: str) -> None:
    root, rank = IN_STEP[name]
    assert len(root) == len(rank)
    assert meet(root, rank) == []


@given(st.data())
def test_whatever_sites_each_kind_of_message_has_on_either_side(data: st.DataObject) -> None:
    """As long as the two sides have no line in common, and no site has one partner by mere luck."""
    lines = st.integers(0, 3)
    kinds = data.draw(st.lists(st.tuples(lines, lines), min_size=1, max_size=8))
    start = list(dict.fromkeys(kinds))
    messages = start + data.draw(st.lists(st.sampled_from(kinds), max_size=60))
    assert meet([f"root.{r}" for r, _ in messages], [f"rank.{s}" for _, s in messages]) == []


HEALTHY = {
    "the same lines": (["f.1", "g.2", "h.3"], ["f.1", "g.2", "h.3"]),
    "the same lines of one function": (["f.1", "f.2", "f.3"], ["f.1", "f.2", "f.3"]),
    "if and else": (["f.1", "f.3"], ["f.2", "f.4"]),
    "if and else, a function each": (["f.1", "g.3"], ["f.2", "g.4"]),
    "one for all and one for each": (["f.1", "g.3"], ["f.1", "g.4"]),
}


def skip(program: list[Site], at: int) -> list[Site]:
    return program[:at] + program[at + 1 :]


def repeat(program: list[Site], at: int) -> list[Site]:
    return program[: at + 1] + program[at:]


@pytest.mark.parametrize("slip", [skip, repeat])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_rank_that_skips_or_repeats_a_call_is_found_out_at_once(
    name: str, which: int, slip: Callable[[list[Site], int], list[Site]]
) -> None:
    root, rank = (sites * 20 for sites in HEALTHY[name])
    slips_at = 3 * len(HEALTHY[name][0]) + which
    found = meet(root, slip(rank, slips_at))
    assert found
    assert found[0] in (slips_at, slips_at + 1), "the call that was slipped, or the one after it"
    assert len(found) > len(root) - slips_at - 4, "and every call after it, since it stays out of step"


def test_in_functions_of_their_own_it_takes_longer_to_be_sure() -> None:
    root, rank = ["root.1", "root.2"] * 40, ["rank.1", "rank.2"] * 40
    assert meet(root, skip(rank, 6)) == [], "it may well choose by itself"
    found = meet(root, skip(rank, 2 * divergence._SURE + 4))
    assert found[0] == 2 * divergence._SURE + 4


def test_two_calls_made_in_another_order_are_found_out_at_the_second() -> None:
    assert meet(["f.1", "f.2"], ["f.2", "f.1"]) == [1]


def test_a_rank_that_is_back_in_step_is_left_alone_again() -> None:
    root = ["f.1", "g.2"] * 30
    rank = ["f.1", "g.2"] * 5 + ["g.2", "f.1"] + ["f.1", "g.2"] * 24
    assert meet(root, rank) == [10, 11]


def test_the_evidence_is_told() -> None:
    pairings = Pairings()
    for site in ("f.1", "g.2"):
        assert pairings.meet(at(site), at(site)) is None
    assert pairings.meet(at("f.1"), at("g.2")) == "until now all ranks have made these two calls together"
    pairings = Pairings()
    for there, here in [("f.1", "f.2"), ("f.3", "f.4")] * 3:
        assert pairings.meet(at(there), at(here)) is None
    evidence = pairings.meet(at("f.1"), at("f.4"))
    assert evidence is not None
    assert "the root's 3 times and this rank's 3 times" in evidence


def test_memory_is_bounded() -> None:
    pairings = Pairings()
    for n in range(3 * divergence._MAX_PAIRS):
        assert pairings.meet(at(f"f{n}.1"), at(f"g{n}.2")) is None
    assert len(pairings._times) <= divergence._MAX_PAIRS + 2


# Sites


def here() -> Origin:
    return origin(1)


def test_a_site_is_the_line_outside_the_library_and_the_way_to_it() -> None:
    first, second = [here() for _ in range(2)]
    assert first == second
    other = here()
    assert other.site.startswith("unit/test_divergence.py:")
    assert other.site.endswith("(here)")
    assert other.label != first.label, "another way leads there"
    assert other.place != first.place


def test_lines_of_one_function_are_of_one_place() -> None:
    def calls(which: bool) -> Origin:
        if which:
            return origin(1)
        else:  # noqa: RET505 - the two lines are the point
            return origin(1)

    one, other = [calls(which) for which in (True, False)]
    assert one.place == other.place
    assert one.label != other.label
    assert one.site != other.site


@pytest.mark.parametrize(
    "user", ["testing.values", "tools.bench.session", "tools.cli.demo", "tools.soak.job", "tools.doctor.trial"]
)
def test_tools_of_ours_that_cast_are_users(user: str) -> None:
    namespace = {"__name__": f"lazycast.{user}", "origin": origin}
    exec(compile("def call():\n    return origin(3)", "house/tool.py", "exec"), namespace)
    assert namespace["call"]().site == "house/tool.py:2 (call)"  # type: ignore[operator]


def test_calls_of_the_library_are_passed_over() -> None:
    import lazycast

    namespace = {"__name__": "lazycast.adapters.made_up", "origin": origin}
    exec("def call():\n    return origin(3)", namespace)
    found = namespace["call"]()  # type: ignore[operator]
    assert "test_divergence.py" in found.site
    assert found.nth == 3
    assert lazycast.__name__ == "lazycast"


def test_what_the_root_has_made_is_named() -> None:
    assert made(3, "k", at("f.1", 0)) == "#3 key 'k' at f.1"
    assert made(4, None, at("f.1", 2)) == "#4 (number 2 without a key) at f.1"
    assert made(5, "x" * 100, None) == f"#5 key {repr('x' * 100)[:40]}..."


def test_only_the_nearest_caller_counts() -> None:
    """Or ranks that are started in different ways would have no site in common."""

    def one_way() -> Origin:
        return step()

    def other_way() -> Origin:
        return step()

    def step() -> Origin:
        return here()

    assert one_way() == other_way()

"""The protocol of casts, model-checked: small cases in every order in which their steps can happen.

What decides is the real code, of all ranks, in one thread (`protocol_world`). At each end: every call is settled, those
of a cast that agrees are settled alike, nothing is left in a mailbox or on the books, and no slot is held.

Two ranks go through all orders. Three have millions: they go through those that depart once from a steady one.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from lazycast.core import engine
from lazycast.core.follower import FollowerLane
from lazycast.core.root import RootLane

from . import protocol_orders
from .protocol_orders import explore
from .protocol_world import Case, Do, Step, StepPerformer, World, everything_in_slots

DIE, CLOSE, CANCEL, TIME_OUT = Do("die"), Do("close"), Do("cancel"), Do("time out")


def double(payload: int) -> int:
    return 2 * payload


def fail(payload: Any) -> Any:
    raise ValueError(f"not {payload!r}")


def cast(key: str | None, payload: Any = 1, materialize: Any = None) -> Do:
    return Do("cast", key, payload, materialize)


def ask(key: str | None, payload: Any = None) -> Do:
    return Do("ask", key, payload)


def discard(key: str) -> Do:
    return Do("discard", key)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No collection in between, which would take most of the time; no word of each of thousands of losses."""
    caplog.set_level(logging.CRITICAL, logger="lazycast")
    gc.collect()
    gc.freeze()  # for those of `assert_no_slot_held`, which look for what this test has left
    gc.disable()
    yield
    gc.enable()


def books(world: World) -> dict[str, Any]:
    """What is left on the books of ranks that are alive and open."""
    left: dict[str, Any] = {}
    for rank, member in enumerate(world.members):
        lane = member.lane
        if not member.alive or member.closed:
            continue
        tables: dict[str, Any] = {
            "waits": lane.asks.waits.waiting(),
            "pending": lane.asks.pending,
            "agreeing": lane.casts.agreeing,
            "parked": [arrival for parked in lane.casts.making._parked.values() for arrival in parked],
            "awaited": lane.casts.making.awaited,
            "transfers": lane.near.relay._transfers,
        }
        if isinstance(lane, FollowerLane):
            box = lane.matching.mailbox
            tables |= {"asks": box.asks(), "arrivals": box.arrivals(), "queries": lane._queries}
            tables |= {"early verdicts": lane._early_verdicts, "reads": lane._reads}
            tables |= {"combining": upwards.combining if (upwards := lane.near.relay.upwards) is not None else ()}
        if isinstance(lane, RootLane):
            tables |= {
                "unsent": lane.admission.calls._unsent,
                "lines": lane.admission.calls._lines,
                "ledger": range(len(lane.admission.ledger)),
            }
        left |= {f"{what} of rank {rank}": table for what, table in tables.items() if len(table)}
    return left


def endings(world: World) -> dict[str, dict[int, str]]:
    """By key, how the calls of each rank ended that has not died, nor given its call up."""
    found: dict[str, dict[int, str]] = {}
    for rank, member in enumerate(world.members):
        for index, key in enumerate(member.keys):
            if member.alive:
                ending = world.ending(rank, index)
                if index not in member.given_up:
                    found.setdefault(str(key), {})[rank] = ending
    return found


def nothing_left(world: World) -> None:
    """Nobody has died or closed: the books are empty, all slots are free."""
    assert books(world) == {}
    assert_no_slot_held(world)


def assert_no_slot_held(world: World) -> None:
    for member in world.members:
        member.futures.clear()  # the values, and errors with the frames that raised them
    world.bury()
    if world.memory.held:
        gc.collect()  # an error and its frames are a circle
    assert world.memory.held == 0, f"{world.memory.held} slots are held"


def of_each_rank(path: Sequence[Step], ranks: int) -> tuple[tuple[Step, ...], ...]:
    return tuple(tuple(step for step in path if step[1] == rank) for rank in range(ranks))


@pytest.mark.parametrize(
    "scripts",
    [
        ((cast("a", 1, double), DIE), (ask("a"),)),
        ((cast("a", 1, double), TIME_OUT), (discard("a"),)),
        ((cast("a", 1),), (CLOSE,)),
    ],
    ids=["dies", "times out", "closes"],
)
def test_every_order_is_gone_through_once(scripts: tuple[tuple[Do, ...], ...]) -> None:
    """All orders one after the other, however many of them are the same on each rank, come to no other ends."""
    case, ends = Case(scripts, agree=False), set()
    seen: list[tuple[tuple[Step, ...], ...]] = []

    def look(world: World, check: Any, path: Sequence[Step]) -> None:
        seen.append(of_each_rank(path, len(scripts)))

    with mock.patch.object(protocol_orders, "_checked", look):
        explore(case, nothing_left)
    with mock.patch.object(engine, "Performer", StepPerformer):
        todo: list[tuple[Step, ...]] = [()]
        while todo:
            path = todo.pop()
            world = World(case)
            for step in path:
                world.do(step)
            todo += [(*path, step) for step in world.enabled()]
            if not world.enabled():
                ends.add(of_each_rank(path, len(scripts)))
    assert len(ends) > 4
    assert sorted(seen) == sorted(ends)


ALONE, TOGETHER, TWO_HOSTS = None, ((0, 1, 2),), ((0, 1), (2,))
#: Rank 1 puts together what it and rank 2 say of a cast.
LED = ((0,), (1, 2))
TWO = ((0, 1),)


# (hosts, placement, agree): what is left out differs little from what is there, and takes as long again.
EACH = [
    (ALONE, "every", False),
    (ALONE, "shard", False),
    (ALONE, "root", True),
    (ALONE, "demand", True),
    (TWO, "shard", True),
    (TWO, "shard", False),
    (TWO, "root", False),
]


def name_of(value: Any) -> str:
    return {ALONE: "alone", TWO: "together", True: "agree", False: "each"}.get(value, value)


#: What shards that agree on one host go through takes as long as all the others.
HARD = (TWO, "shard", True)
#: Who is alone on a host has a shard to itself: that differs from `every` in who sends what to whom, not in its order.
LIKE_EVERY = (ALONE, "shard", False)


def seldom(*values: Any) -> Any:
    """Thousands of orders more, in which nothing is met that the others do not meet."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def each_but(*left_out: Any) -> pytest.MarkDecorator:
    cases = [seldom(*it) if it in left_out else it for it in EACH]
    return pytest.mark.parametrize(("hosts", "placement", "agree"), cases, ids=name_of)


BUT_LIKE, BUT_HARD = each_but(LIKE_EVERY), each_but(LIKE_EVERY, HARD)


def explored(case: Case, check: Any, *, least: int, departures: int | None = None) -> None:
    with everything_in_slots():
        orders = explore(case, check, departures=departures)
    assert orders >= least, f"{orders} orders"  # it is worth something only if there was something to choose


@BUT_LIKE
def test_keys_meet_in_any_order(hosts: Any, placement: str, agree: bool) -> None:
    script = (cast("a", 1, double), cast("b", 3)), (ask("b"), ask("a"))

    def check(world: World) -> None:
        assert endings(world) == {"a": dict.fromkeys((0, 1), "value 2"), "b": dict.fromkeys((0, 1), "value 3")}
        nothing_left(world)

    explored(Case(script, placement, agree, hosts=hosts), check, least=20)


@pytest.mark.exhaustive
def test_two_casts_that_agree() -> None:
    script = (cast("a", 1, double), cast("b", 3)), (ask("b"), ask("a"))

    def check(world: World) -> None:
        assert endings(world) == {"a": dict.fromkeys((0, 1), "value 2"), "b": dict.fromkeys((0, 1), "value 3")}
        nothing_left(world)

    explored(Case(script, "every", hosts=ALONE), check, least=800)


@pytest.mark.parametrize(
    ("hosts", "placement"),
    [(ALONE, "every"), (TWO, "every"), (TWO, "shard"), seldom(ALONE, "shard")],
    ids=name_of,
)
@pytest.mark.parametrize("end", [DIE, CLOSE], ids=["dies", "closes"])
@pytest.mark.parametrize("who", [0, 1])
def test_two_ranks_of_which_one_goes(hosts: Any, placement: str, end: Do, who: int) -> None:
    scripts = [[cast("a", 1, double)], [ask("a")]]
    scripts[who].append(end)
    error = "PeerLostError" if end is DIE else "ClosedError"

    def check(world: World) -> None:
        for rank in {0, 1} if end is CLOSE else {1 - who}:
            assert world.ending(rank, 0) in ("value 2", f"{error} of rank {who}")
        assert_no_slot_held(world)

    explored(Case(tuple(map(tuple, scripts)), placement, hosts=hosts), check, least=10)


@BUT_HARD
def test_a_materializer_that_raises_fails_its_cast_and_no_other(hosts: Any, placement: str, agree: bool) -> None:
    script = (cast(None, 1, fail), cast(None, 2)), (ask(None), ask(None))

    def check(world: World) -> None:
        for rank in (0, 1):
            assert world.ending(rank, 0).startswith("MaterializeError of rank ")
            assert world.ending(rank, 1) == "value 2"
        if agree and placement != "demand":
            assert world.ending(0, 0) == world.ending(1, 0)
        nothing_left(world)

    explored(Case(script, placement, agree, hosts=hosts), check, least=10)


@BUT_HARD
def test_a_withdrawal_is_everybodys_or_nobodys(hosts: Any, placement: str, agree: bool) -> None:
    script = (cast("a", 1, double), CANCEL, cast("a", 3)), (ask("a"), ask("a"))

    def check(world: World) -> None:
        refused = [type(exc).__name__ for exc in world.members[1].refused]
        if refused or world.members[0].refused:  # the first call was still pending when the key came again
            assert {*refused, *(type(exc).__name__ for exc in world.members[0].refused)} == {"KeyInUseError"}
        else:
            first = {world.ending(0, 0), world.ending(1, 0)}
            assert first <= {"cancelled", "value 2"}
            if agree and placement != "demand":
                assert len(first) == 1
            assert {world.ending(0, 1), world.ending(1, 1)} == {"value 3"}
        nothing_left(world)

    explored(Case(script, placement, agree, hosts=hosts), check, least=20)


GIVE_UP = ("discard", "cancel", "time out")


@pytest.mark.parametrize(
    ("hosts", "placement", "agree", "how"),
    [
        seldom(*it, how) if it == LIKE_EVERY or (it == HARD and how != "time out") else (*it, how)
        for it in EACH
        for how in GIVE_UP
    ],
    ids=name_of,
)
def test_a_rank_that_gives_up_keeps_nobody(hosts: Any, placement: str, agree: bool, how: str) -> None:
    gives_up = {"discard": (discard("a"),), "cancel": (ask("a"), CANCEL), "time out": (ask("a"), TIME_OUT)}[how]
    script = (cast("a", 1, double), cast("b", 3)), (*gives_up, ask("b"))

    def check(world: World) -> None:
        seen = [world.ending(1, index) for index in range(len(world.members[1].futures))]
        for index, value in enumerate(("value 2", "value 3")):
            # Whose time is over before all have agreed fails the cast for all; the verdict may be on its way, though.
            late = how == "time out" and agree and placement != "demand" and seen[index].startswith("CastTimeout")
            assert world.ending(0, index) in ((value, seen[index]) if late else (value,))
        assert seen[-1] in ("value 3", "CastTimeoutError of rank 1") if how == "time out" else "value 3"
        if how != "discard":
            assert seen[0] in ("value 2", {"cancel": "cancelled", "time out": "CastTimeoutError of rank 1"}[how])
        nothing_left(world)

    # A time-out may come at any moment: all orders take half a minute for each combination.
    departures = 2 if how == "time out" else None
    explored(Case(script, placement, agree, hosts=hosts), check, least=10, departures=departures)


#: (hosts, placement, replicated): each of them, and placement by the root, which is cheap, with each.
ROOT_TIMES_OUT = (
    (ALONE, "every", True),
    (TWO, "shard", False),
    (ALONE, "root", False),
    (TWO, "root", True),
)


@pytest.mark.parametrize(
    ("hosts", "placement", "replicated"),
    [
        it if it in ROOT_TIMES_OUT else seldom(*it)
        for it in itertools.product((ALONE, TWO), ("every", "shard", "root"), (False, True))
    ],
    ids=lambda value: {True: "replicated", False: ""}.get(value) if isinstance(value, bool) else name_of(value),
)
def test_when_the_time_of_the_root_is_over_nobody_gets_the_value(hosts: Any, placement: str, replicated: bool) -> None:
    mine = 1 if replicated else None
    script = (cast("a", 1, double), TIME_OUT, cast("b", 1)), (ask("a", mine), ask("b", mine))
    case = Case(script, placement, True, replicated, hosts=hosts)

    def check(world: World) -> None:
        ends = {world.ending(0, 0), world.ending(1, 0)}
        assert ends in ({"value 2"}, {"CastTimeoutError of rank 0"})
        assert {world.ending(0, 1), world.ending(1, 1)} == {"value 1"}
        nothing_left(world)

    explored(case, check, least=20)


@pytest.mark.parametrize("hosts", [TOGETHER, TWO_HOSTS, LED], ids=["together", "two hosts", "led"])
@pytest.mark.parametrize("placement", ["every", "shard"])
@pytest.mark.parametrize("agree", [True, False], ids=["agree", "each"])
@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_death_all_calls_of_the_others_end(hosts: Any, placement: str, agree: bool, victim: int) -> None:
    scripts = [[cast("a", 1, double)], [ask("a")], [ask("a")]]
    scripts[victim].append(DIE)

    def check(world: World) -> None:
        for rank in {0, 1, 2} - {victim}:
            assert world.ending(rank, 0) in ("value 2", f"PeerLostError of rank {victim}")
            later = world.members[rank].lane.call(1, None, "later", 100.0)
            world.settle()
            assert later.done()
            assert getattr(later.exception(), "rank", None) == victim
        assert_no_slot_held(world)

    explored(Case(tuple(map(tuple, scripts)), placement, agree, hosts=hosts), check, least=8, departures=1)


@pytest.mark.parametrize("hosts", [TOGETHER, TWO_HOSTS, LED], ids=["together", "two hosts", "led"])
@pytest.mark.parametrize("placement", ["every", "shard"])
@pytest.mark.parametrize("agree", [True, False], ids=["agree", "each"])
@pytest.mark.parametrize("leaver", [0, 1])
def test_after_a_close_all_calls_of_the_others_end(hosts: Any, placement: str, agree: bool, leaver: int) -> None:
    scripts = [[cast("a", 1, double)], [ask("a")], [ask("a")]]
    scripts[leaver].append(CLOSE)

    def check(world: World) -> None:
        for rank in (0, 1, 2):
            assert world.ending(rank, 0) in ("value 2", f"ClosedError of rank {leaver}")
        assert_no_slot_held(world)

    explored(Case(tuple(map(tuple, scripts)), placement, agree, hosts=hosts), check, least=8, departures=1)


@pytest.mark.parametrize("hosts", [ALONE, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("how", ["all ask", "one discards", "one differs"])
def test_replicated_payloads(hosts: Any, how: str) -> None:
    last = {"all ask": ask("a", 1), "one discards": discard("a"), "one differs": ask("a", "another")}[how]
    script = (cast("a", 1, double),), (ask("a", 1),), (last,)

    def check(world: World) -> None:
        seen = [world.ending(rank, 0) for rank in range(3) if world.members[rank].futures]
        assert seen == ["PayloadMismatchError of rank 2"] * 3 if how == "one differs" else ["value 2"] * len(seen)
        nothing_left(world)

    explored(Case(script, "shard", replicated=True, hosts=hosts), check, least=8, departures=1)


# What one rank says for others


@pytest.mark.parametrize("agree", [True, False], ids=["agree", "each"])
@pytest.mark.parametrize("placement", ["every", "shard", "root"])
def test_keys_meet_in_any_order_where_one_speaks_for_others(placement: str, agree: bool) -> None:
    script = (cast("a", 1, double), cast("b", 3)), (ask("b"), ask("a")), (ask("a"), ask("b"))

    def check(world: World) -> None:
        assert endings(world) == {"a": dict.fromkeys(range(3), "value 2"), "b": dict.fromkeys(range(3), "value 3")}
        nothing_left(world)

    explored(Case(script, placement, agree, hosts=LED), check, least=20, departures=1)


@pytest.mark.parametrize("placement", ["every", "shard"])
@pytest.mark.parametrize("what", ["raises", "withdrawn", "discarded", "times out", "root times out"])
def test_who_speaks_for_others_hides_nothing(placement: str, what: str) -> None:
    """The cast fails on all ranks or on none, and the next one works; the leader keeps nothing of either."""
    root = {"withdrawn": (CANCEL,), "root times out": (TIME_OUT,)}.get(what, ())
    last = {"discarded": (discard("a"),), "times out": (ask("a"), TIME_OUT)}.get(what, (ask("a"),))
    script = (
        (cast("a", 1, fail if what == "raises" else double), *root, cast("b", 3)),
        (ask("a"), ask("b")),
        (*last, ask("b")),
    )

    def check(world: World) -> None:
        ends = {world.ending(rank, 0) for rank in ((0, 1) if what == "discarded" else (0, 1, 2))}
        assert len(ends) == 1, ends
        (end,) = ends
        fails = {"withdrawn": "cancelled", "times out": "CastTimeoutError of rank 2", "root times out": ""}
        if what == "raises":
            assert end.startswith("MaterializeError of rank ")
        else:
            assert end in ("value 2", fails.get(what) or "CastTimeoutError of rank 0")
        if what != "times out":  # its time may be over for both
            assert {world.ending(rank, -1) for rank in range(3)} == {"value 3"}
        nothing_left(world)

    explored(Case(script, placement, True, hosts=LED), check, least=20, departures=1)


@pytest.mark.parametrize("end", [DIE, CLOSE], ids=["dies", "closes"])
@pytest.mark.parametrize("placement", ["every", "shard"])
def test_what_is_held_for_who_has_gone_is_told(placement: str, end: Do) -> None:
    """Rank 2 goes: rank 1 waits for its report no more, and neither do the others for rank 1's."""
    script = (cast("a", 1, double), cast("b", 3)), (ask("a"), ask("b")), (ask("a"), end)
    error = "PeerLostError" if end is DIE else "ClosedError"

    def check(world: World) -> None:
        for rank in (0, 1):
            for index, value in enumerate(("value 2", "value 3")):
                assert world.ending(rank, index) in (value, f"{error} of rank 2")
        upwards = world.members[1].lane.near.relay.upwards
        assert upwards is not None
        assert len(upwards.combining) == 0
        assert_no_slot_held(world)

    explored(Case(script, placement, True, hosts=LED), check, least=20, departures=1)

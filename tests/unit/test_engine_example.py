"""The parts of the example engine that need no ranks."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from examples.engine.engine import Inbox
from examples.engine.front import Front, RequestFailedError
from examples.engine.inputs import InLine, OverloadedError, Settled
from examples.engine.load import Mix, arrivals
from examples.engine.model import PRIME, WIDTH, Model, fingerprint
from examples.engine.photos import SIZE, album, develop
from examples.engine.ranks import Ints, LocalRanks, Ranks
from examples.engine.report import percentile
from examples.engine.requests import (
    Announced,
    Arrived,
    Decision,
    Ended,
    Event,
    Left,
    Outcome,
    Refused,
    Request,
    Stop,
    Woken,
)
from examples.engine.scheduler import Books, Sequence, plan
from lazycast import KeyInUseError

PHOTOS = {"jpegs": [b"raw"]}


def request(rid: str, *, photos: bool = True, gone: bool = False) -> Request:
    return Request(rid, f"prompt of {rid}", 3, PHOTOS if photos else None, gone)


def announced(rid: str, *, photos: bool = True) -> Announced:
    return Announced(rid, f"prompt of {rid}", 3, photos)


def running(rid: str) -> Sequence:
    return Sequence(announced(rid), Outcome(), np.zeros(WIDTH, np.int64))


def decide(
    *events: Event, books: Books | None = None, there: dict[str, Settled] | None = None, max_batch: int = 4
) -> Decision:
    return plan(events, books or Books(), (there or {}).get, max_batch=max_batch)


def test_text_is_admitted_at_once_and_photos_when_they_are_there() -> None:
    decision = decide(Arrived(request("photos")), Arrived(request("text", photos=False)))
    assert [new.rid for new in decision.announced] == ["photos", "text"]
    assert decision.admitted == ["text"]
    books = Books(waiting={"photos": announced("photos")})
    assert not decide(books=books)
    assert decide(Woken(), books=books, there={"photos": Settled()}).admitted == ["photos"]


def test_who_waits_for_photos_holds_nobody_up_and_order_is_kept() -> None:
    books = Books(waiting={rid: announced(rid) for rid in ("a", "b", "c", "d")})
    there = {rid: Settled() for rid in ("b", "c", "d")}
    assert decide(books=books, there=there, max_batch=2).admitted == ["b", "c"]


def test_a_full_batch_admits_nobody_until_somebody_leaves() -> None:
    books = Books(waiting={"b": announced("b", photos=False)}, running={"a": running("a")})
    assert not decide(books=books, max_batch=1)
    decision = decide(Left("a"), books=books, max_batch=1)
    assert (decision.aborted, decision.admitted) == (["a"], ["b"])


def test_photos_that_came_to_nothing_fail_the_request_even_if_the_batch_is_full() -> None:
    books = Books(waiting={"b": announced("b")}, running={"a": running("a")})
    decision = decide(books=books, there={"b": Settled("no photo")}, max_batch=1)
    assert (decision.failed, decision.admitted) == ({"b": "no photo"}, [])


def test_whoever_has_left_is_not_admitted() -> None:
    books = Books(waiting={"a": announced("a")})
    decision = decide(Left("a"), books=books, there={"a": Settled()})
    assert (decision.aborted, decision.admitted) == (["a"], [])


def test_who_leaves_before_being_announced_is_discarded_only_if_something_was_cast() -> None:
    decision = decide(
        Left("photos"), Arrived(request("photos", gone=True)), Arrived(request("text", photos=False, gone=True))
    )
    assert decision == Decision(discarded=["photos"])


def test_who_leaves_right_after_being_announced_is_aborted() -> None:
    decision = decide(Arrived(request("a")), Left("a"))
    assert ([new.rid for new in decision.announced], decision.aborted) == (["a"], ["a"])


def test_leaving_late_and_stopping_decide_nothing_by_themselves() -> None:
    assert not decide(Left("long ago"), Stop(), Woken())
    assert decide(Refused("refused")) == Decision(discarded=["refused"])
    assert bool(Decision(stop=True))


def test_raw_photos_travel_with_the_schedule_only_if_asked() -> None:
    assert plan([Arrived(request("a"))], Books(), lambda _: None, max_batch=1).announced[0].raw is None
    sent = plan([Arrived(request("a"))], Books(), lambda _: None, max_batch=1, raw_in_schedule=True)
    assert sent.announced[0].raw == PHOTOS


class Shard(LocalRanks):
    """One of several ranks whose sums are made in one process."""

    def __init__(self, rank: int, shards: int, partials: list[Ints]) -> None:
        self.rank, self.shards, self._partials = rank, shards, partials

    def all_reduce(self, array: Ints) -> None:
        self._partials.append(array)


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_tokens_do_not_depend_on_how_many_ranks_share_the_model(shards: int) -> None:
    states = np.stack([Model.prefill(f"prompt {n}", n) for n in range(5)])
    alone, _ = Model(Shard(0, 1, []), busy_s=0.0, step_s=0.0).step(states)
    partials: list[Ints] = []
    for rank in range(shards):
        Model(Shard(rank, shards, partials), busy_s=0.0, step_s=0.0).step(states)
    assert np.array_equal(sum(partials) % PRIME, alone)
    assert len(np.unique(alone)) > 100


def test_every_pixel_counts() -> None:
    pixels = develop({"jpegs": album(2, seed=3)})
    assert pixels.shape == (2, 3, SIZE[1], SIZE[0])
    before = fingerprint(pixels)
    pixels[1, 2, -1, -1] += 1
    assert fingerprint(pixels) != before
    assert fingerprint(None) == 0


def test_a_broken_photo_is_named() -> None:
    good = album(1, seed=3)[0]
    with pytest.raises(ValueError, match=r"^photo 2 of 3 cannot be read$"):
        develop({"jpegs": [good, b"\xff\xd8 no photo", good]})
    with pytest.raises(ValueError, match=r"^photo 1 of 1 cannot be read$"):
        develop({"jpegs": [good[: len(good) // 2]]})


def test_the_load_is_drawn_as_asked_and_the_same_each_time() -> None:
    mix = Mix(qps=50, seconds=40, warm_up_s=10, photos=0.6, aborts=0.2, bad=0.1)
    clients = arrivals(mix, [b"photo"])
    again = arrivals(mix, [b"photo"])
    assert [(c.at_s, vars(c.request), c.leaves_after, c.bad) for c in clients] == [
        (c.at_s, vars(c.request), c.leaves_after, c.bad) for c in again
    ]
    kinds = Counter("bad" if c.bad else "leaves" if c.leaves_after is not None else "stays" for c in clients)
    assert len(clients) == pytest.approx(50 * 50, rel=0.1)
    assert sum(c.request.payload is not None for c in clients) / len(clients) == pytest.approx(0.6, abs=0.05)
    assert kinds["bad"] / len(clients) == pytest.approx(0.1, abs=0.03)
    assert kinds["leaves"] / len(clients) == pytest.approx(0.2 * 0.9, abs=0.03)
    gaps = np.diff([c.at_s for c in clients])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.15)  # of a Poisson process


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([], 50) is None
    assert percentile([7.0], 99) == 7.0


class Gate(InLine):
    """Inputs whose casts wait until they are let through, or are refused."""

    def __init__(self) -> None:
        self.began, self.let = threading.Event(), threading.Event()
        self.cast_rids: list[str] = []
        self.refuse = False

    def cast(self, request: Request) -> None:
        self.began.set()
        assert self.let.wait(60)
        if self.refuse:
            raise OverloadedError("held back")
        self.cast_rids.append(request.rid)

    def take(self, announced: Announced) -> Any:
        raise AssertionError


def events_of(inbox: Inbox) -> list[Event]:
    events = []
    with contextlib.suppress(queue.Empty):
        while True:
            events.append(inbox.get_nowait())
    return events


def with_front(test: Any, inputs: Gate, **options: Any) -> list[Event]:
    """Run a coroutine with a front in an event loop; return what the scheduler was told."""
    inbox: Inbox = queue.Queue()

    async def body() -> None:
        front = Front(inputs, inbox, asyncio.get_running_loop(), **{"max_open": 8, **options})
        try:
            await test(front)
        finally:
            inputs.let.set()
            front.close()

    asyncio.run(body())
    events = events_of(inbox)
    assert events.pop() == Stop()
    return events


async def collect(front: Front, of: Request) -> list[int]:
    return [token async for token in front.generate(of)]


def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(coroutine)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_client_gets_its_tokens_in_order_and_no_others() -> None:
    async def body(front: Front) -> None:
        mine = start(collect(front, request("mine", photos=False)))
        other = start(collect(front, request("other", photos=False)))
        await asyncio.sleep(0)
        front.deliver([("mine", 1), ("other", 7), ("unknown", 9)])
        front.deliver([("mine", 2), ("mine", Ended("finished")), ("other", Ended("finished"))])
        assert (await mine, await other) == ([1, 2], [7])

    events = with_front(body, Gate())
    assert [type(event) for event in events] == [Arrived, Arrived]


def test_a_cast_that_is_held_up_blocks_neither_the_loop_nor_text() -> None:
    inputs = Gate()

    async def body(front: Front) -> None:
        held = start(collect(front, request("photos")))
        await until(inputs.began.is_set)
        text = start(collect(front, request("text", photos=False)))
        await asyncio.sleep(0)
        front.deliver([("text", Ended("finished"))])
        assert await text == []
        inputs.let.set()
        await until(lambda: inputs.cast_rids)
        front.deliver([("photos", Ended("finished"))])
        await held

    events = with_front(body, inputs)
    assert [event.request.rid for event in events if isinstance(event, Arrived)] == ["text", "photos"]


def test_a_refused_cast_tells_the_client_and_the_scheduler() -> None:
    inputs = Gate()
    inputs.refuse = True
    inputs.let.set()

    async def body(front: Front) -> None:
        with pytest.raises(OverloadedError, match="held back"):
            await collect(front, request("a"))

    assert with_front(body, inputs) == [Refused("a")]


def test_any_other_refusal_is_told_to_both_as_well() -> None:
    class InUse(Gate):
        def cast(self, request: Request) -> None:
            raise KeyInUseError("a call with this key is still pending here")

    async def body(front: Front) -> None:
        with pytest.raises(RequestFailedError, match="still pending here"):
            await collect(front, request("a"))

    assert with_front(body, InUse()) == [Refused("a")]


def test_an_id_that_is_under_way_is_refused_and_the_first_one_goes_on() -> None:
    async def body(front: Front) -> None:
        first = start(collect(front, request("a", photos=False)))
        await asyncio.sleep(0)
        with pytest.raises(RequestFailedError, match="'a' is under way already"):
            await collect(front, request("a", photos=False))
        front.deliver([("a", 5), ("a", Ended("finished"))])
        assert await first == [5]

    events = with_front(body, Gate())
    assert [type(event) for event in events] == [Arrived]


def test_a_client_who_leaves_while_its_cast_is_held_up_is_marked_before_the_scheduler_hears_of_it() -> None:
    inputs = Gate()
    leaver = request("a")

    async def body(front: Front) -> None:
        task = start(collect(front, leaver))
        await until(inputs.began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    events = with_front(body, inputs)
    assert leaver.gone
    assert events == [Left("a"), Arrived(leaver)]
    assert plan(events, Books(), lambda _: None, max_batch=1) == Decision(discarded=["a"])


def test_a_client_who_leaves_before_its_turn_casts_nothing() -> None:
    inputs = Gate()

    async def body(front: Front) -> None:
        first = start(collect(front, request("first")))
        await until(inputs.began.is_set)
        second = start(collect(front, request("second")))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        inputs.let.set()
        await until(lambda: inputs.cast_rids)
        front.deliver([("first", Ended("finished"))])
        await first

    events = with_front(body, inputs)
    assert inputs.cast_rids == ["first"]
    assert [event for event in events if isinstance(event, Left)] == [Left("second")]


def test_a_full_house_says_so_at_once_and_a_broken_one_too() -> None:
    async def body(front: Front) -> None:
        inside = start(collect(front, request("a", photos=False)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="1 requests are under way"):
            await collect(front, request("b", photos=False))
        front.fail("rank 1 was lost")
        with pytest.raises(RequestFailedError, match="rank 1 was lost"):
            await inside
        with pytest.raises(RequestFailedError, match="rank 1 was lost"):
            await collect(front, request("c", photos=False))

    events = with_front(body, Gate(), max_open=1)
    assert [type(event) for event in events] == [Arrived]


def test_local_ranks_say_that_they_have_no_broadcast() -> None:
    ranks: Ranks = Shard(0, 1, [])
    with pytest.raises(NotImplementedError, match="use torch or MPI"):
        ranks.broadcast_object(None)

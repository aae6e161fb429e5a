"""Construction, model-checked: each rank that may die, at each step, in each order in which the ranks can go.

The code is the real one, from `LazyBroadcast(...)` down to the sockets of a host. What is replaced is the backend's
context, whose calls (`open`, `exchange`, `connect`) are the steps, and the wait for an answer on a socket. One rank
runs at a time; whoever has come to a step waits for its turn, and is given it only if the step can be done. So a rank
that would wait for ever is seen at once. At each end: every survivor has an object, or an error that names the one who
died; later casts of those objects fail, naming it too; no thread and no descriptor is left (see `conftest`).

Two and three ranks, one death, before or after what it says in a step; all orders of precedence among the ranks.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest

from lazycast import ConfigMismatchError, LazyBroadcast
from lazycast.errors import CastTimeoutError, LazycastError
from lazycast.net.backend import Backend, Context, Link, Sink
from lazycast.start import meeting
from lazycast.testing.kit import spelled

_here = threading.local()  # `world` and `rank` of the thread


class Killed(BaseException):
    """What ends a rank in the middle of a step."""


class World:
    """Ranks that construct, one step of one rank at a time."""

    def __init__(self, order: Sequence[int], victim: int | None, step: int, *, after: bool) -> None:
        self.order, self.size = order, len(order)
        self.victim, self.step, self.after = victim, step, after
        self.dead: set[int] = set()
        self.said: dict[tuple[str, int], dict[int, Any]] = {}
        self.steps = [0] * self.size
        self.results: dict[int, Any] = {}
        self.stuck: list[str] = []
        self._waiting: dict[int, Callable[[], bool]] = {}
        self._turn: int | None = None
        self._changed = threading.Condition()

    # For the ranks

    def wait(self, rank: int, ready: Callable[[], bool]) -> None:
        """Wait for a turn."""
        with self._changed:
            self._waiting[rank] = ready
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == rank)
            self._turn = None
        if self.stuck:
            raise Killed

    def meet(self, rank: int, what: str, word: Any) -> list[Any]:
        """A step that all take together: return what they say, or name those who have died before they said it."""
        self.wait(rank, lambda: True)
        mine = self.steps[rank]
        dies = rank == self.victim and mine == self.step
        self.steps[rank] += 1
        if dies and not self.after:
            self._die(rank)
        words = self.said.setdefault((what, mine), {})
        words[rank] = word
        if dies:
            self._die(rank)
        self.wait(rank, lambda: words.keys() | self.dead >= {*range(self.size)})
        missing = sorted({*range(self.size)} - words.keys())
        if missing:
            raise CastTimeoutError(f"rank {missing[0]} did not come", rank=missing[0])
        return [words[other] for other in range(self.size)]

    def _die(self, rank: int) -> None:
        self.dead.add(rank)
        raise Killed

    # For the test

    def run(self, construct: Callable[[Backend], Any]) -> None:
        """Let all ranks construct."""

        def rank_of(rank: int) -> None:
            _here.world, _here.rank = self, rank
            try:
                self.results[rank] = construct(SteppedBackend(self, rank))
            except BaseException as exc:
                self.results[rank] = exc
            with self._changed:
                self._changed.notify_all()

        threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        while self._give_a_turn():
            pass
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    def _give_a_turn(self) -> bool:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._waiting) + len(self.results) == self.size, 60)
            ready = [rank for rank in self.order if rank in self._waiting and self._waiting[rank]()]
            if not self._waiting:
                return False
            if not ready:  # nobody will ever go on
                self.stuck.append(f"ranks {sorted(self._waiting)} wait for ever")
                ready = sorted(self._waiting)
            del self._waiting[ready[0]]
            self._turn = ready[0]
            self._changed.notify_all()
            return True


class SteppedBackend(Backend):
    name = "stepped"

    def __init__(self, world: World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size

    @classmethod
    def from_environment(cls) -> Backend:
        raise AssertionError("nobody asks for it by name")

    def open(self, *, timeout_s: float) -> Context:
        self._world.meet(self.rank, "open", None)
        return SteppedContext(self._world, self.rank)


class SteppedContext(Context):
    def __init__(self, world: World, rank: int) -> None:
        self._world, self._rank = world, rank

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        return self._world.meet(self._rank, "exchange", blob)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        self._world.meet(self._rank, "connect", None)
        return SilentLink(sink)

    def close(self) -> None:
        """It holds nothing."""


class SilentLink(Link):
    """A link on which nothing is said, but that a neighbour has ended."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        """Nobody listens."""

    def close(self, *, timeout_s: float) -> None:
        """It holds nothing."""

    def close_after_fork(self) -> None:
        raise AssertionError("nobody forks here")


_answered = meeting._answered


def _answered_in_turn(sock: socket.socket) -> bool:
    """The one wait of a meeting that is not a backend's: until there is an answer, or an end."""
    _here.world.wait(_here.rank, lambda: bool(select.select([sock], [], [], 0)[0]))
    return _answered(sock)


def constructed(world: World, shared: bool, **of_the_victim: Any) -> None:
    def construct(backend: Backend) -> LazyBroadcast[Any, Any]:
        own = of_the_victim if backend.rank == world.victim else {}
        options: dict[str, Any] = {"shared_memory": "auto" if shared else False, "timeout_s": 30, **own}
        return LazyBroadcast(backend=backend, **spelled(options))

    with mock.patch.object(meeting, "_answered", _answered_in_turn):
        world.run(construct)
    assert not world.stuck, (world.stuck, world.order, world.victim, world.step, world.after)


def close_all(world: World) -> None:
    for made in world.results.values():
        if isinstance(made, LazyBroadcast):
            made.close(timeout_s=0.1)


#: `open`, the handshake, three exchanges of the meeting, and `connect` where ranks share no memory.
STEPS = {True: 5, False: 6}
ORDERS = [order for size in (2, 3) for order in itertools.permutations(range(size))]
SHARED = pytest.mark.parametrize("shared", [True, False], ids=["on one host", "on hosts of their own"])


@SHARED
def test_nobody_dies(shared: bool) -> None:
    for order in ORDERS:
        world = World(order, None, 0, after=False)
        constructed(world, shared)
        assert {len(order)} == {made.size for made in world.results.values()}
        assert world.steps == [STEPS[shared]] * world.size  # so the tests below go through all steps
        close_all(world)


@SHARED
@pytest.mark.parametrize("after", [False, True], ids=["before it speaks", "after it has spoken"])
@pytest.mark.parametrize("step", range(6))
def test_a_death_at_any_step_is_an_error_that_names_it_on_every_survivor(shared: bool, after: bool, step: int) -> None:
    if step >= STEPS[shared]:
        return  # there is no such step
    for order in ORDERS:
        for victim in range(len(order)):
            world = World(order, victim, step, after=after)
            constructed(world, shared)
            assert isinstance(world.results[victim], Killed)
            for rank in set(order) - {victim}:
                _names_the_victim(world, rank, shared)
            close_all(world)


def _names_the_victim(world: World, rank: int, shared: bool) -> None:
    """Whether a survivor has an error, or an object whose casts have one."""
    made, where = world.results[rank], (world.order, world.victim, world.step, world.after, rank)
    if isinstance(made, LazyBroadcast):
        lane: Any = made._lane
        if not shared:
            lane.near.relay._link.sink.gone(world.victim, "it was killed")
        made = made.broadcast_async(1).exception(20)
    assert isinstance(made, LazycastError), (made, where)
    assert made.rank == world.victim or f"rank {world.victim} " in made.message, (made, where)


@pytest.mark.parametrize(
    ("options", "own"),
    [({"root": 9}, ValueError), ({"values": "readonly"}, ConfigMismatchError)],
    ids=["raises", "differs"],
)
def test_a_rank_that_raises_or_differs_is_everybodys_error(options: dict[str, Any], own: type[Exception]) -> None:
    for order in ORDERS:
        for victim in range(len(order)):
            world = World(order, victim, -1, after=False)
            constructed(world, True, **options)
            for rank, made in world.results.items():
                assert isinstance(made, own if rank == victim else ConfigMismatchError), (made, order, victim)
            assert len({str(made) for rank, made in world.results.items() if rank != victim}) == 1


@pytest.mark.parametrize("step", [0, 1])
def test_a_death_beside_a_rank_that_differs_ends_every_rank(step: int) -> None:
    for order in itertools.permutations(range(3)):
        world = World(order, order[0], step, after=True)
        constructed(world, True, values="readonly")
        for rank in order[1:]:
            assert isinstance(world.results[rank], (ConfigMismatchError, CastTimeoutError)), world.results

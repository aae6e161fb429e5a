"""A group of real lanes in one thread: every message, task and call is a step, and a schedule says in which order.

The lanes, relays, mailboxes, ledgers and parts are the real ones. What moves bytes is replaced: a link or mesh is a
queue for each pair of ranks, in order, with an end; workers are a queue of tasks for each rank; the engine thread is a
step of its own. So is everything the user does, for each rank in order. Nothing else runs, so a schedule determines all
that happens.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from lazycast.core.follower import FollowerLane
from lazycast.core.future import CastFuture
from lazycast.core.performer import Group, Performer, Result
from lazycast.core.root import RootLane
from lazycast.core.waits import Stage
from lazycast.errors import ClosedError, KeyInUseError, LazycastError
from lazycast.materialize.cores import Cores
from lazycast.net import relay as relay_module
from lazycast.net import upwards as upwards_module
from lazycast.net.backend import Context, Link, Sink
from lazycast.net.relay import Relay
from lazycast.net.topology import place
from lazycast.options import Options
from lazycast.tracebacks import forget_frames

#: A step: what kind, and of which rank it changes the state. Steps of different ranks do not depend on each other.
Step = tuple[str, int, int]

NEVER_S = 1e6
_EMPTY = memoryview(b"")


@dataclass(frozen=True)
class Do:
    """What a user does next: "cast", "ask", "discard", "cancel" the last, "time out" all that wait, "close", "die"."""

    what: str
    key: str | None = None
    payload: Any = None
    materialize: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Case:
    """A small group and what its users do."""

    scripts: tuple[tuple[Do, ...], ...]
    placement: str = "every"
    agree: bool = True
    replicated: bool = False
    hosts: tuple[tuple[int, ...], ...] | None = None  # default: each rank is one
    root: int = 0

    @property
    def size(self) -> int:
        return len(self.scripts)


class StepPerformer(Performer):
    """Runs user code when it is told to. Small parts run where they are, as in the real one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tasks: deque[tuple[Callable[[], Result], Callable[[Result], None], Callable[[], bool] | None]] = deque()

    def run(
        self,
        part: Callable[[], Result],
        done: Callable[[Result], None],
        *,
        here: bool = False,
        light: bool = False,
        helped: bool = False,
        seq: int = 0,
        priority: int = 0,
        unwanted: Callable[[], bool] | None = None,
    ) -> None:
        if here:
            self._do(part, done, unwanted)
        else:
            self.tasks.append((part, done, unwanted))

    def step(self) -> None:
        self._do(*self.tasks.popleft())
        forget_frames()  # as a worker does

    def stop(self) -> None:
        """What is queued is still run, as a worker would that was not quick enough."""


class Memory:
    """Counts the slots that somebody holds: a ctypes array for each holder, as in the real arena."""

    def __init__(self) -> None:
        self.held = 0

    def hold(self, content: bytes) -> memoryview:
        array = (ctypes.c_char * len(content)).from_buffer_copy(content)
        self.held += 1
        weakref.finalize(array, self._let_go)
        return memoryview(array).cast("B")

    def _let_go(self) -> None:
        self.held -= 1


@dataclass
class FakeSlot:
    view: memoryview


@dataclass
class _End:
    """The last thing on the way from one rank to another."""

    reason: str | None


class FakeMesh:
    """One rank's way to the others of its host."""

    def __init__(self, world: World, rank: int, host: Sequence[int]) -> None:
        self._world, self._rank = world, rank
        self.peers = [other for other in host if other != rank]
        self.pids: dict[int, int] = {}  # there is only this process, which does not stop

    def locks(self) -> tuple[Any, ...]:
        return ()

    def start(self, sink: Any, name: str, turn: Any) -> None:
        self._world.host_sinks[self._rank] = sink

    def allocate(self, nbytes: int) -> FakeSlot:
        return FakeSlot(self._world.memory.hold(bytes(nbytes)))

    def share(self, peers: list[int], header: bytes, slot: FakeSlot) -> None:
        for peer in peers:
            self._world.put(self._rank, peer, (header, self._world.memory.hold(bytes(slot.view))))

    def own_view(self, slot: FakeSlot) -> memoryview:
        return self._world.memory.hold(bytes(slot.view))

    def send(self, peer: int, header: bytes, body: memoryview = _EMPTY) -> None:
        self._world.put(self._rank, peer, (header, memoryview(bytearray(body))))

    def send_all(self, peers: Sequence[int], header: bytes, body: memoryview = _EMPTY) -> None:
        for peer in peers:
            self.send(peer, header, body)

    def in_use(self) -> tuple[int, int]:
        return self._world.memory.held, 0

    def taken_nbytes(self) -> int:
        return 0

    def close(self, *, timeout_s: float) -> None:
        for peer in self.peers:
            self._world.end(self._rank, peer, None)

    def close_after_fork(self) -> None:
        raise AssertionError("nobody forks here")


class FakeLink(Link):
    """One rank's way to other hosts."""

    def __init__(self, world: World, rank: int, neighbours: Sequence[int]) -> None:
        self._world, self._rank, self._neighbours = world, rank, neighbours

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        self._world.put(self._rank, peer, (header, memoryview(bytearray(body or b""))))

    def close(self, *, timeout_s: float) -> None:
        for peer in self._neighbours:
            self._world.end(self._rank, peer, None)

    def close_after_fork(self) -> None:
        raise AssertionError("nobody forks here")


class FakeContext(Context):
    def __init__(self, world: World, rank: int) -> None:
        self._world, self._rank = world, rank

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        raise AssertionError("the lanes have met")

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        self._world.link_sinks[self._rank] = sink
        return FakeLink(self._world, self._rank, neighbours)

    def close(self) -> None:
        """It holds nothing."""


@dataclass
class Member:
    """One rank: its lane, what its user still does, and what came of what it has done."""

    lane: RootLane | FollowerLane
    script: deque[Do]
    futures: list[concurrent.futures.Future[Any]] = field(default_factory=list)
    refused: list[BaseException] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)  # of the futures
    given_up: set[int] = field(default_factory=set)  # futures that this rank cancelled or that timed out here
    alive: bool = True
    closed: bool = False

    @property
    def performer(self) -> StepPerformer:
        performer = self.lane.engine.performer
        assert isinstance(performer, StepPerformer)
        return performer


_placed = functools.cache(place)  # thousands of worlds have the same ranks, and the same options


@functools.cache
def _options(root: int, placement: str, agree: bool, replicated: bool) -> Options:
    return Options(
        materialize=None,
        root=root,
        name="world",
        placement=placement,
        agree=agree,
        values="private",
        trust="pickle",
        max_inflight=64,
        max_inflight_nbytes=1 << 30,
        timeout_s=NEVER_S,
        warn_after_s=NEVER_S,
        executor=None,
        arena_nbytes=1 << 20,
        shared_memory=False,
        replicated=replicated,
    )


class World:
    """A case that is being run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.memory = Memory()
        self.link_sinks: dict[int, Sink] = {}
        self.host_sinks: dict[int, Any] = {}
        self._ways: dict[tuple[int, int], deque[tuple[int, Any]]] = {}  # with the number of the step that put it
        self._taken = 0
        self._ended: set[tuple[int, int]] = set()
        hosts = case.hosts or tuple((rank,) for rank in range(case.size))
        self._host_of = {rank: host for host in hosts for rank in host}
        options, size = _options(case.root, case.placement, case.agree, case.replicated), case.size
        names = [f"h{hosts.index(self._host_of[rank])}" for rank in range(size)]
        self.members: list[Member] = []
        for rank, script in enumerate(case.scripts):
            group = Group(rank, size, case.root, names, [Cores([0])] * size)
            host = self._host_of[rank]
            mesh: Any = FakeMesh(self, rank, host) if len(host) > 1 else None
            kind = RootLane if rank == case.root else FollowerLane
            lane = kind(group, options, FakeContext(self, rank), _placed(rank, case.root, hosts), mesh)
            if isinstance(lane, FollowerLane):
                lane._reads.told_s = math.inf  # what is read is told by `settle` alone: time must decide nothing
            relay: Relay = lane.near.relay
            relay.connect(lane.near._context, timeout_s=30.0, name="world")
            self.members.append(Member(lane, deque(script)))

    # The ways between ranks

    def put(self, sender: int, to: int, message: tuple[bytes, memoryview]) -> None:
        if (sender, to) not in self._ended:
            self._ways.setdefault((sender, to), deque()).append((self._taken - 1, message))

    def put_by(self, step: Step) -> int:
        """Return the number of the step, from 0, that put the message which this one takes; -1: it takes none."""
        kind, rank, sender = step
        return self._ways[sender, rank][0][0] if kind == "deliver" else -1

    def end(self, sender: int, to: int, reason: str | None) -> None:
        self.put(sender, to, _End(reason))  # type: ignore[arg-type]
        self._ended.add((sender, to))

    def _deliver(self, sender: int, to: int) -> None:
        way = self._ways[sender, to]
        _, message = way.popleft()
        member = self.members[to]
        if not member.alive or member.closed:
            return  # its sockets are closed
        near = to in self._host_of[sender]
        sink: Any = (self.host_sinks if near else self.link_sinks)[to]
        if isinstance(message, _End):
            sink.gone(sender, message.reason)
            return
        header, body = message
        if near:
            sink.host_message(sender, header, body)
            return
        if body.nbytes:
            sink.place(sender, header, body.nbytes)[:] = body
        sink.deliver(sender, header)

    # Steps

    def enabled(self) -> list[Step]:
        """Return the steps that are possible now, in an order that depends on nothing but them."""
        steps: list[Step] = []
        for rank, member in enumerate(self.members):
            if not member.alive:
                continue
            if member.script:
                steps.append(("user", rank, -1))
            if member.performer.tasks:
                steps.append(("work", rank, -1))
            if isinstance(member.lane, RootLane) and not member.closed and self._engine_has_work(member.lane):
                steps.append(("engine", rank, -1))
        steps += [("deliver", to, sender) for (sender, to), way in sorted(self._ways.items()) if way]
        return steps

    @staticmethod
    def _engine_has_work(lane: RootLane) -> bool:
        return bool(lane.admission.calls.sendable or lane.admission.calls.new or lane.admission.recalled)

    def do(self, step: Step) -> None:
        """Take a step."""
        self._taken += 1
        kind, rank, sender = step
        member = self.members[rank]
        if kind == "deliver":
            self._deliver(sender, rank)
        elif kind == "work":
            member.performer.step()
        elif kind == "engine":
            assert isinstance(member.lane, RootLane)
            member.lane.sending.work_one()
        else:
            self._user(rank, member, member.script.popleft())

    def _user(self, rank: int, member: Member, do: Do) -> None:
        lane = member.lane
        if do.what == "die":
            member.alive = False
            member.script.clear()
            for other in range(self.case.size):
                if other != rank and self._are_neighbours(rank, other):
                    self.end(rank, other, "it was killed")
        elif do.what == "close":
            member.closed = True
            lane.engine.close(0.0)
        elif do.what == "cancel":
            if member.futures[-1].cancel():
                member.given_up.add(len(member.futures) - 1)
        elif do.what == "time out":
            for ask in list(lane.asks.waits.waiting()):
                self._time_out(member, ask)
        else:
            self._call(member, do)

    def _are_neighbours(self, rank: int, other: int) -> bool:
        if other in self._host_of[rank]:
            return True
        return other in self.members[rank].lane.near.topology.remote_neighbours

    @staticmethod
    def _time_out(member: Member, ask: CastFuture[Any]) -> None:
        lane = member.lane
        if isinstance(lane, FollowerLane):
            lane.asks.on_due(Stage.ASK, ask)
        lane.asks.on_due(Stage.GIVE_UP, ask)
        member.given_up.update(index for index, future in enumerate(member.futures) if future is ask)

    def _call(self, member: Member, do: Do) -> None:
        try:
            if do.what == "discard":
                assert do.key is not None
                member.lane.discard(do.key)
            else:
                member.futures.append(member.lane.call(do.payload, do.materialize, do.key, NEVER_S))
                member.keys.append(do.key)
        except (ClosedError, KeyInUseError) as exc:
            member.refused.append(exc)

    def settle(self) -> None:
        """When no step is left: let ranks say what they have read, which they do later in one message.

        Those below say it first: whoever speaks for them passes it on.
        """
        for _ in self.members:
            for member in self.members:
                lane = member.lane
                if not isinstance(lane, FollowerLane) or not member.alive or member.closed:
                    continue
                if lane._reads:
                    lane._reads.due_s = 0.0
                upwards = lane.near.relay.upwards
                if upwards is not None and upwards.combining.due_s is not None:
                    upwards.combining.due_s = 0.0
                lane.work()
                lane._reads.told_s = math.inf
            while steps := self.enabled():
                self.do(steps[0])

    def bury(self) -> None:
        """Forget those who have died: a process that has ended holds nothing."""
        for rank, member in enumerate(self.members):
            if not member.alive:
                del member.lane
                self.link_sinks.pop(rank, None)
                self.host_sinks.pop(rank, None)

    def ending(self, rank: int, index: int) -> str:
        """How a call ended, as a text that is the same on all ranks if it is the same end."""
        future = self.members[rank].futures[index]
        assert future.done(), f"rank {rank}: {future!r} is not settled\n{self.members[rank].lane.engine.looks.dump()}"
        if future.cancelled():
            return "cancelled"
        exc = future.exception()
        if exc is None:
            return f"value {future.result()!r}"
        assert isinstance(exc, LazycastError), exc
        return f"{type(exc).__name__} of rank {exc.rank}"


def everything_in_slots() -> Any:
    """Patch the relay so that bodies of all sizes go into shared memory."""
    return mock.patch.object(relay_module, "INLINE_NBYTES", 0)


def timeless() -> Any:
    """Patch what goes up so that what is gathered for a while waits for a step, however slow we are."""
    return mock.patch.object(upwards_module, "time", SimpleNamespace(monotonic=lambda: 0.0))

"""Several roots on one engine: what their lanes share is connected once, or not at all."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lazycast import LazyBroadcast, PeerLostError, Tuning
from lazycast.backends import local
from lazycast.backends.local import LocalBackend
from lazycast.core import roots as roots_of
from lazycast.core.performer import Group
from lazycast.materialize.cores import Cores
from lazycast.net.channels import Channels
from lazycast.net.host.mesh import Mesh
from lazycast.net.topology import place

from .test_lane import FakeContext, FakeLink, options


@pytest.mark.parametrize("what", ["sockets", "link"])
@pytest.mark.parametrize("roots", ["one", "any"])
def test_ranks_that_cannot_be_connected_raise_and_leave_nothing(
    roots: str, what: str, together: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    if what == "sockets":
        monkeypatch.setattr(Mesh, "start", fails)
    else:
        monkeypatch.setattr(local._LocalContext, "connect", fails)

    def make(backend: LocalBackend) -> str:
        shared: bool | str = what == "sockets" and "auto"
        try:
            LazyBroadcast(backend=backend, roots=roots, timeout_s=60, tuning=Tuning(shared_memory=shared))
        except RuntimeError as exc:
            return str(exc)
        return "made"

    before = set(threading.enumerate())
    assert together(*(lambda b=b: make(b) for b in LocalBackend.threads(3))) == ["can't start new thread"] * 3
    deadline_s = time.monotonic() + 60
    while left := {one for one in threading.enumerate() if one.name.startswith("lazycast-")} - before:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.01)


def test_a_neighbour_that_ends_while_several_trees_connect_is_not_called_silent_later() -> None:
    size = 5
    context = FakeContext(FakeLink(1 << 20))

    def end(sink: Any) -> None:  # it is told of on a thread of the link's, which waits then for the others to connect
        told = threading.Thread(target=sink.gone, args=(0, None), daemon=True)
        told.start()
        told.join(0.3)

    context.during_connect = end
    group = Group(1, size, 0, ["h"] * size, [Cores([0])] * size)
    hosts = [[rank] for rank in range(size)]
    channels = Channels(context, None, [place(1, root, hosts) for root in range(size)])
    lanes = roots_of.lanes(group, dataclasses.replace(options(), roots="any"), channels)
    roots_of.start(lanes, channels, name="x", timeout_s=5.0)
    try:
        near = [lane for lane in lanes if 0 in lane.near.relay.away]
        assert near
        for lane in near:
            assert lane.near._heartbeat is not None
            turns = [lane.near._heartbeat.turn(time.monotonic() + later_s, {}) for later_s in range(6, 60, 6)]
            assert 0 not in [rank for turn in turns for rank, _ in turn.silent]
    finally:
        lanes[1].engine.close(0.0)


def test_after_a_loss_there_is_nothing_to_drop(together: Callable[..., list[Any]]) -> None:
    tuning = Tuning(max_inflight=2, beyond="drop")
    gate = threading.Event()
    objects = together(
        *(
            lambda b=b: LazyBroadcast(gate.wait, backend=b, placement="every", tuning=tuning)
            for b in LocalBackend.threads(2)
        )
    )
    try:
        futures = [objects[0].broadcast_async(30, key=key) for key in ("a", "b")]
        lane: Any = objects[0]._lane
        lane.on_neighbour_gone(1, "end of file")
        futures += [objects[0].broadcast_async(30, key=key) for key in ("c", "d")]
        for future in futures:
            with pytest.raises(PeerLostError, match="rank 1"):
                future.result(20)
    finally:
        gate.set()
        together(*(lazy.close for lazy in objects))

"""Where every rank is a root: one lane for the casts of each, on one engine, one mesh and one link."""

from __future__ import annotations

import dataclasses
import time

from lazycast.core.engine import Engine
from lazycast.core.follower import FollowerLane
from lazycast.core.performer import Group
from lazycast.core.root import RootLane
from lazycast.net.channels import Channels
from lazycast.options import Options


def lanes(group: Group, options: Options, channels: Channels) -> list[RootLane | FollowerLane]:
    """Build the lanes of one object on this rank, by root. Its own is a root's, all others are followers'."""
    engine = Engine(group._replace(root=group.rank), options)
    found: list[RootLane | FollowerLane] = []
    for root, tree in enumerate(channels.trees):
        kind = RootLane if root == group.rank else FollowerLane
        context, mesh = channels.context_of(root), channels.mesh_of(root)
        told = dataclasses.replace(options, root=root)
        found.append(kind(group._replace(root=root), told, context, tree, mesh, engine))
    return found


def start(found: list[RootLane | FollowerLane], channels: Channels, *, name: str, timeout_s: float) -> None:
    """Connect all trees, and begin. Collective."""
    deadline_s = time.monotonic() + timeout_s
    turns = [lane.on_turn for lane in found if lane.on_turn is not None]

    def turn() -> float | None:
        return min((due_s for turn in turns if (due_s := turn()) is not None), default=None)

    for lane in found:
        lane.near.listen()
    try:
        channels.connect(
            [lane.near.relay for lane in found], timeout_s=timeout_s, name=f"lazycast-{name}-host", turn=turn
        )
        for lane in found:
            lane.start(timeout_s=max(0.001, deadline_s - time.monotonic()))
    except BaseException:
        channels.give_up()
        raise

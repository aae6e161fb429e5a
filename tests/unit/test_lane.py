"""A lane on a link that only takes notes."""

from __future__ import annotations

from lazycast.cores import Cores
from lazycast.engine.follower import FollowerLane
from lazycast.engine.performer import Group
from lazycast.options import Options
from lazycast.topology import place
from lazycast.wire import Gone
from tests.unit.test_relay import FakeContext, FakeLink

RANK, VICTIM, SIZE = 3, 4, 5


def options() -> Options:
    return Options(
        materialize=None,
        root=0,
        name="default",
        placement="every",
        agree=True,
        values="private",
        trust="pickle",
        max_inflight=64,
        max_inflight_nbytes=1 << 30,
        timeout_s=5.0,
        warn_after_s=5.0,
        executor=None,
        arena_nbytes=1 << 20,
        shared_memory=False,
    )


def test_a_rank_that_closes_after_a_loss_passes_the_loss_on_before_its_farewell() -> None:
    """Or others, who have not noticed the loss yet, would blame the one that closed."""
    link = FakeLink(1 << 20)
    group = Group(RANK, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = FollowerLane(group, options(), FakeContext(link), place(RANK, 0, [[r] for r in range(SIZE)]), None)
    lane.start(timeout_s=1.0)
    lane.on_neighbour_gone(VICTIM, "it ended without a farewell")  # on a host: no neighbour of ours in the tree
    assert link.messages() == []
    lane.close(0.0)
    told = [message for _, message, _ in link.messages()]
    assert [(m.rank, m.failure.kind) for m in told if isinstance(m, Gone)] == [(VICTIM, "lost"), (RANK, "closed")]

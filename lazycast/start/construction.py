"""How the ranks of a group meet, and each gets its engine: the handshake, who shares a host, the lanes' kinds."""

from __future__ import annotations

import functools
import logging
import os
import time
from pathlib import Path
from typing import Protocol

from lazycast.arguments import FOR_EVER_S
from lazycast.codec import script
from lazycast.core import roots
from lazycast.core.engine import Engine
from lazycast.core.follower import FollowerLane
from lazycast.core.helpers import program
from lazycast.core.performer import Group
from lazycast.core.root import RootLane
from lazycast.core.solo import SoloLane
from lazycast.net.backend import Backend, Context
from lazycast.net.channels import Channels
from lazycast.net.host.mesh import Mesh
from lazycast.net.topology import place
from lazycast.options import Options
from lazycast.start import handshake, helping, meeting

logger = logging.getLogger("lazycast")


def meet(backend: Backend, options: Options, error: Exception | None) -> Engine:
    """Meet the other ranks, whatever this one has to say, and build the engine."""
    program.refuse_while_brought("LazyBroadcast() is called")
    limit = options.timeout_s
    timeout_s = min(float(limit), FOR_EVER_S) if isinstance(limit, (int, float)) and limit > 0 else 300.0
    deadline_s = time.monotonic() + timeout_s
    error = error if error is not None else helping.objection(options)
    context = backend.open(timeout_s=timeout_s)
    try:
        mine = handshake.hello(backend.rank, options.agreed(), error)
        left_s = max(0.001, deadline_s - time.monotonic())
        blobs = context.exchange(handshake.encode(mine), timeout_s=left_s)
        hellos = [handshake.decode(blob, rank) for rank, blob in enumerate(blobs)]
        disagreement = handshake.disagreement(hellos)
        if error is not None:
            raise error
        if disagreement is not None:
            raise disagreement
        group = Group(
            backend.rank,
            backend.size,
            options.root,
            [h.host for h in hellos],
            [h.cores for h in hellos],
            [h.clock for h in hellos],
            same_program=script.same([h.program for h in hellos]),
            ident=hellos[options.root].ident,
        )
        engine, start, not_shared = _build(group, options, context, deadline_s)
        if backend.size == 1:
            context.close()
        try:
            _trace_if_wanted(engine)  # before anything can arrive
            helping.begin(engine, group, options, context, deadline_s)
            start(timeout_s=max(0.001, deadline_s - time.monotonic()))
        except BaseException:
            engine.close(0.0)
            raise
    except BaseException:
        context.close()
        raise
    engine.notices.constructed(
        size=group.size,
        root=options.root if options.roots == "one" else None,
        host=group.hosts[group.rank],
        backend=backend.name,
        placement=options.placement,
        hosts=engine.own.seen().hosts,
        not_shared=not_shared,
    )
    return engine


class _Start(Protocol):
    """Connects what was built, and has it begin. Collective."""

    def __call__(self, *, timeout_s: float) -> None: ...


def _build(group: Group, options: Options, context: Context, deadline_s: float) -> tuple[Engine, _Start, str | None]:
    """Find out which ranks share a host, and build what is to be started.

    Returns: this rank's engine, how to start, and why this rank shares no memory, if so.
    """
    rank, size, root = group[:3]
    if size == 1:
        alone = SoloLane(group, options)
        return alone.engine, alone.start, "there is one rank"
    left_s = max(0.001, deadline_s - time.monotonic())
    host = meeting.meet(context, rank, size, wanted=options.shared_memory == "auto", timeout_s=left_s)
    mesh = None
    if host.sockets:
        copy_all = options.values == "copy"
        mesh = Mesh(host.ranks, rank, host.sockets, options.arena_nbytes, copy_all=copy_all)
    if options.roots == "any":
        channels = Channels(context, mesh, [place(rank, one, host.hosts) for one in range(size)])
        lanes = roots.lanes(group, options, channels)
        return lanes[rank].engine, functools.partial(roots.start, lanes, channels, name=options.name), host.reason
    kind = RootLane if rank == root else FollowerLane
    lane = kind(group, options, context, place(rank, root, host.hosts), mesh)
    return lane.engine, lane.start, host.reason


def _trace_if_wanted(engine: Engine) -> None:
    folder = os.environ.get("LAZYCAST_TRACE")
    if folder:
        try:
            engine.looks.trace(Path(folder))
        except OSError as exc:  # no reason for one rank to leave the others alone
            logger.error("lazycast: LAZYCAST_TRACE=%s: this rank is not traced: %s", folder, exc)

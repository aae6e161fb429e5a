"""Who is beside a rank: its place in the topology, what it is connected by, and an ear for who is alive.

Guarantees:

* Nothing is sent while nobody waits, but for a sign of life to the next hosts every few seconds.
* Silence ends nothing: who does not answer is named, in warnings, time-outs and dumps, and may come back.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from lazycast.core.engine import Engine
from lazycast.core.failures import clip
from lazycast.core.future import CastFuture
from lazycast.core.own_part import MAX_REASON
from lazycast.core.performer import Group
from lazycast.core.situation import Situation, ago, silent_words
from lazycast.net.backend import Context
from lazycast.net.combining import Combining
from lazycast.net.heartbeat import Heartbeat
from lazycast.net.host.mesh import Mesh
from lazycast.net.host.processes import word
from lazycast.net.relay import Receiver, Relay
from lazycast.net.topology import Topology
from lazycast.net.wire import Failure, Loss, Silence
from lazycast.options import Options

#: Whoever has not answered a question for less than this is not called silent yet (seconds).
_ANSWERS_WITHIN_S = 0.02


class Neighbours:
    """See the module's text.

    Args:
        context: by which neighbours on other hosts are connected.
        mesh: by which those of this host are, if there are any.
        receiver: takes what they send.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        context: Context,
        topology: Topology,
        mesh: Mesh | None,
        receiver: Receiver,
    ) -> None:
        self._engine, self._group, self._context = engine, group, context
        self.topology = topology
        combining = None
        if topology.parent is not None and topology.children:
            combining = Combining(
                topology, options.max_inflight, options.max_inflight_nbytes, costs=options.placement == "auto"
            )
        self.relay = Relay(topology, receiver, mesh, combining, engine.thread.wake)
        self._heartbeat: Heartbeat | None = None  # once it has begun to connect to other hosts

    def listen(self) -> None:
        """Begin to note who is heard, before anybody can have ended."""
        if self.relay.away and self._heartbeat is None:
            self._heartbeat = Heartbeat(self.relay.away, time.monotonic())

    def start(self, *, timeout_s: float) -> None:
        """Connect and begin. Collective."""
        self.listen()
        self.relay.connect(self._context, timeout_s=timeout_s, name=self._engine.name)
        self._engine.thread.start()

    def close(self, timeout_s: float) -> None:
        """Say farewell and let go of all that is connected."""
        self.relay.close(timeout_s=timeout_s)
        self._context.close()

    def end_of(self, peer: int, reason: str | None) -> Failure:
        """Put the end of a neighbour, closed (None) or lost (why), into the form that travels."""
        host = self._group.hosts[peer]
        with self._engine.lock:
            if self._heartbeat is not None:
                self._heartbeat.gone(peer)
        if reason is None:
            return Failure("closed", peer, host, f"rank {peer} ({host}) has closed its object")
        link, heard_s = self.relay.link_to(peer) or "link", self.relay.heard_ago_s(peer)
        text = f"rank {peer} ({host}) was lost: {reason} ({link}, {ago(heard_s)})"
        loss = Loss(self._group.rank, link, clip(reason, MAX_REASON), heard_s)
        return Failure("lost", peer, host, clip(text, 2 * MAX_REASON), loss=loss)

    # Signs of life

    def beat_beside(self, due_s: float | None) -> float | None:
        """Give the next hosts a sign of life when it is time, and say who gives none.

        Returns: when to come back at the latest, for this or for what is due at `due_s` (monotonic seconds).
        """
        if self._heartbeat is None:
            return due_s
        beat_s = self._beat(self._heartbeat)
        return beat_s if due_s is None else min(due_s, beat_s)

    def _beat(self, heartbeat: Heartbeat) -> float:
        with self._engine.lock:
            news = heartbeat.turn(time.monotonic(), self.relay.heard_s)
        if news.beat:
            self.relay.beat()
        notices, hosts, link_to = self._engine.notices, self._group.hosts, self.relay.link_to
        for rank, silent_s in news.silent:
            notices.silent(rank, hosts[rank], silent_s, link_to(rank), self._why_silent(rank))
        for rank, silent_s in news.back:
            notices.heard_again(rank, hosts[rank], silent_s, link_to(rank))
        return heartbeat.next_s

    def silences(self, ask: CastFuture[Any]) -> tuple[Silence, ...]:
        """With the lock held: return who did not answer when the root was asked about a call; if it was the root, or
        somebody on the way to it, that one.
        """
        inquiry = ask.inquiry
        if inquiry is None:
            return ()
        if inquiry.status is not None:
            return tuple(inquiry.status.silent)
        silent_s = time.monotonic() - inquiry.asked_s
        way = self.topology.way_up()
        passed = max((way.index(rank) for rank in inquiry.relayed if rank in way), default=-1)
        if passed + 1 >= len(way) or silent_s < _ANSWERS_WITHIN_S:
            return ()
        return (Silence(way[passed + 1], silent_s, self.relay.heard_ago_s(way[passed + 1])),)

    def worded(self, situation: Situation) -> Situation:
        """Put into words who is silent, and why. Without the lock: it may ask the kernel."""
        words = silent_words(situation.silences, self.topology.below, self._why_silent)
        return dataclasses.replace(situation, silent=words)

    def _why_silent(self, rank: int) -> str:
        known = word(self.relay.pid_of(rank))
        if known is not None:
            return known
        return "frozen or starved?" if rank in self.topology.host else "frozen, starved, or cut off?"

    # Looking

    @property
    def hosts(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each host."""
        return self.topology.hosts

    def shared(self) -> tuple[int, int, int]:
        """Return slots and bytes of this rank's shared memory that somebody holds, and all that it has taken."""
        return *self.relay.in_use(), self.relay.taken_nbytes()

    def nbytes(self) -> tuple[int, int, int]:
        """Return the bytes sent to other hosts, received from anybody, and received from this host."""
        return self.relay.nbytes_sent, self.relay.nbytes_received, self.relay.nbytes_from_host

    def links(self) -> list[str]:
        """Return lines of a dump: who was heard when, and what waits to be sent."""
        ranks = sorted({*self.topology.host, *self.topology.remote_neighbours} - {self._group.rank})
        heard = [f"rank {r}: {self.relay.link_to(r)}, {ago(self.relay.heard_ago_s(r))}" for r in ranks]
        held = self.relay.upwards.combining.lines() if self.relay.upwards is not None else []
        return heard + held + self.relay.state()

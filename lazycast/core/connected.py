"""What a rank with neighbours has beside its desk: its place in the topology, and an ear for who is alive.

Guarantees:

* Nothing is sent while nobody waits, but for a sign of life to the next hosts every few seconds.
* Silence ends nothing: who does not answer is named, in warnings, time-outs and dumps, and may come back.
* What is said of a call is looked up when it is said, under the lock.
"""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod

from lazycast.core.arrival import Arrival
from lazycast.core.ask import Ask
from lazycast.core.desk import Desk
from lazycast.core.engine import Engine
from lazycast.core.failures import clip
from lazycast.core.parts import MAX_REASON
from lazycast.core.performer import Group
from lazycast.core.situation import Phase, Situation, ago, silent_words
from lazycast.net.backend import Context
from lazycast.net.heartbeat import Heartbeat
from lazycast.net.host.mesh import Mesh
from lazycast.net.host.processes import word
from lazycast.net.relay import Relay
from lazycast.net.topology import Topology
from lazycast.net.wire import AnyMessage, Failure, Loss, Silence
from lazycast.options import Options

#: Whoever has not answered a question for less than this is not called silent yet (seconds).
_ANSWERS_WITHIN_S = 0.02


class Connected(Desk):
    """See the module's text."""

    def __init__(
        self,
        group: Group,
        options: Options,
        context: Context,
        topology: Topology,
        mesh: Mesh | None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(group, options, engine)
        self._context = context
        self._topology = topology
        self._relay = Relay(topology, self, mesh)
        self._heartbeat: Heartbeat | None = None  # once it has begun to connect to other hosts

    def listen(self) -> None:
        """Begin to note who is heard, before anybody can have ended."""
        if self._relay.away and self._heartbeat is None:
            self._heartbeat = Heartbeat(self._relay.away, time.monotonic())

    def start(self, *, timeout_s: float) -> None:
        """Connect and begin. Collective."""
        self.listen()
        self._relay.connect(self._context, timeout_s=timeout_s, name=self._options.name)
        self._clock.start()

    @property
    def relay(self) -> Relay:
        """This rank's place in the tree of its root."""
        return self._relay

    @abstractmethod
    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        """Take a message from the relay."""

    @abstractmethod
    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        """Learn from the relay that a rank sends no more: closed (None) or lost (why)."""

    def on_turn(self) -> float | None:
        """Nothing is due, on the thread that receives from this host."""
        return None

    def _end_of(self, peer: int, reason: str | None) -> Failure:
        """Put the end of a neighbour into the form that travels."""
        host = self._group.hosts[peer]
        with self._lock:
            if self._heartbeat is not None:
                self._heartbeat.gone(peer)
        if reason is None:
            return Failure("closed", peer, host, f"rank {peer} ({host}) has closed its object")
        link, heard_s = self._relay.link_to(peer) or "link", self._relay.heard_ago_s(peer)
        text = f"rank {peer} ({host}) was lost: {reason} ({link}, {ago(heard_s)})"
        loss = Loss(self._group.rank, link, clip(reason, MAX_REASON), heard_s)
        return Failure("lost", peer, host, clip(text, 2 * MAX_REASON), loss=loss)

    # Engine thread

    def _work(self) -> float | None:
        due_s = self._do_queued()
        if self._heartbeat is None:
            return due_s
        beat_s = self._beat(self._heartbeat)
        return beat_s if due_s is None else min(due_s, beat_s)

    @abstractmethod
    def _do_queued(self) -> float | None:
        """Do what is queued; return when to come back at the latest."""

    def _beat(self, heartbeat: Heartbeat) -> float:
        """Give the next hosts a sign of life when it is time, and say who gives none."""
        with self._lock:
            news = heartbeat.turn(time.monotonic(), self._relay.heard_s)
        if news.beat:
            self._relay.beat()
        hosts, link_to = self._group.hosts, self._relay.link_to
        for rank, silent_s in news.silent:
            self.notices.silent(rank, hosts[rank], silent_s, link_to(rank), self._why_silent(rank))
        for rank, silent_s in news.back:
            self.notices.heard_again(rank, hosts[rank], silent_s, link_to(rank))
        return heartbeat.next_s

    # Whom a call waits for

    def _phase(self, ask: Ask) -> Phase:
        """With the lock held: return how far a call has come, who is missing and who has answered."""
        arrival = ask.arrival
        if arrival is None:
            return self._phase_before_arrival(ask)
        owner = arrival.owner
        if arrival.declined and not arrival.begun:
            return "it has failed elsewhere, and the verdict is on its way", (self._group.root,), ()
        if not arrival.begun and owner is not None and owner != self._group.rank:
            unasked = " or has not asked for it" if arrival.message.fingerprint is not None else ""
            return f"rank {owner} materializes it for this host and is not done{unasked}", (owner,), ()
        if arrival.local is None:
            return self._phase_of_own_part(arrival)
        return self._phase_of_agreement(ask, arrival)

    @abstractmethod
    def _phase_before_arrival(self, ask: Ask) -> Phase:
        """The same, of a call that has no cast yet."""

    def _phase_of_own_part(self, arrival: Arrival) -> Phase:
        if arrival.begun:
            held = self._performer.holders(arrival.message.seq)
            return f"waits for {held}" if held else "decoding or materializing here", (self._group.rank,), ()
        return "its code has not come from the root", (self._group.root,), ()

    @abstractmethod
    def _phase_of_agreement(self, ask: Ask, arrival: Arrival) -> Phase:
        """The same, of a call that is done here."""

    def _notes(self, ask: Ask) -> tuple[str, ...]:
        """What else there is to say of a call."""
        return ()

    def _look(self, ask: Ask) -> Situation:
        phase, missing, answered = self._phase(ask)
        nbytes = ask.arrival.message.nbytes if ask.arrival is not None else None
        return Situation(phase, missing, answered, self._silences(ask), nbytes=nbytes, notes=self._notes(ask))

    def _worded(self, situation: Situation) -> Situation:
        words = silent_words(situation.silences, self._topology.below, self._why_silent)
        return dataclasses.replace(situation, silent=words)

    def _silences(self, ask: Ask) -> tuple[Silence, ...]:
        """Return who did not answer when the root was asked about a call; if it was the root, or somebody on the way
        to it, that one.
        """
        inquiry = ask.inquiry
        if inquiry is None:
            return ()
        if inquiry.status is not None:
            return tuple(inquiry.status.silent)
        silent_s = time.monotonic() - inquiry.asked_s
        way = self._topology.way_up()
        passed = max((way.index(rank) for rank in inquiry.relayed if rank in way), default=-1)
        if passed + 1 >= len(way) or silent_s < _ANSWERS_WITHIN_S:
            return ()
        return (Silence(way[passed + 1], silent_s, self._relay.heard_ago_s(way[passed + 1])),)

    def _why_silent(self, rank: int) -> str:
        known = word(self._relay.pid_of(rank))
        if known is not None:
            return known
        return "frozen or starved?" if rank in self._topology.host else "frozen, starved, or cut off?"

    def after_fork_in_child(self) -> None:
        super().after_fork_in_child()
        for lane in self.lanes:
            if isinstance(lane, Connected):
                lane.relay.close_after_fork()

    def _hosts(self) -> tuple[tuple[int, ...], ...]:
        return self._topology.hosts

    def _shared(self) -> tuple[int, int, int]:
        return *self._relay.in_use(), self._relay.taken_nbytes()

    def _nbytes(self) -> tuple[int, int, int]:
        return self._relay.nbytes_sent, self._relay.nbytes_received, self._relay.nbytes_from_host

    def _dump_leases(self) -> list[str] | None:
        return self._relay.leases()

    def _dump_links(self) -> list[str]:
        ranks = sorted({*self._topology.host, *self._topology.remote_neighbours} - {self._group.rank})
        heard = [f"rank {r}: {self._relay.link_to(r)}, {ago(self._relay.heard_ago_s(r))}" for r in ranks]
        return heard + self._relay.state()

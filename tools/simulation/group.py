"""A group in simulated time: the root's `Ledger`, each leader's `Combining`, each rank's `Reads`, and the tree.

What is sent has the headers of `net.wire`. What is modelled, not run: threads, sockets, matching of calls (every rank
has asked before a cast comes), codecs and materializers (a time), owners (every rank makes its own value), time limits.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lazycast.core.ledger import Ledger
from lazycast.core.reads import SEQS_PER_READ, Reads
from lazycast.net import wire
from lazycast.net.combining import Combining
from lazycast.net.members import unpacked
from lazycast.net.topology import Topology, place
from lazycast.net.wire import AnyMessage, Cast, Chunk, Cost, Failure, Gone, MaterializerRef, Read, Report, Verdict
from tools.simulation.machine import Machines, Speeds

ROOT = 0
_WINDOW, _WINDOW_NBYTES = 64, 1 << 28
REF = MaterializerRef("0" * 32, "decode", ("photos", "decode"))


@dataclass(frozen=True)
class Plan:
    """What a group does.

    Attributes:
        ranks: how many; `per_host` of them on each host, the last one may have fewer.
        casts: how many, one every `every_s` seconds, of `nbytes` each, in pieces of at most `chunk_nbytes`.
        make_s: what a value takes to make, plus up to as much again, evenly spread. A share `slow` of the ranks takes
            `slow_factor` times as long.
        dies: a rank that is killed `dies_s` seconds after the first cast; the root cannot be.
    """

    ranks: int
    per_host: int = 8
    casts: int = 1
    every_s: float = 1.0
    nbytes: int = 1024
    chunk_nbytes: int = 1 << 20
    agree: bool = True
    combined: bool = True
    make_s: float = 200e-6
    slow: float = 0.0
    slow_factor: float = 5.0
    dies: int | None = None
    dies_s: float = 0.0
    seed: int = 0
    speeds: Speeds = field(default_factory=Speeds)


@dataclass
class Outcome:
    """What came of a plan; times in seconds, of casts from when each was made.

    Attributes:
        value_s: by cast, until the last living rank had its value; `verdict_s` until it had the verdict, or None.
        news_s: from the death of a rank until the last living one knew; None: nobody died, or somebody never heard.
        root_got: messages that reached the root, by kind; `root_sent`: those that left it.
        root_cpu_s: what these took by `Speeds`.
        books_s: CPU time that the root's ledger really took here, for all casts.
    """

    value_s: list[float | None] = field(default_factory=list)
    verdict_s: list[float | None] = field(default_factory=list)
    news_s: float | None = None
    root_got: dict[str, int] = field(default_factory=dict)
    root_sent: dict[str, int] = field(default_factory=dict)
    root_cpu_s: float = 0.0
    books_s: float = 0.0


class Group:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        if plan.dies is not None and not 0 < plan.dies < plan.ranks:
            raise ValueError(f"dies={plan.dies}: a rank beside the root, below {plan.ranks}")
        self._plan = plan
        ranks = range(plan.ranks)
        self._hosts = [list(ranks[first : first + plan.per_host]) for first in ranks[:: plan.per_host]]
        self._machines = Machines(self._hosts, plan.speeds)
        self._random = random.Random(plan.seed)
        self._slow = {rank for rank in ranks if self._random.random() < plan.slow}
        self._top, self._parent, self._children, self._near = self._tree()
        window = _WINDOW, _WINDOW_NBYTES
        self._combining = {
            leader: Combining(place_, *window, costs=False) for leader, place_ in self._leaders.items() if plan.combined
        }
        self._reads = {rank: Reads(*window) for rank in ranks if rank != ROOT}
        self._ledger = Ledger(ROOT, ranks[1:])
        self._missing: dict[tuple[int, int], int] = {}  # by rank and cast: bytes of the body that are to come
        self._casts: dict[int, Cast] = {}
        self._begun_s: dict[int, float] = {}
        self._valued: dict[int, dict[int, float]] = {}  # by cast and rank
        self._told: dict[int, dict[int, float]] = {}
        self._knows: dict[int, float] = {}  # of the death
        self.outcome = Outcome()

    def _tree(self) -> tuple[Topology, dict[int, int], dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
        """Every rank computes its own place; here those who lead are asked, and share what is the same for all."""
        top = place(ROOT, ROOT, self._hosts)
        places = {host[0]: place(host[0], ROOT, self._hosts) for host in self._hosts}
        for below in places.values():
            vars(below)["_members"] = top._members
        self._leaders = {leader: below for leader, below in places.items() if leader != ROOT and below.children}
        parent = {rank: host[0] for host in self._hosts for rank in host[1:]}
        parent |= {leader: below.parent for leader, below in places.items() if below.parent is not None}
        children = dict.fromkeys(parent, ()) | {leader: below.children for leader, below in places.items()}
        near = {rank: tuple(other for other in host if other != rank) for host in self._hosts for rank in host}
        return top, parent, children, near

    def run(self) -> Outcome:
        """Let it happen, once."""
        plan, machines = self._plan, self._machines
        for seq in range(1, plan.casts + 1):
            machines.at((seq - 1) * plan.every_s, functools.partial(self._cast, seq))
        if plan.dies is not None:
            machines.at(plan.dies_s, functools.partial(self._die, plan.dies))
        machines.run()
        out, living = self.outcome, set(range(plan.ranks)) - {plan.dies}
        for seq, begun_s in self._begun_s.items():
            for found, of in ((out.value_s, self._valued), (out.verdict_s, self._told)):
                had = of[seq]
                found.append(max(had[rank] for rank in living) - begun_s if living <= had.keys() else None)
        if plan.dies is not None and living <= self._knows.keys():
            out.news_s = max(self._knows[rank] for rank in living) - plan.dies_s
        out.root_cpu_s = machines.cpu_s[ROOT]
        return out

    # Sending

    def _send(self, sender: int, to: Sequence[int], message: AnyMessage, body_nbytes: int = 0) -> None:
        nbytes = len(wire.encode(message)) + body_nbytes
        for rank in to:
            leaves_s = self._machines.spend(sender, self._plan.speeds.send_s)
            if sender == ROOT:
                _count(self.outcome.root_sent, message)
            arrives_s = self._machines.arrives_s(sender, rank, nbytes, leaves_s)
            self._machines.at(arrives_s, functools.partial(self._arrive, sender, rank, message, body_nbytes))

    def _arrive(self, sender: int, rank: int, message: AnyMessage, body_nbytes: int) -> None:
        if self._dead(rank):
            return
        done_s = self._machines.spend(rank, self._plan.speeds.receive_s)
        if rank == ROOT:
            _count(self.outcome.root_got, message)
        self._machines.at(done_s, functools.partial(self._handle, sender, rank, message, body_nbytes))

    def _dead(self, rank: int) -> bool:
        return rank == self._plan.dies and self._machines.now_s >= self._plan.dies_s

    def _handle(self, sender: int, rank: int, message: AnyMessage, body_nbytes: int) -> None:
        if self._dead(rank):
            return
        if isinstance(message, (Cast, Chunk)):
            self._on_piece(rank, message, body_nbytes)
        elif isinstance(message, Verdict):
            self._send(rank, self._children[rank], message)
            self._told[message.seq][rank] = self._machines.now_s
        elif isinstance(message, (Report, Read)):
            self._up(rank, message)
        elif isinstance(message, Gone):
            self._know(rank, message)

    # Casts

    def _cast(self, seq: int) -> None:
        plan = self._plan
        if ROOT in self._knows:  # later calls fail at once
            return
        cast = Cast(seq, None, "every", plan.agree, REF, nbytes=plan.nbytes, sent_s=self._machines.now_s)
        self._casts[seq], self._begun_s[seq] = cast, self._machines.now_s
        self._valued[seq], self._told[seq] = {}, {}
        began_s = time.thread_time()
        self._ledger.sent(seq, None, plan.nbytes, agree=plan.agree)
        self.outcome.books_s += time.thread_time() - began_s
        near = [rank for rank in self._children[ROOT] if rank in self._near[ROOT]]
        self._send(ROOT, near, cast)
        far = [rank for rank in self._children[ROOT] if rank not in self._near[ROOT]]
        for offset in range(0, max(1, plan.nbytes), plan.chunk_nbytes):
            nbytes = min(plan.chunk_nbytes, plan.nbytes - offset)
            self._send(ROOT, far, cast if offset == 0 else Chunk(seq, offset, nbytes), nbytes)
        self._make(ROOT, seq)

    def _on_piece(self, rank: int, message: Cast | Chunk, body_nbytes: int) -> None:
        """A leader passes pieces on to other hosts as they come, and the whole to its own, where memory is shared."""
        seq, leads = message.seq, self._parent[rank] not in self._near[rank]
        if leads:
            if isinstance(message, Cast) and rank in self._combining:
                self._combining[rank].opened(message, self._machines.now_s)
            self._send(rank, [to for to in self._children[rank] if to not in self._near[rank]], message, body_nbytes)
            left = self._missing.pop((rank, seq), self._plan.nbytes) - body_nbytes
            if left > 0:
                self._missing[rank, seq] = left
                return
            self._send(rank, [to for to in self._children[rank] if to in self._near[rank]], self._casts[seq])
        self._make(rank, seq)

    def _make(self, rank: int, seq: int) -> None:
        took_s = self._plan.make_s * (1 + self._random.random())
        if rank in self._slow:
            took_s *= self._plan.slow_factor
        self._machines.at(self._machines.work(rank, took_s), functools.partial(self._made, rank, seq, took_s))

    def _made(self, rank: int, seq: int, took_s: float) -> None:
        if self._dead(rank):
            return
        self._valued[seq][rank] = self._machines.now_s
        if self._plan.agree:
            self._up(rank, Report(rank, seq, rank != ROOT, cost=Cost(took_s, took_s)))
        elif rank != ROOT and self._reads[rank].add(seq, self._plan.nbytes):
            due_s = self._reads[rank].due_s
            assert due_s is not None
            self._machines.at(max(due_s, self._machines.now_s), functools.partial(self._tell_reads, rank))

    # What goes up

    def _tell_reads(self, rank: int) -> None:
        if not self._dead(rank):
            reads = self._reads[rank].take(self._machines.now_s)
            for seqs in (reads[start : start + SEQS_PER_READ] for start in range(0, len(reads), SEQS_PER_READ)):
                self._up(rank, Read(rank, seqs))

    def _up(self, rank: int, message: Report | Read) -> None:
        """A rank says, or passes on, something of a cast."""
        now_s, combining = self._machines.now_s, self._combining.get(rank)
        if rank == ROOT:
            self._book(message)
        elif combining is None:
            self._send(rank, [self._parent[rank]], message)
        else:
            goes_up: list[Report] = []
            if isinstance(message, Report):
                goes_up = combining.report(message, now_s)
            else:
                combining.read(message, now_s)
            self._say(rank, [*goes_up, *combining.take(now_s)])
            if combining.due_s is not None:
                self._machines.at(combining.due_s, functools.partial(self._tell_gathered, rank))

    def _tell_gathered(self, rank: int) -> None:
        if not self._dead(rank):
            self._say(rank, self._combining[rank].take(self._machines.now_s))

    def _say(self, rank: int, said: Sequence[Report | Read]) -> None:
        for message in said:
            self._send(rank, [self._parent[rank]], message)

    def _book(self, message: Report | Read) -> None:
        """As the root's lane does."""
        began_s, verdict = time.thread_time(), None
        if isinstance(message, Read):
            who = unpacked(message.who) or 1 << message.rank
            for seq in message.seqs:
                self._ledger.read(who, seq)
        else:
            who = self._top.members(message.rank) if message.whole else 1 << message.rank
            if message.read:
                self._ledger.read(who, message.seq)
            verdict = self._ledger.report(message.rank, message.seq, message.failure, who=who)
        self.outcome.books_s += time.thread_time() - began_s
        if verdict is not None and ROOT not in self._knows:
            self._send(ROOT, self._children[ROOT], verdict)
            self._told[verdict.seq][ROOT] = self._machines.now_s

    # A death

    def _die(self, rank: int) -> None:
        """Its sockets close: who shares one with it sees that."""
        news = Gone(rank, Failure("lost", rank, f"host{rank // self._plan.per_host}", f"rank {rank} was killed"))
        seen_s = self._machines.now_s + self._plan.speeds.notice_s
        for neighbour in {self._parent[rank], *self._children[rank], *self._near[rank]}:
            self._machines.at(seen_s, functools.partial(self._know, neighbour, news))

    def _know(self, rank: int, news: Gone) -> None:
        """Everybody passes on what is news to it, after what it held back."""
        if rank in self._knows:
            return
        self._knows[rank] = self._machines.now_s
        if rank in self._combining:
            now_s = self._machines.now_s
            self._say(rank, [*self._combining[rank].stop(), *self._combining[rank].take(now_s)])
        above = () if rank == ROOT else (self._parent[rank],)
        self._send(rank, [to for to in above + self._children[rank] if to != news.rank], news)

    def books(self) -> int:
        """How much the books still hold."""
        return len(self._ledger) + sum(map(len, self._combining.values()))


def _count(counts: dict[str, int], message: AnyMessage) -> None:
    kind = type(message).__name__
    counts[kind] = counts.get(kind, 0) + 1

"""What the ranks below one say of casts, put together on its way up: plain data, no threads, no clock.

A rank with others below it sends one report for all of them, when the last of theirs and its own are in. What they have
asked for goes up in batches. So a rank gets as many reports of a cast as it has neighbours, however large the group.

Guarantees:

* A failure goes up at once, by itself. Nothing else is told earlier than it was said. After a word on another rank
  nothing is held: the root compares it with what each says of itself.
* What is held is given out as it is by `asked`, when somebody wants to know who is missing, and by `stop`, when a rank
  has ended: from then on all goes up as it comes.
* Memory follows what is under way. Of casts without agreement, whose reports only tell costs, `_MOST` are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from lazycast.net.members import packed, unpacked
from lazycast.net.topology import Topology
from lazycast.net.wire import Cast, Cost, Read, Report, Spent

#: How long reads are gathered before they are passed on, unless all below have asked for a quarter of the root's
#: window, in casts or in bytes (seconds).
DELAY_S = 0.02
#: How long after somebody wanted to know who is missing nothing that has begun since is held: whoever asks has been
#: told within this time, or has given up (seconds).
_ASKED_FOR_S = 1.5
_MOST = 1024
_MOST_HOSTS = 500  # of which costs are told: a report is a header
_READS_PER_MESSAGE = 2000  # of at most nine bytes each


class _Entry(msgspec.Struct, eq=False):
    nbytes: int
    unread: int  # as sets of ranks
    unreported: int
    held: list[Report] = []
    direct: bool = False  # what comes goes up by itself


class Combining:
    """See the module's text. Not thread-safe.

    Args:
        topology: of a rank that is not the root, and has others below it.
        max_inflight: the root's window, in casts.
        max_inflight_nbytes: the same in bytes.
        costs: whether every rank reports on casts that have a materializer, with agreement or without.
    """

    def __init__(self, topology: Topology, max_inflight: int, max_inflight_nbytes: int, *, costs: bool) -> None:
        self._topology, self._rank, self._costs = topology, topology.rank, costs
        self._all = topology.members(topology.rank)
        self._many, self._many_nbytes = max(1, max_inflight // 4), max_inflight_nbytes // 4
        self._entries: dict[int, _Entry] = {}
        #: Casts without agreement of which not all have reported, the oldest first. (To find the first key of a plain
        #: dict takes the longer the more keys before it are gone.)
        self._optional: OrderedDict[int, None] = OrderedDict()
        self._told: dict[int, int] = {}  # by cast: who has asked for it, and that has not been passed on
        self._whole: dict[int, int] = {}  # of these, what all below have asked for by now: its bytes
        self._whole_nbytes = 0
        self._stopped = False
        self._asked_until_s = 0.0
        self.due_s: float | None = None  # when `take` has something to give

    def opened(self, message: Cast, now_s: float) -> None:
        """Book a cast on its way down, before any of those below can say anything of it."""
        if message.failure is not None or self._stopped:
            return
        reports = message.agree or (self._costs and (message.ref is not None or message.finish is not None))
        unreported = self._all if reports else 0
        direct = now_s < self._asked_until_s
        self._entries[message.seq] = _Entry(message.nbytes, self._all, unreported, direct=direct)
        if not message.agree and unreported:
            self._optional[message.seq] = None
        if not message.agree and len(self._entries) > _MOST:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Nobody waits for what is said of costs."""
        if self._optional:
            oldest, _ = self._optional.popitem(last=False)
            entry = self._entries[oldest]
            entry.unreported, entry.held, entry.direct = 0, [], True
            self._forget_if_done(oldest, entry)

    def dropped(self, seq: int) -> None:
        """Book that nobody is to ask for a cast any more."""
        entry = self._entries.get(seq)
        if entry is not None:
            entry.unread = 0
            self._forget_if_done(seq, entry)

    def report(self, message: Report, now_s: float) -> list[Report]:
        """Take a report, of this rank or from below; return what goes up now."""
        entry = self._entries.get(message.seq)
        if entry is None or entry.direct or not entry.unreported & self._who(message):  # else it is a first word
            if entry is not None:
                self._note(entry, message)
                self._forget_if_done(message.seq, entry)
            return [message]
        self._note(entry, message)
        failure = message.failure
        if failure is not None and failure.rank != message.rank:
            # Its own part stays open until the other has spoken or gone: nobody says for it that it has done it.
            held, entry.held, entry.direct = entry.held, [], True
            self._forget_if_done(message.seq, entry)
            return [message, *held]
        goes_up = [message] if failure is not None else []
        if not goes_up:
            entry.held.append(message)
            if message.read:  # if the last report is long in coming, the root is told of this before
                self._tell(message.seq, self._who(message), now_s)
        if not entry.unreported and entry.held:
            goes_up.append(self._combined(message.seq, entry))
        self._forget_if_done(message.seq, entry)
        return goes_up

    def _note(self, entry: _Entry, message: Report) -> None:
        who = self._who(message)
        entry.unreported &= ~who
        if not entry.unreported:
            self._optional.pop(message.seq, None)
        if message.read:
            entry.unread &= ~who

    def _who(self, message: Report) -> int:
        return self._topology.members(message.rank) if message.whole else 1 << message.rank

    def _combined(self, seq: int, entry: _Entry) -> Report:
        """Everybody has reported: put it together."""
        held, entry.held, entry.direct = entry.held, [], True
        cost = combined_cost(self._rank, held)
        kept = 0 if any(not one.kept for one in held) else max(one.kept for one in held)
        if not entry.unread:  # else who has asked is told with other casts
            self._told.pop(seq, None)
            self._whole_nbytes -= self._whole.pop(seq, 0)
        return Report(self._rank, seq, not entry.unread, None, cost, kept, whole=True)

    # Reads

    def read(self, message: Read, now_s: float) -> None:
        """Take what has been asked for, by this rank or below; `take` passes it on."""
        who = unpacked(message.who) or 1 << message.rank
        for seq in message.seqs:
            entry = self._entries.get(seq)
            if entry is not None:
                entry.unread &= ~who
            self._tell(seq, who, now_s)
            if entry is not None:
                self._forget_if_done(seq, entry)

    def _tell(self, seq: int, who: int, now_s: float) -> None:
        """Note who has asked for a cast, for the next message."""
        self._told[seq] = self._told.get(seq, 0) | who
        entry = self._entries.get(seq)
        if entry is not None and not entry.unread and seq not in self._whole:
            self._whole[seq] = entry.nbytes
            self._whole_nbytes += entry.nbytes
        many = self._stopped or len(self._whole) >= self._many or self._whole_nbytes >= max(1, self._many_nbytes)
        due_s = 0.0 if many else now_s + DELAY_S
        if self.due_s is None or due_s < self.due_s:
            self.due_s = due_s

    def take(self, now_s: float) -> list[Read]:
        """Return and forget what has been asked for, if it is to be passed on by now."""
        if self.due_s is None or self.due_s > now_s:
            return []
        by_who: dict[int, list[int]] = {}
        for seq, who in self._told.items():
            by_who.setdefault(who, []).append(seq)
        self._told, self.due_s, self._whole, self._whole_nbytes = {}, None, {}, 0
        return [
            Read(self._rank, seqs[start : start + _READS_PER_MESSAGE], packed(who))
            for who, seqs in by_who.items()
            for start in range(0, len(seqs), _READS_PER_MESSAGE)
        ]

    # The exceptions

    def asked(self, now_s: float) -> list[Report]:
        """Somebody wants to know who is missing, perhaps from a cast that is about to come. Returns what is held."""
        self._asked_until_s = now_s + _ASKED_FOR_S
        return self.flush()

    def flush(self) -> list[Report]:
        """Return the reports that are held, as they came. What is said of these casts from now on is not held."""
        given: list[Report] = []
        for seq, entry in list(self._entries.items()):
            given += entry.held
            entry.held, entry.direct = [], True
            self._forget_if_done(seq, entry)
        return given

    def stop(self) -> list[Report]:
        """Hold nothing any more: a rank has ended, so some reports will not come. Returns what is held."""
        held, self._stopped = self.flush(), True
        self._entries.clear()
        self._optional.clear()
        if self.due_s is not None:
            self.due_s = 0.0
        return held

    def _forget_if_done(self, seq: int, entry: _Entry) -> None:
        if not entry.unread and not entry.unreported and not entry.held:
            self._entries.pop(seq, None)

    def __len__(self) -> int:
        return len(self._entries) + len(self._told)

    def lines(self) -> list[str]:
        """Lines of a dump: casts whose reports are held here, and of how many ranks."""
        return [
            f"#{seq}: {(self._all & ~entry.unreported).bit_count()} of {self._all.bit_count()} reports are here"
            for seq, entry in list(self._entries.items())
            if entry.unreported and not entry.direct
        ]


def combined_cost(rank: int, reports: Sequence[Report]) -> Cost | None:
    """Return what a cast cost the ranks that report on it. None: nobody has made anything."""
    if all(one.cost is None for one in reports):
        return None
    own: list[float] = []
    hosts: list[Spent] = []
    longest = Cost(0.0, 0.0)
    shared_nbytes, unshared, held_s = 0, None, None
    for report in reports:
        cost = report.cost if report.cost is not None else Cost(0.0, 0.0)
        if report.whole:
            hosts += cost.hosts
        else:
            own.append(cost.busy_s)
        if cost.materialize_s > longest.materialize_s:
            longest = cost
        shared_nbytes = cost.shared_nbytes or shared_nbytes
        unshared = cost.unshared if cost.unshared is not None else unshared
        if cost.held_s is not None:
            held_s = cost.held_s if held_s is None else max(held_s, cost.held_s)
    here = Spent(rank, len(own), sum(own), min(own), max(own))
    return Cost(
        sum(own),
        longest.materialize_s,
        longest.materialize_cpu_s,
        shared_nbytes,
        unshared,
        [here, *hosts][:_MOST_HOSTS],
        held_s,
    )

"""Defects of what moves messages: the wire, the shared memory of a host, the relay, the tree."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_WIRE = "lazycast/net/wire.py"
_SENDERS = "lazycast/net/senders.py"
_ARENA = "lazycast/net/host/arena.py"
_SLOTS = "lazycast/net/host/slots.py"
_HOSTS = "lazycast/net/host/hosts.py"
_MEETING = "lazycast/start/meeting.py"
_MESH = "lazycast/net/host/mesh.py"
_RELAY = "lazycast/net/relay.py"
_COMBINING = "lazycast/net/combining.py"
_UPWARDS = "lazycast/net/upwards.py"
_TOPOLOGY = "lazycast/net/topology.py"

MUTANTS = (
    Mutant(
        "wire-fields-swapped",
        _WIRE,
        "    seq: int\n    to: int\n",
        "    to: int\n    seq: int\n",
        "the news that an owner passes a cast on says which cast, and to whom",
    ),
    Mutant(
        "wire-version-unchecked",
        _WIRE,
        "if header[:1] != _PREFIX:",
        "if not header:",
        "a header of another version is refused",
    ),
    Mutant(
        "senders-in-anybodys-name",
        _SENDERS,
        "if rank not in self._speaks_for.get(peer, ()):",
        "if peer not in self._speaks_for:",
        "no rank reports in the name of one that is not behind it",
    ),
    Mutant(
        "arena-last-rank-unheld",
        _ARENA,
        "flags[row * ranks : (row + 1) * ranks]",
        "flags[row * ranks : (row + 1) * ranks - 1]",
        "a slot is used again only when every reader has let go of it",
    ),
    Mutant(
        "arena-unlocked",
        _ARENA,
        "with self._lock:\n            if self._closed:",
        "if True:\n            if self._closed:",
        "an arena is thread-safe: two threads never get the same room",
    ),
    Mutant(
        "arena-segments-unbounded",
        _ARENA,
        "if self._segments_nbytes and self._segments_nbytes + size > self.nbytes:",
        "if False:",
        "shared memory stays within arena_nbytes, and as much again",
    ),
    Mutant(
        "slots-overlap",
        _SLOTS,
        "self._starts[index] = start + nbytes",
        "self._starts[index] = start + nbytes - 1",
        "slots never overlap",
    ),
    Mutant(
        "hosts-one-is-enough",
        _HOSTS,
        "if below.issuperset(host):",
        "if below.intersection(host):",
        "all members of a host reach each other",
    ),
    Mutant(
        "meeting-another-user",
        _MEETING,
        "if uid != os.getuid():",
        "if False:",
        "no process of another user gets a rank's shared memory",
    ),
    Mutant(
        "mesh-overtakes",
        _MESH,
        "if not peer.outbox and self._try(peer, packet, fds):",
        "if self._try(peer, packet, fds):",
        "messages between two ranks arrive in order, also when a socket was full",
    ),
    Mutant(
        "mesh-descriptors-leak",
        _MESH,
        "        finally:\n            for fd in fds:\n                os.close(fd)\n",
        "        finally:\n            pass\n",
        "a rank keeps no descriptor that came with a message",
    ),
    Mutant(
        "mesh-death-is-farewell",
        _MESH,
        'None if self._leaving else "it ended without a farewell"',
        "None",
        "a dead rank is PeerLostError, and not a closed one",
    ),
    Mutant(
        "mesh-unlocked",
        _MESH,
        "with peer.lock:\n                if not peer.outbox and not peer.gone:",
        "if True:\n                if not peer.outbox and not peer.gone:",
        "any thread may send: messages arrive once, in order",
    ),
    Mutant(
        "mesh-arena-unlocked",
        _MESH,
        "with peer.lock:\n                if peer.gone:",
        "if True:\n                if peer.gone:",
        "any thread may send: nothing in an arena is told of before the arena itself",
    ),
    Mutant(
        "relay-last-byte",
        _RELAY,
        "range(limit, body.nbytes, limit)",
        "range(limit, body.nbytes - 1, limit)",
        "a body of any size reaches the other hosts whole",
    ),
    Mutant(
        "combining-one-short",
        _COMBINING,
        "if not entry.unreported and entry.held:",
        "if entry.unreported.bit_count() <= 1 and entry.held:",
        "nobody says for others what they have not said",
    ),
    Mutant(
        "combining-reads-of-all",
        _COMBINING,
        "return Report(self._rank, seq, not entry.unread, None,",
        "return Report(self._rank, seq, bool(held), None,",
        "max_inflight counts what each rank has asked for",
    ),
    Mutant(
        "combining-death-keeps",
        _COMBINING,
        "held, self._stopped = self.flush(), True",
        "held, self._stopped = [], True",
        "what was said before a rank ended is told before the news of it",
    ),
    Mutant(
        "combining-roll-call-passes",
        _UPWARDS,
        "self._say(combining.asked(time.monotonic()))",
        "pass",
        "a time-out names who is missing, and nobody else",
    ),
    Mutant(
        "combining-word-of-another",
        _COMBINING,
        "if failure is not None and failure.rank != message.rank:",
        "if False:",
        "nobody says for a rank that it has done its part, if it has said that another is lost",
    ),
    Mutant(
        "combining-late-casts",
        _COMBINING,
        "direct = now_s < self._asked_until_s",
        "direct = False",
        "a time-out names who is missing, also of a cast that went out after the roll call",
    ),
    Mutant(
        "relay-unlocked",
        _RELAY,
        "with self._down_lock:",
        "if True:",
        "nothing overtakes the later chunks of a body",
    ),
    Mutant(
        "relay-shared-value",
        _RELAY,
        "if not self._topology.children:\n            return room.view",
        "if True:\n            return room.view",
        "a value is its rank's own while its bytes are passed on",
    ),
    Mutant(
        "relay-query-unanswered",
        _RELAY,
        "if isinstance(message, Query):",
        "if False:",
        "whoever asks learns how far its question has come",
    ),
    Mutant(
        "topology-answer-lost",
        _TOPOLOGY,
        "below = place(to, self.root, self.hosts).upstream | {to}",
        "below = {to}",
        "an answer reaches a rank that is further down",
    ),
)

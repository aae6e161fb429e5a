"""Defects of `lazycast/core`."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CALLS = "lazycast/core/calls.py"
_LEDGER = "lazycast/core/ledger.py"
_MAILBOX = "lazycast/core/mailbox.py"
_WINDOW = "lazycast/core/window.py"
_WAITS = "lazycast/core/waits.py"
_AWAITED = "lazycast/core/awaited.py"
_SUCCESSION = "lazycast/core/succession.py"
_FOLLOWER = "lazycast/core/follower.py"
_SENDING = "lazycast/core/sending.py"
_ROOT = "lazycast/core/root.py"
_CASTS = "lazycast/core/casts.py"
_MAKING = "lazycast/core/making.py"
_ASKS = "lazycast/core/asks.py"
_PLACING = "lazycast/core/placing.py"

MUTANTS = (
    Mutant(
        "calls-out-of-turn",
        _CALLS,
        "if self._lines[call.key][0] is call:",
        "if self._lines[call.key]:",
        "casts of one key are sent in the order of their calls",
    ),
    Mutant(
        "calls-refused-make-room",
        _CALLS,
        "self.entered -= call.takes_room",
        "self._entered -= 1",
        "max_inflight bounds how far the root is ahead: a refused call took no room, and gives none",
    ),
    Mutant(
        "ledger-verdict-early",
        _LEDGER,
        "(first and not entry.unreported)",
        "(first and entry.unreported.bit_count() <= 1)",
        "success only when all ranks have reported",
    ),
    Mutant(
        "ledger-dead-rank-awaited",
        _LEDGER,
        "if (entry.unreported & who or heard_of) and not entry.decided:",
        "if (entry.unread & who or heard_of) and not entry.decided:",
        "a rank that dies after it has asked for a cast fails it on all others",
    ),
    Mutant(
        "mailbox-last-first",
        _MAILBOX,
        "place = waiting.popleft()",
        "place = waiting.pop()",
        "per key, a rank's n-th call gets the root's n-th cast",
    ),
    Mutant(
        "reads-one-dropped",
        _FOLLOWER,
        "reads[start : start + SEQS_PER_READ]",
        "reads[start : start + SEQS_PER_READ - 1]",
        "every read reaches the root, also of a long backlog",
    ),
    Mutant(
        "window-one-more",
        _WINDOW,
        "casts + entered < options.max_inflight",
        "casts + entered <= options.max_inflight",
        "max_inflight bounds how far the root is ahead",
    ),
    Mutant(
        "waits-never-given-up",
        _WAITS,
        "if call.passed < len(call.stages) else math.inf",
        "if call.passed < len(call.stages) - 1 else math.inf",
        "every wait has a limit",
    ),
    Mutant(
        "awaited-anybody-owns",
        _AWAITED,
        "if message.rank != arrival.owner and arrival.message.fingerprint is None:",
        "if False:",
        "nobody but its owner makes the value of a cast",
    ),
    Mutant(
        "awaited-early-dropped",
        _AWAITED,
        "self._early.setdefault(message.seq, []).append((message, body))",
        "pass",
        "a value counts also when it comes before its cast",
    ),
    Mutant(
        "awaited-wrong-owner-gone",
        _AWAITED,
        "elif arrival.owner == owner:",
        "elif arrival.owner != owner:",
        "the casts of an owner that dies fail, and no others",
    ),
    Mutant(
        "awaited-passes-sign",
        _AWAITED,
        "message.passes - arrival.passes",
        "arrival.passes - message.passes",
        "news that a value has overtaken is not taken for news of a cast to come",
    ),
    Mutant(
        "succession-others-left-out",
        _SUCCESSION,
        " + [rank for rank in host if rank not in eligible]",
        "",
        "a cast that no owner takes is made by another rank of the host",
    ),
    Mutant(
        "follower-reads-dropped",
        _FOLLOWER,
        "self._relay.up(Read(self._group.rank, reads[start : start + SEQS_PER_READ]))",
        "pass",
        "what has been read does not hold the root back any more",
    ),
    Mutant(
        "follower-early-verdict-dropped",
        _FOLLOWER,
        "self._early_verdicts[message.seq] = message",
        "pass",
        "a failure that overtakes its cast reaches the call at once",
    ),
    Mutant(
        "follower-cast-after-loss",
        _FOLLOWER,
        "return  # the call that it is for has failed, or will",
        "pass  # the call that it is for has failed, or will",
        "after a loss no call gets the cast that was for an earlier one",
    ),
    Mutant(
        "making-code-unlocked",
        _MAKING,
        "with self._lock:\n            parked = self._parked.pop(ident, [])",
        "if True:\n            parked = self._parked.pop(ident, [])",
        "one lock guards all state: a cast that is parked meanwhile is not forgotten",
    ),
    Mutant(
        "sending-failure-untold",
        _SENDING,
        "self._relay.down(cast)\n        self._casts.conclude(",
        "self._casts.conclude(",
        "every call counts on every rank, also one that fails on the root",
    ),
    Mutant(
        "sending-bytes-unbooked",
        _SENDING,
        "self._ledger.sent(cast.seq, cast.key, cast.nbytes,",
        "self._ledger.sent(cast.seq, cast.key, 0,",
        "max_inflight_nbytes bounds how far the root is ahead",
    ),
    Mutant(
        "sending-failure-swallowed",
        _SENDING,
        "if result.failure is not None and call.failure is None:",
        "if False:",
        "no silent loss: the root's materializer has raised, so no rank gets a value",
    ),
    Mutant(
        "sending-stuck-at-the-end",
        _SENDING,
        "has_room=has_room or end is not None",
        "has_room=has_room",
        "calls that wait for room fail as soon as a rank is lost",
    ),
    Mutant(
        "root-cut-off-awaited",
        _ROOT,
        "cut_off = [message.rank, *self.near.topology.below(message.rank)]",
        "cut_off = [message.rank]",
        "a rank that closes takes those with it that it passed casts on to: nobody waits for them",
    ),
    Mutant(
        "casts-failure-unreported",
        _CASTS,
        "message.seq, read, result.failure, arrival.cost, kept_nbytes",
        "message.seq, read, None, arrival.cost, kept_nbytes",
        "with agree=True, what fails on one rank fails on every rank",
    ),
    Mutant(
        "casts-given-up-untold",
        _CASTS,
        "        self._report(Report(self._group.rank, arrival.message.seq, read))\n",
        "",
        "a rank that has been told of a cast always reports on it",
    ),
    Mutant(
        "making-part-twice",
        _MAKING,
        "arrival.begun = True\n            takes =",
        "takes =",
        "a rank does its part of a cast once",
    ),
    Mutant(
        "casts-loss-kept-to-itself",
        _CASTS,
        "flood=peer == topology.parent or peer in topology.children",
        "flood=False",
        "every rank learns at once of one that dies, also those of other hosts",
    ),
    Mutant(
        "making-passed-to-itself",
        _MAKING,
        "self._relay.share(Pass(rank, seq, to, passed))",
        "self._relay.share(Pass(rank, seq, rank, passed))",
        "a cast that its owner leaves is materialized by the next rank of the host",
    ),
    Mutant(
        "asks-settled-twice",
        _ASKS,
        "if ask.taken:\n            return False\n        ask.taken = True",
        "ask.taken = True",
        "a future is settled exactly once",
    ),
    Mutant(
        "asks-closes-at-once",
        _ASKS,
        "return self.gates.watch() if len(self.waits) or self.role.busy() else None",
        "return None",
        "close() waits for pending calls",
    ),
    Mutant(
        "asks-late-untold",
        _ASKS,
        "ask.late = failure",
        "ask.late = None",
        "the root's time-out is everybody's",
    ),
    Mutant(
        "placing-trials-unbounded",
        _PLACING,
        "if len(self.trials) > _MAX_TRIALS:",
        "if False:",
        "whatever ranks do not report, memory is bounded",
    ),
    Mutant(
        "placing-proves-too-much",
        _PLACING,
        'if trial.placement != "every" and trial.unshared is None:',
        "if trial.unshared is None:",
        "a value that has never been shared is not known to pickle: the cast has a spare",
    ),
)

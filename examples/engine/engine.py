"""The scheduler's loop: rank 0 decides, every rank does the same. No iteration waits for anybody's photos.

Guarantees:

* All ranks apply the same decisions in the same order, so their books, batches and tokens are equal after each.
* An idle engine sleeps: rank 0 until it is told something, the others until rank 0's next decision.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import numpy as np

from lazycast import LazyBroadcast, Tuning

from .inputs import BadInputError, Inputs
from .model import Model, fingerprint
from .ranks import Ranks
from .requests import Announced, Decision, Ended, Event, Outcome, Reply, Stop
from .scheduler import Books, Sequence, plan

#: An idle rank 0 sends an empty decision so often, and the others wait so long for one (seconds). So their time limit
#: means that rank 0 is stuck, and not that nobody has asked for anything. A rank that dies is noticed at once anyway.
HEARTBEAT_S = 10.0
SILENCE_S = 60.0
#: How many decisions rank 0 may be ahead of the slowest rank.
AHEAD = 8

Inbox = queue.Queue[Event]
Deliver = Callable[[list[tuple[str, Reply]]], None]


class Engine:
    """One rank of the engine.

    Args:
        inputs: how photos become pixels.
        inbox: what rank 0 is told by other threads; unused elsewhere.
        deliver: called on rank 0, once an iteration, with what clients are to hear.
    Collective: every rank constructs, and then calls `run` or `close`.
    """

    def __init__(
        self, ranks: Ranks, model: Model, inputs: Inputs, inbox: Inbox, deliver: Deliver, *, max_batch: int
    ) -> None:
        self.books = Books()
        self.iterations = 0
        self._ranks, self._model, self._inputs = ranks, model, inputs
        self._inbox, self._deliver, self._max_batch = inbox, deliver, max_batch
        self._stopping = False
        self._replies: list[tuple[str, Reply]] = []
        # An object of its own: decisions come in order and are not agreed upon, so rank 0 never waits for a rank here.
        self._schedule: LazyBroadcast[Any, Decision] = LazyBroadcast(
            backend=ranks.backend,
            name="schedule",
            agree=False,
            timeout_s=SILENCE_S,
            tuning=Tuning(max_inflight=AHEAD),
        )

    def run(self) -> None:
        """Serve until rank 0 has been told to stop and nothing is left. Collective. Raises if a rank was lost."""
        while True:
            decision = self._schedule.broadcast(self._decide() if self._ranks.rank == 0 else None)
            self._apply(decision)
            if self.books.running:
                self._advance()
            self.iterations += 1
            if self._replies:
                replies, self._replies = self._replies, []
                self._deliver(replies)
            if decision.stop:
                return

    def close(self) -> None:
        """End this rank's part. After the last decision on every rank, or after an error."""
        self._schedule.close()

    # Rank 0

    def _decide(self) -> Decision:
        """Return the next decision; while there is no batch to advance, wait for one that says something."""
        while True:
            events = self._events(wait_s=0.0 if self.books.running else HEARTBEAT_S)
            self._stopping = self._stopping or any(isinstance(event, Stop) for event in events)
            decision = plan(
                events,
                self.books,
                self._inputs.settled,
                max_batch=self._max_batch,
                raw_in_schedule=self._inputs.raw_in_schedule,
            )
            if not decision and self._stopping and self.books.empty:
                decision.stop = self._inputs.idle()
            if decision or self.books.running or not events:
                return decision

    def _events(self, wait_s: float) -> list[Event]:
        """Take all that has come; if nothing has, wait for something."""
        events: list[Event] = []
        try:
            if wait_s > 0:
                events.append(self._inbox.get(timeout=wait_s))
            while True:
                events.append(self._inbox.get_nowait())
        except queue.Empty:
            return events

    # Every rank

    def _apply(self, decision: Decision) -> None:
        books = self.books
        for rid in decision.discarded:
            self._inputs.discard(rid)
        for announced in decision.announced:
            books.waiting[announced.rid] = announced
            books.outcomes[announced.rid] = Outcome()
            if announced.has_photos:
                self._inputs.expect(announced)
        for rid in decision.aborted:
            if books.running.pop(rid, None) is None:
                self._leave_waiting(rid)
            books.outcomes[rid].status = "aborted"
        for rid, message in decision.failed.items():
            self._leave_waiting(rid)
            self._fail(rid, message)
        for rid in decision.admitted:
            self._admit(books.waiting.pop(rid))

    def _leave_waiting(self, rid: str) -> None:
        if self.books.waiting.pop(rid).has_photos:
            self._inputs.drop(rid)

    def _admit(self, announced: Announced) -> None:
        outcome = self.books.outcomes[announced.rid]
        if announced.has_photos:
            try:
                pixels = self._inputs.take(announced)
            except BadInputError as exc:
                self._fail(announced.rid, str(exc))
                return
            outcome.pixels_crc = fingerprint(pixels)
            del pixels  # they lie in shared memory, and make room for others as soon as nobody holds them
        state = self._model.prefill(announced.prompt, outcome.pixels_crc)
        self.books.running[announced.rid] = Sequence(announced, outcome, state)

    def _fail(self, rid: str, message: str) -> None:
        outcome = self.books.outcomes[rid]
        outcome.status, outcome.message = "failed", message
        self._reply(rid, Ended("failed", message))

    def _advance(self) -> None:
        """Give each sequence of the batch its next token; those that have all of theirs leave."""
        batch = list(self.books.running.values())
        states, tokens = self._model.step(np.stack([sequence.state for sequence in batch]))
        for sequence, state, token in zip(batch, states, tokens, strict=True):
            sequence.state = state
            sequence.outcome.tokens.append(token)
            rid = sequence.announced.rid
            self._reply(rid, token)
            if sequence.finished:
                sequence.outcome.status = "finished"
                del self.books.running[rid]
                self._reply(rid, Ended("finished"))

    def _reply(self, rid: str, reply: Reply) -> None:
        if self._ranks.rank == 0:
            self._replies.append((rid, reply))

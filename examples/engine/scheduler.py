"""What happens next: rank 0's decision, and what it does to a rank's books. Plain functions on plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .inputs import Settled
from .ranks import Ints
from .requests import Announced, Arrived, Decision, Event, Left, Outcome, Refused


@dataclass
class Sequence:
    """A request in the batch."""

    announced: Announced
    outcome: Outcome
    state: Ints

    @property
    def finished(self) -> bool:
        return len(self.outcome.tokens) >= self.announced.max_tokens


@dataclass
class Books:
    """A rank's requests. The same on every rank after the same decisions."""

    waiting: dict[str, Announced] = field(default_factory=dict)  # in the order in which they were announced
    running: dict[str, Sequence] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # all there ever were, for comparing ranks at the end

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.running


def plan(
    events: Iterable[Event],
    books: Books,
    settled: Callable[[str], Settled | None],
    *,
    max_batch: int,
    raw_in_schedule: bool = False,
) -> Decision:
    """Decide on rank 0 what every rank does in this iteration.

    Requests whose photos are not there are passed over, and those behind them are not held up.

    Args:
        events: what has come since the last decision.
        settled: `Inputs.settled`, asked for requests with photos.
    """
    decision = Decision()
    for event in events:
        if isinstance(event, Arrived):
            request = event.request
            if not request.gone:
                raw = request.payload if raw_in_schedule else None
                has_photos = request.payload is not None
                decision.announced.append(Announced(request.rid, request.prompt, request.max_tokens, has_photos, raw))
            elif request.payload is not None:
                decision.discarded.append(request.rid)
        elif isinstance(event, Refused):
            decision.discarded.append(event.rid)
        elif isinstance(event, Left) and _is_known(event.rid, books, decision):
            decision.aborted.append(event.rid)
    room = max_batch - sum(rid not in decision.aborted for rid in books.running)
    for announced in (*books.waiting.values(), *decision.announced):
        if announced.rid in decision.aborted:
            continue
        said = settled(announced.rid) if announced.has_photos else Settled()
        if said is not None and said.error:
            decision.failed[announced.rid] = said.error
        elif said is not None and room > 0:
            decision.admitted.append(announced.rid)
            room -= 1
    return decision


def _is_known(rid: str, books: Books, decision: Decision) -> bool:
    """Whether a request is in the engine: its client may leave when it has ended, or before it was announced."""
    return rid in books.waiting or rid in books.running or any(new.rid == rid for new in decision.announced)

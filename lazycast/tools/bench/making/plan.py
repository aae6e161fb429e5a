"""What a run measures."""

from __future__ import annotations

from dataclasses import dataclass

#: To start ranks and helpers and import what they need, and what a round takes beside the scheduler (seconds).
_START_S, _ROUND_S = 25.0, 30.0

ROWS = ("scheduler", "photos", "value", "album", "hit", "killed", "chat")


@dataclass(frozen=True)
class Plan:
    """One run. Each round takes every row, and in it every way in turn.

    Attributes:
        helpers: how many processes make values, of every way that has some.
        rows: names in `ROWS`.
        rounds: how many.
        seconds: how long the scheduler is watched beside each way in a round.
        rate: requests a second meanwhile.
        singles: requests one at a time, of each way in a round.
        photos: requests of a turn of the closed loop.
        chat: requests of the chat, in all.
    """

    backend: str
    ranks: int = 2
    helpers: int = 2
    rows: tuple[str, ...] = ROWS
    rounds: int = 5
    seconds: float = 3.0
    rate: float = 10.0
    singles: int = 8
    photos: int = 48
    chat: int = 600

    def about_s(self) -> float:
        """How long the run will take on two quiet cores (seconds)."""
        return _START_S + self.rounds * (_ROUND_S + 8 * self.seconds) * len(self.rows) / len(ROWS)

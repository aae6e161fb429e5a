"""How far a call has come and for whom it waits: plain data, and the words for it.

Guarantees: an error, a warning and a dump say the same of the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from lazycast.core.failures import clip
from lazycast.errors import LazycastError
from lazycast.net.wire import Failure, Key, Overdue, Silence

_SHOWN = 100  # ranks
_MAX_TEXT_NBYTES = 1000

Phase = tuple[str, tuple[int, ...], tuple[int, ...]]
"""How far a call has come, the ranks that are missing, and those that have done their part."""


def ranks(numbers: Collection[int]) -> str:
    """Name ranks: "rank 3", "ranks 1, 2", "nobody"."""
    if not numbers:
        return "nobody"
    shown = sorted(numbers)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"rank{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown[:_SHOWN]))}{more}"


def ago(seconds: float | None) -> str:
    """Say when a rank was last heard."""
    return "never heard" if seconds is None else f"last heard {seconds:.1f} s ago"


@dataclass(frozen=True)
class Situation:
    """One call of this rank."""

    phase: str
    missing: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    silences: tuple[Silence, ...] = ()
    silent: str = ""  # the same in words
    nbytes: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, failure: Failure) -> Situation:
        """Return that of the call whose end came with a failure, as far as it is known here."""
        overdue = failure.overdue
        if overdue is None:
            return cls(failure.kind)
        return cls(overdue.phase, overdue.missing, overdue.answered, overdue.silences, nbytes=overdue.nbytes)

    def text(self) -> str:
        """Say it in a line."""
        parts = [self.phase, f"missing: {ranks(self.missing)}"]
        if self.answered:
            parts.append(f"answered: {ranks(self.answered)}")
        if self.silent:
            parts.append(self.silent)
        if self.nbytes is not None:
            parts.append(f"{self.nbytes} bytes")
        return "; ".join([*parts, *self.notes])

    def overdue(self, rank: int, host: str, timeout_s: float) -> Failure:
        """Put it into the form that travels, for the ranks that are to share the time-out of this one."""
        text = clip(f"rank {rank} ({host}) had waited {timeout_s:g} s for it: {self.text()}", _MAX_TEXT_NBYTES)
        overdue = Overdue(
            self.phase, self.missing[:_SHOWN], self.answered[:_SHOWN], self.silences[:_SHOWN], self.nbytes
        )
        return Failure("timeout", rank, host, text, overdue=overdue)

    def explain(
        self, exc: LazycastError, *, operation: str, key: Key | None, seq: int | None, age_s: float
    ) -> LazycastError:
        """Note it on an error."""
        exc.operation, exc.key, exc.seq, exc.age_s = operation, key, seq, age_s
        exc.phase, exc.missing, exc.answered, exc.nbytes = self.phase, self.missing, self.answered, self.nbytes
        exc.silent = tuple(sorted(silence.rank for silence in self.silences))
        return exc


def silent_words(
    silences: Sequence[Silence], behind: Callable[[int], Collection[int]], why: Callable[[int], str]
) -> str:
    """Name those who do not answer.

    Args:
        behind: returns the ranks that cannot be heard if a given one is silent: they are named, but not accused.
        why: returns what is known, or supposed, to be the matter with a rank.
    """
    hidden = {rank for silence in silences for rank in behind(silence.rank)}
    parts = [
        f"rank {s.rank} has not answered for {s.silent_s:.1f} s"
        f"{'' if s.heard_s is None else f', {ago(s.heard_s)}'} ({why(s.rank)})"  # None: of a rank that is far away
        for s in sorted(silences, key=lambda silence: silence.rank)
        if s.rank not in hidden
    ]
    shown = parts[:_SHOWN]
    if cut_off := hidden & {silence.rank for silence in silences}:
        shown.append(f"behind it {ranks(cut_off)}")
    return "; ".join(shown)

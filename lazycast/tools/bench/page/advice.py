"""What a piece of advice is, and when two figures count as different. Plain functions on plain data.

Every piece is drawn from the figures of the runs at hand: nothing is advised that was not measured in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Medians nearer than this are called equal: runs of one machine differ by as much from one day to the next.
EQUAL = 0.05


@dataclass(frozen=True)
class Advice:
    """One thing to choose.

    Attributes:
        about: what it holds for: the workload or payload, the number of ranks, the backend.
        choose: what to choose, in a few words.
        why: the figures that say so.
    """

    about: str
    choose: str
    why: str


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether all figures of one are above all of the other, and not by a trifle."""
    low, high = sorted((one, other), key=min)
    return max(low) < min(high) and min(high) / max(max(low), 1e-12) > 1 + EQUAL


def number(value: float) -> str:
    """Return a number with three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    """Return "3.5 times" and the like."""
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def listed(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)

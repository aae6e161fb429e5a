"""What a check comes to, and the words in which findings speak of ranks and bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, TypeVar

import msgspec

T = TypeVar("T")
Verdict = Literal["ok", "note", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """What one check has found.

    Attributes:
        section, name: where it stands in the report.
        verdict: "ok"; "note": it works, and could be better; "problem": something does not work, or will not.
        found: one line.
        remedy: what to do, unless all is well.
        details: further lines.
    """

    section: str
    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    details: tuple[str, ...] = ()


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict among findings."""
    verdicts = {finding.verdict for finding in findings}
    return "problem" if "problem" in verdicts else "note" if "note" in verdicts else "ok"


def ranks_text(ranks: Collection[int]) -> str:
    """Name ranks briefly: "rank 3", "ranks 0-3, 6"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(ranks) != 1 else ''} {text}"


def size_text(nbytes: float) -> str:
    """Write a number of bytes for a human: "64 MiB", "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.3g} {unit}" if nbytes < 1000 else f"{nbytes:,.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} GiB" if nbytes < 1000 else f"{nbytes:,.0f} GiB"


def by_rank(things: Sequence[T], rank_of: Callable[[T], int], say: Callable[[T], str]) -> str:
    """Say something of every rank; once if it is the same of all of them."""
    said: dict[str, list[int]] = {}
    for thing in things:
        said.setdefault(say(thing), []).append(rank_of(thing))
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{ranks_text(ranks)}: {text}" for text, ranks in said.items())

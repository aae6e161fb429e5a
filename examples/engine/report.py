"""What the clients saw, as a table."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .load import Load, Mix


@dataclass
class Row:
    """One way under load. Times in seconds, None if nobody saw such a thing."""

    way: str
    qps: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    gap_p50_s: float | None = None
    gap_p99_s: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[str, Any] = field(default_factory=dict)  # the same on every rank
    error: str | None = None


def percentile(values: list[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: one of the values."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


def row(way: str, seen: Load, size: int, accounts: list[dict[str, Any]]) -> Row:
    """Sum up what clients saw; times are of the requests that finished, without those of the warm-up."""
    assert len(accounts) == size
    finished = [record for record in seen.records.values() if record.status == "finished" and record.counts]
    first = [record.first_token_s for record in finished if record.first_token_s is not None]
    gaps = [gap for record in finished for gap in record.gaps_s]
    return Row(
        way,
        qps=len(finished) / seen.took_s,
        ttft_p50_s=percentile(first, 50),
        ttft_p99_s=percentile(first, 99),
        gap_p50_s=percentile(gaps, 50),
        gap_p99_s=percentile(gaps, 99),
        counts=dict(Counter(record.status for record in seen.records.values())),
        messages=sorted({f"{r.status}: {r.message}" for r in seen.records.values() if r.message}),
        ranks=[{key: account[key] for key in account if key != "outcomes"} for account in accounts],
        outcomes=accounts[0]["outcomes"],
    )


_STATUSES = ("finished", "aborted", "failed", "rejected")


def table(rows: list[Row], mix: Mix, size: int, kind: str) -> str:
    """Return the rows as text."""
    head = ["photos by", "QPS", "TTFT p50", "p99", "between tokens p50", "p99", *_STATUSES, "on every rank"]
    lines = [head]
    for each in rows:
        if each.error is not None:
            lines.append([each.way, f"not available: {each.error}"])
            continue
        times = (each.ttft_p50_s, each.ttft_p99_s, each.gap_p50_s, each.gap_p99_s)
        lines.append(
            [
                each.way,
                f"{each.qps:.1f}",
                *("-" if t is None else f"{t * 1e3:.1f} ms" for t in times),
                *(str(each.counts.get(status, 0)) for status in _STATUSES),
                each.ranks[0]["digest"],
            ]
        )
    widths = [max(len(line[column]) for line in lines if len(line) == len(head)) for column in range(len(head))]
    said = f"{size} ranks ({kind}), {mix.qps:g} requests a second for {mix.seconds:g} s, {mix.photos:.0%} with photos"
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    failures = [f"{each.way}: {message}" for each in rows for message in each.messages[:2]]
    return "\n".join([said, "", *body, *(["", "clients were told:"] if failures else []), *failures])

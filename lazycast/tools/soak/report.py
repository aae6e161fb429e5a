"""What came of a soak, as text and as JSON."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections import Counter
from datetime import datetime, timezone
from typing import Any

from lazycast.tools.bench import machine
from lazycast.tools.soak.diary import Orders
from lazycast.tools.soak.job import Outcome

#: Of the layout of what `as_json` returns.
FORMAT = 1

_SHOWN_CHARACTERS = 2000  # of one finding, in the text; the JSON has all
_FINDINGS = ("wrong values", "hangs", "leaks")


class Report:
    """Adds up the jobs of a soak."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._began_s = time.monotonic()
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of a job."""
        self._outcomes.append(outcome)

    @property
    def jobs(self) -> int:
        """How many jobs there were."""
        return len(self._outcomes)

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return bool(self._outcomes) and all(outcome.good for outcome in self._outcomes)

    def in_short(self) -> str:
        """Return one line on what there was so far."""
        found = ", ".join(f"{count} {what}" for what, count in self._found().items())
        return f"{self._casts()} casts, {found}"

    def _casts(self) -> int:
        return sum(outcome.casts for outcome in self._outcomes)

    def _found(self) -> dict[str, int]:
        lists = [(outcome.wrong, outcome.hangs, outcome.leaks) for outcome in self._outcomes]
        return {what: sum(len(found[index]) for found in lists) for index, what in enumerate(_FINDINGS)}

    def repeat(self, job: int) -> str:
        """Return the command that runs a job again."""
        orders = self._orders
        group = f"--backend {orders.backend} --ranks {orders.ranks}"
        return f"python -m lazycast soak {group} --seed {orders.seed} --job {job}"

    def as_json(self) -> dict[str, Any]:
        """Return everything, as JSON has it."""
        orders = self._orders
        return {
            "format": FORMAT,
            "date": self._date,
            "machine": machine.describe(),
            "backend": orders.backend,
            "ranks": orders.ranks,
            "seed": orders.seed,
            "seconds": round(time.monotonic() - self._began_s, 1),
            "jobs": dict(sorted(Counter(outcome.kind for outcome in self._outcomes).items())),
            "casts": self._casts(),
            "outcomes": sum(outcome.outcomes for outcome in self._outcomes),
            "injected": _added(outcome.injected for outcome in self._outcomes),
            "endings": _added(outcome.endings for outcome in self._outcomes),
            "told": self._told(),
            "found": self._found(),
            "failed": [
                {
                    "job": outcome.job,
                    "kind": outcome.kind,
                    "repeat": self.repeat(outcome.job),
                    "wrong": outcome.wrong,
                    "hangs": outcome.hangs,
                    "leaks": outcome.leaks,
                }
                for outcome in self._outcomes
                if not outcome.good
            ],
        }

    def _told(self) -> dict[str, float] | None:
        """How long after a death the survivors knew."""
        told_s = [seconds for outcome in self._outcomes for seconds in outcome.told_s]
        if not told_s:
            return None
        late = sum(seconds > 1.0 for seconds in told_s)
        return {
            "survivors": len(told_s),
            "median_s": round(statistics.median(told_s), 4),
            "max_s": round(max(told_s), 4),
            "later_than_1_s": late,
        }

    def as_text(self) -> str:
        """Return it for a reader."""
        said = self.as_json()
        group = f"{said['backend']} backend, {said['ranks']} ranks, seed {said['seed']}"
        lines = [
            f"soak of {said['seconds']:.0f} s on the {group}",
            f"  jobs      {self.jobs}: {_listed(said['jobs'])}",
            f"  casts     {said['casts']}, their {said['outcomes']} endings checked on all ranks",
            f"  ended     {_listed(said['endings'])}",
            f"  injected  {_listed(said['injected'])}",
        ]
        told = said["told"]
        if told is not None:
            after = f"after {told['median_s'] * 1e3:.1f} ms in the median and {told['max_s'] * 1e3:.0f} ms at most"
            late = f"{told['later_than_1_s']} later than 1 s"
            lines.append(f"  deaths    told to {told['survivors']} survivors, {after}, {late}")
        lines += [f"  {what:<15}{count}" for what, count in said["found"].items()]
        for failed in said["failed"]:
            lines += ["", f"job {failed['job']} ({failed['kind']}); again: {failed['repeat']}"]
            for what in ("wrong", "hangs", "leaks"):
                for text in failed[what]:
                    lines.append(textwrap.indent(f"{what}: {text[:_SHOWN_CHARACTERS]}", "  "))
        return "\n".join(lines)


def _added(counters: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total.most_common())


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "none"

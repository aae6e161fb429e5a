"""The results of the image processor for people, as Markdown, which is readable on a terminal, too."""

from __future__ import annotations

from typing import Any

from lazycast.tools.bench.report import seconds_text, surroundings
from lazycast.tools.bench.sglang_loop.images import WAYS

NOTE = (
    "Medians over the rounds, in which all ways take turns. Requests of two photos, all at once; late: how long the "
    "tokenizer's event loop keeps a task waiting that asks for nothing; CPU: processor time of all processes for each "
    "request, hashes included."
)
_HEADINGS = ("processor", "way", "requests a second", "of rounds", "late p50", "late p99", "CPU")


def markdown(run: dict[str, Any]) -> str:
    """Return a run as Markdown."""
    versions, plan = run["versions"], run["plan"]
    lines = [
        f"# lazycast {versions['lazycast']} beside the tokenizer of SGLang {versions['sglang']}",
        *("", surroundings(run), "", NOTE, ""),
        *(f"- {name}: {WAYS[name]}" for name in plan["ways"]),
        *("", f"Photos of {plan['side']} x {plan['side']} pixels, {plan['requests']} requests.", ""),
        _line(_HEADINGS),
        _line(["---", "---", *["---:"] * (len(_HEADINGS) - 2)]),
    ]
    for cell in run["cells"]:
        text = cell["processor"]
        for name, found in cell["ways"].items():
            rates = found["per_s_of_rounds"]
            times = (seconds_text(found[what]) for what in ("late_p50_s", "late_p99_s", "cpu_s"))
            lines.append(_line([text, name, f"{found['per_s']:.1f}", f"{min(rates):.1f}-{max(rates):.1f}", *times]))
            text = ""
    return "\n".join(lines) + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

"""Draw docs/images/scaling.svg: the simulated time to the verdict over ranks, with reports combined and not.

The figures are those of docs/benchmarks/scaling.json. Both axes are logarithmic. The picture has a ground of its own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images" / "scaling.svg"
RUN = ROOT / "docs" / "benchmarks" / "scaling.json"
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 440, 80, 270  # of the plot

STYLE = """
text { font: 14px "DejaVu Sans", Verdana, sans-serif; fill: #1c2129; }
.title { font-size: 18px; font-weight: bold; }
.small { font-size: 12px; fill: #4b5563; }
.ground { fill: #ffffff; stroke: #d5dae1; }
.grid { stroke: #e3e7ec; }
polyline { fill: none; stroke-width: 3; }
.ours { stroke: #3949ab; }
.theirs { stroke: #9aa4b2; stroke-dasharray: 6 4; }
""".strip()


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def draw() -> str:
    """Return the picture."""
    rows: list[dict[str, Any]] = json.loads(RUN.read_text())["simulated"]
    sizes = sorted({row["ranks"] for row in rows})
    times_ms = [row["verdict_s"] * 1000 for row in rows]
    low, high = math.floor(math.log10(min(times_ms))), math.ceil(math.log10(max(times_ms)))

    def x(ranks: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(ranks / sizes[0]) / math.log(sizes[-1] / sizes[0])

    def y(ms: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(ms) - low) / (high - low)

    parts = [f'<rect class="ground" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8"/>']
    parts.append(text(16, 32, "Until every rank has the verdict", "title"))
    parts.append(text(16, 54, "simulated, hosts of 8 ranks, 1 KiB, milliseconds", "small"))
    for power in range(low, high + 1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}"/>'
        )
        parts.append(text(LEFT - 10, y(10.0**power) + 5, f"{10.0**power:g}", "small", "end"))
    parts += [text(x(size), BOTTOM + 20, f"{size}", "small", "middle") for size in sizes]
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 40, "ranks", "small", "middle"))
    for combined, style, name, below in (
        (False, "theirs", "each rank reports to the root", -12),
        (True, "ours", "combined", 22),
    ):
        line = [(row["ranks"], row["verdict_s"] * 1000) for row in rows if row["combined"] is combined]
        points = " ".join(f"{x(ranks):.1f},{y(ms):.1f}" for ranks, ms in line)
        parts.append(f'<polyline class="{style}" points="{points}"/>')
        parts.append(text(x(line[-2][0]) - 12, y(line[-2][1]) + below, name, anchor="end"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="Time to the verdict over ranks">\n<style>\n{STYLE}\n</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    TARGET.write_text(draw())

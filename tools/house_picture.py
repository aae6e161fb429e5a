"""Draw docs/images/house.svg: the parts of the code, and which may import which. A test compares it with the rules.

The picture has a ground of its own, and is narrow, for phones.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "house.svg"
WIDTH, LEFT, FLOOR, GAP = 480, 16, 50, 8

#: From the top: each may import those below it. The last has no part of lazycast below it.
FLOORS = {
    "tools": "command line, demo, doctor, benchmarks, soak",
    "testing": "the conformance suite for backends",
    "watch": "counts, traces, metrics, the log",
    "start": "construction, handshake, launcher, the end",
    "core": "what happens to a cast",
    "materialize": "how a callable travels, who runs it",
    "net": "wire format, tree, relay; host: shared memory",
    "codec": "objects to bytes and back",
}
BESIDE = {
    "backends/": "one file for each native library: local, torch, mpi",
    "adapters/": "one package for each engine: SGLang",
}
HEIGHT = 84 + len(FLOORS) * (FLOOR + GAP) + 40 + len(BESIDE) * (FLOOR + GAP)
STYLE = """
text { font: 13px "DejaVu Sans", Verdana, sans-serif; fill: #4b5563; }
.title { font-size: 18px; font-weight: bold; fill: #1c2129; }
.name { font-size: 16px; font-weight: bold; fill: #1c2129; }
.ground { fill: #ffffff; stroke: #d5dae1; }
.floor { fill: #eef1fb; stroke: #3949ab; }
.beside { fill: #f3f5f8; stroke: #9aa4b2; stroke-dasharray: 6 4; }
""".strip()


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(words)}</text>'


def room(y: float, name: str, about: str, style: str) -> str:
    box = f'<rect class="{style}" x="{LEFT}" y="{y}" width="{WIDTH - 2 * LEFT}" height="{FLOOR}" rx="6"/>'
    return "\n".join([box, text(LEFT + 12, y + 21, name, "name"), text(LEFT + 12, y + 40, about)])


def draw() -> str:
    """Return the picture."""
    parts = [f'<rect class="ground" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8"/>']
    parts += [
        text(LEFT, 32, "The house", "title"),
        text(LEFT, 56, "each imports only what is below it; core also writes what watch shows"),
    ]
    y = 70.0
    for name, about in FLOORS.items():
        parts.append(room(y, f"lazycast/{name}", about, "floor"))
        y += FLOOR + GAP
    parts.append(text(LEFT, y + 20, "beside it: these import lazycast/, never each other"))
    y += 32
    for name, about in BESIDE.items():
        parts.append(room(y, name, about, "beside"))
        y += FLOOR + GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="The parts of the code">\n<style>\n{STYLE}\n</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    TARGET.write_text(draw())

"""Draw docs/images/cast.svg: how a cast travels. Run it to make the file again; a test compares the two.

The picture has a ground of its own, since pages that show it may be light or dark.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "cast.svg"
WIDTH, HEIGHT = 1160, 716

STYLE = """
text { font: 15px "DejaVu Sans", Verdana, sans-serif; fill: #1c2129; }
.small { font-size: 13px; fill: #4b5563; }
.title { font-size: 16px; font-weight: bold; }
.number { font-size: 13px; font-weight: bold; fill: #ffffff; text-anchor: middle; }
.middle { text-anchor: middle; }
.ground { fill: #ffffff; stroke: #d5dae1; }
.host { fill: #f3f5f8; stroke: #9aa4b2; stroke-dasharray: 6 4; }
.rank { fill: #ffffff; stroke: #4b5563; stroke-width: 1.4; }
.owner { fill: #fff6e5; stroke: #b45309; stroke-width: 1.8; }
.memory { fill: #e3f1ea; stroke: #0f766e; stroke-width: 1.6; }
.slot { fill: #ffffff; stroke: #0f766e; }
.copy { stroke: #0f766e; stroke-width: 3; fill: none; marker-end: url(#copy); }
.message { stroke: #0b63c5; stroke-width: 1.8; fill: none; marker-end: url(#message); }
.view { stroke: #0f766e; stroke-width: 1.8; stroke-dasharray: 2 4; fill: none; }
.wire { stroke: #b42318; stroke-width: 4; fill: none; marker-end: url(#wire); }
.back { stroke: #7a5bb5; stroke-width: 1.8; fill: none; marker-end: url(#back); marker-start: url(#back); }
.up { stroke: #7a5bb5; stroke-width: 1.8; fill: none; marker-end: url(#back); }
""".strip()

MARKERS = {"copy": "#0f766e", "message": "#0b63c5", "wire": "#b42318", "back": "#7a5bb5"}


def text(x: float, y: float, words: str, style: str = "") -> str:
    """Return lines of text, the first one at (x, y)."""
    lines = words.split("\n")
    spans = "".join(f'<tspan x="{x}" dy="{18 if n else 0}">{escape(line)}</tspan>' for n, line in enumerate(lines))
    return f'<text class="{style}" x="{x}" y="{y}">{spans}</text>'


def box(x: float, y: float, width: float, height: float, style: str, *, round_: float = 8) -> str:
    return f'<rect class="{style}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{round_}"/>'


def line(style: str, *points: tuple[float, float]) -> str:
    return f'<polyline class="{style}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def step(x: float, y: float, number: int) -> str:
    """Return a numbered disc, which the legend explains."""
    return f'<circle cx="{x}" cy="{y}" r="11" fill="#1c2129"/>' + text(x, y + 4.5, str(number), "number")


def marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerUnits="userSpaceOnUse" markerWidth="13" '
        f'markerHeight="13" orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="{colour}"/></marker>'
    )


def first_host() -> list[str]:
    """Return the host of the root: the root, the shared memory of two ranks, two more ranks."""
    return [
        box(24, 62, 700, 424, "host", round_=14),
        text(40, 86, "host of the root", "title"),
        box(44, 104, 190, 356, "rank"),
        text(139, 128, "rank 0, the root", "middle"),
        box(60, 144, 158, 62, "slot"),
        text(139, 168, "your thread", "middle"),
        text(139, 188, "broadcast_async(raw)", "small middle"),
        step(60, 144, 1),
        box(60, 244, 158, 62, "slot"),
        text(139, 268, "engine", "middle"),
        text(139, 288, "encodes, sends", "small middle"),
        line("message", (139, 206), (139, 244)),
        text(147, 229, "queue", "small"),
        box(60, 380, 158, 62, "slot"),
        text(139, 404, "future", "middle"),
        text(139, 424, "result(), await", "small middle"),
        step(60, 380, 8),
        line("message", (139, 306), (139, 380)),
        box(300, 104, 172, 356, "memory"),
        text(386, 128, "shared memory", "middle"),
        text(386, 146, "anonymous, no names", "small middle"),
        box(316, 240, 140, 70, "slot"),
        text(386, 270, "raw payload", "middle"),
        text(386, 290, "arena of rank 0", "small middle"),
        box(316, 372, 140, 70, "slot"),
        text(386, 402, "value", "middle"),
        text(386, 422, "arena of rank 1", "small middle"),
        line("copy", (218, 284), (316, 284)),
        step(264, 284, 2),
        box(540, 128, 164, 140, "owner"),
        text(622, 150, "rank 1", "middle"),
        text(622, 172, "this cast's owner:", "small middle"),
        text(622, 190, "mailbox, decode,", "small middle"),
        text(622, 208, "materialize", "small middle"),
        step(540, 140, 5),
        box(540, 322, 164, 120, "rank"),
        text(622, 346, "rank 2", "middle"),
        text(622, 368, "mailbox[key] meets", "small middle"),
        text(622, 386, "the ask, early or late", "small middle"),
        step(704, 334, 4),
        line("message", (218, 258), (282, 258), (282, 168), (540, 168)),
        line("message", (282, 258), (282, 338), (540, 338)),
        step(282, 216, 3),
        line("view", (456, 262), (540, 238)),
        text(470, 226, "view", "small"),
        line("copy", (590, 268), (590, 296), (500, 296), (500, 394), (456, 394)),
        line("view", (456, 424), (540, 424)),
        text(470, 442, "view", "small"),
        step(500, 318, 6),
        line("message", (650, 268), (650, 322)),
    ]


def second_host() -> list[str]:
    """Return another host: its leader, which receives, and one more rank."""
    return [
        box(784, 62, 352, 424, "host", round_=14),
        text(800, 86, "every other host", "title"),
        box(960, 104, 156, 124, "rank"),
        text(1038, 128, "rank 3, leader", "middle"),
        text(1038, 150, "receives in chunks,", "small middle"),
        text(1038, 168, "passes them on to", "small middle"),
        text(1038, 186, "the next leaders", "small middle"),
        box(804, 240, 132, 220, "memory"),
        text(870, 264, "shared memory", "middle"),
        box(816, 282, 108, 66, "slot"),
        text(870, 310, "raw payload", "middle"),
        text(870, 330, "of rank 3", "small middle"),
        box(816, 376, 108, 66, "slot"),
        text(870, 404, "value", "middle"),
        text(870, 424, "of its owner", "small middle"),
        box(960, 322, 156, 120, "rank"),
        text(1038, 346, "rank 4", "middle"),
        text(1038, 368, "the same as on", "small middle"),
        text(1038, 386, "the host of the root", "small middle"),
        line("message", (1038, 228), (1038, 322)),
        line("copy", (975, 228), (975, 300), (924, 300)),
        line("view", (924, 334), (960, 346)),
        line("view", (924, 410), (960, 400)),
        line("wire", (218, 274), (248, 274), (248, 36), (1010, 36), (1010, 104)),
        text(300, 28, "backend: torch, MPI, sockets; each payload once to each host", "small"),
        step(880, 36, 3),
        line("back", (139, 460), (139, 506), (1038, 506), (1038, 442)),
        line("up", (622, 506), (622, 442)),
        step(390, 506, 7),
        text(410, 524, "reports up, one verdict down: all ranks succeed, or all fail with the same error", "small"),
    ]


LEGEND = (
    "the call returns at once: a number, a place in the queue; nothing is copied",
    "one copy of the arrays, into a slot of shared memory; the rest is pickled",
    "a short message to the ranks of the host; the bytes to the next leaders",
    "nobody waits in a collective: a cast waits in the mailbox, or the ask does",
    "on each host one rank materializes, another one for each cast",
    "one copy of the value; its peers map it: private views, no copy",
    "agreement, on unless agree=False",
    "when the last view of a slot is gone, the slot is free again",
)


def legend() -> list[str]:
    """Return what the numbers and the lines mean."""
    found = []
    for n, words in enumerate(LEGEND):
        x, y = (40 if n < 4 else 620), 560 + 27 * (n % 4)
        found += [step(x, y, n + 1), text(x + 22, y + 5, words, "small")]
    lines = (
        ("message", "message"),
        ("copy", "copy"),
        ("view", "view"),
        ("wire", "network"),
        ("back", "report, verdict"),
    )
    for n, (style, words) in enumerate(lines):
        x = 40 + 160 * n
        found += [line(style, (x, 682), (x + 44, 682)), text(x + 54, 687, words, "small")]
    return [*found, text(880, 687, 'shown: placement "shard"', "small")]


def draw() -> str:
    """Return the picture."""
    parts = [box(1, 1, WIDTH - 2, HEIGHT - 2, "ground", round_=10), *first_host(), *second_host(), *legend()]
    marks = "".join(marker(name, colour) for name, colour in MARKERS.items())
    label = (
        "How a cast travels: from the root through shared memory to the ranks of its host, and once to each other host"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", f"<defs>{marks}</defs>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw())
    print(TARGET)

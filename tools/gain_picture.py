"""Draw docs/images/gain.svg: requests a second with photos, for each way to get them to every rank.

The figures are those of docs/benchmarks/qps-torch.json. The picture has a ground of its own, and is narrow, for phones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images" / "gain.svg"
RUN = ROOT / "docs" / "benchmarks" / "qps-torch.json"
WIDTH, HEIGHT, LEFT, LONGEST = 480, 330, 16, 390

WAYS = {
    "lazycast-auto": "lazycast: one rank of four decodes each photo",
    "root-value": "rank 0 decodes, broadcast_object_list",
    "itself": "every rank decodes (no broadcast at all)",
    "raw-all": "broadcast_object_list, every rank decodes",
}
STYLE = """
text { font: 16px "DejaVu Sans", Verdana, sans-serif; fill: #1c2129; }
.title { font-size: 18px; font-weight: bold; }
.small { font-size: 13px; fill: #4b5563; }
.value { font-weight: bold; }
.ground { fill: #ffffff; stroke: #d5dae1; }
.ours { fill: #3949ab; }
.theirs { fill: #9aa4b2; }
""".strip()


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(words)}</text>'


def draw() -> str:
    """Return the picture."""
    run: dict[str, Any] = json.loads(RUN.read_text())
    (photo,) = (workload for workload in run["workloads"] if workload["workload"] == "photo")
    found = {way["way"]: way["qps"] for way in photo["ways"] if way["unavailable"] is None}
    most = max(found[way] for way in WAYS)
    plan, box = run["plan"], run["machine"]
    parts = [f'<rect class="ground" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8"/>']
    parts.append(text(LEFT, 32, "Photos a second, on every rank", "title"))
    for number, (way, name) in enumerate(WAYS.items()):
        y = 62 + number * 58
        style = "ours" if way.startswith("lazycast") else "theirs"
        length = LONGEST * found[way] / most
        parts.append(text(LEFT, y, name))
        parts.append(f'<rect class="{style}" x="{LEFT}" y="{y + 8}" width="{length:.1f}" height="22" rx="3"/>')
        parts.append(text(LEFT + length + 8, y + 25, f"{found[way]:.0f}", "value"))
    said = f"{plan['ranks']} ranks on {box['cores']} cores, JPEG of 1120x700, {run['date'][:10]}; longer is better"
    parts.append(text(LEFT, HEIGHT - 20, said, "small"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="Photos a second, for each way">\n<style>\n{STYLE}\n</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    TARGET.write_text(draw())

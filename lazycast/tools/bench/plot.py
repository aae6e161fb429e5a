"""The picture of a run: time over size, both logarithmic, a line for each way. Needs matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazycast.tools.bench import report
from lazycast.tools.bench.plan import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def missing() -> str | None:
    """Return a line that says what to install, or None if nothing is missing."""
    return None if find_spec("matplotlib") else "a plot needs matplotlib: pip install matplotlib"


def draw(run: dict[str, Any], path: Path) -> None:
    """Draw until when the last rank holds the value, one panel for each kind of payload, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = report.kinds(run)
    columns = min(2, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(7.0 * columns, 4.6 * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which looks for a display and keeps state
    ways = list(dict.fromkeys(result["way"] for result in run["results"]))
    handles: dict[str, Any] = {}
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for panel, kind in zip(axes, kinds, strict=False):
        panel.set_title(kinds[kind])
        handles = {**_panel(panel, run, kind, ways), **handles}
    for spare in list(axes)[len(kinds) :]:
        spare.set_axis_off()
    named = [way for way in ways if way in handles]
    figure.legend([handles[way] for way in named], named, loc="outside lower center", ncols=2 * columns)
    figure.suptitle(f"{report.title(run)}: until the last rank holds the value")
    figure.savefig(path, dpi=120, format="png")


def _panel(panel: Axes, run: dict[str, Any], kind: str, ways: list[str]) -> dict[str, Any]:
    handles = {}
    sizes: set[int] = set()
    for index, way in enumerate(ways):
        found = [r for r in run["results"] if (r["kind"], r["way"], r["column"]) == (kind, way, "holds")]
        if found:
            x = [result["nbytes"] for result in found]
            colour, width = f"C{index}", 2.6 if way == "lazycast" else 1.4
            (handles[way],) = panel.plot(x, [r["median_s"] for r in found], marker="o", color=colour, linewidth=width)
            panel.fill_between(
                x, [r["p10_s"] for r in found], [r["p90_s"] for r in found], color=colour, alpha=0.12, linewidth=0
            )
            sizes.update(x)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sorted(sizes), [size_text(nbytes) for nbytes in sorted(sizes)])
    panel.minorticks_off()
    panel.grid(True, alpha=0.3)
    panel.set_ylabel("seconds")
    return handles

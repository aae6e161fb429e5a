"""The picture of a run: QPS, p99 latency and processor time by way, a line of panels for each workload.

Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazycast.tools.bench import report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KNOWN, _OURS, _LIMIT = "C7", "C0", "C3"


def draw(run: dict[str, Any], path: Path) -> None:
    """Draw a run as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    workloads = run["workloads"]
    bars = max(len(workload["ways"]) for workload in workloads)
    figure = Figure(figsize=(15.0, (0.24 * bars + 1.1) * len(workloads) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which looks for a display and keeps state
    for panels, workload in zip(figure.subplots(len(workloads), 3, squeeze=False), workloads, strict=True):
        ways = [way for way in workload["ways"] if way["unavailable"] is None]
        name, alone_ms = workload["workload"], workload["yardstick_cpu_s"] * 1e3
        cpu_ms = [sum(way["cpu_s"]) * 1e3 for way in ways]
        _bars(panels[0], f"{name}: QPS (line: ideal)", ways, [way["qps"] for way in ways], workload["ideal_qps"])
        _bars(panels[1], f"{name}: p99 latency, ms", ways, [way["p99_s"] * 1e3 for way in ways])
        _bars(panels[2], f"{name}: CPU per request, ms (line: one materialization)", ways, cpu_ms, alone_ms)
    figure.suptitle(f"{report.title(run)}: requests")
    figure.savefig(path, dpi=110, format="png")


def _bars(
    panel: Axes, title: str, ways: list[dict[str, Any]], lengths: list[float], limit: float | None = None
) -> None:
    colours = [_KNOWN if way["known"] else _OURS for way in ways]
    panel.bar_label(panel.barh([way["way"] for way in ways], lengths, color=colours), fmt="%.3g", padding=3)
    panel.invert_yaxis()
    panel.set_title(title, fontsize="medium")
    panel.margins(x=0.15)
    if limit is not None and limit < 3 * max(lengths, default=0.0):  # far off it would flatten the bars
        panel.axvline(limit, color=_LIMIT, linewidth=1.2)
    panel.grid(True, axis="x", alpha=0.3)

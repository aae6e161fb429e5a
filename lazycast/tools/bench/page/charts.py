"""The plots of the page, as SVG that takes its colours from the page's style. Needs matplotlib.

Guarantees: text stays text, escaped by matplotlib and never read as mathematics; no identifier occurs in two plots.
"""

from __future__ import annotations

import io
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from lazycast.tools.bench.page.advice import number
from lazycast.tools.bench.page.records import TimesRun, Way, Workload
from lazycast.tools.bench.page.scaling import Scaling
from lazycast.tools.bench.plan import COLUMNS, size_text
from lazycast.tools.bench.report import seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that stand for variables of the style sheet: `--c0` to `--c9`, and what text and lines have.
_COLOURS = tuple(f"#0a0b{index:02d}" for index in range(10))
_INK, _FAINT = "#0a0b10", "#0a0b11"
_VARIABLES = {**{hex_: f"var(--c{index})" for index, hex_ in enumerate(_COLOURS)}, _INK: "var(--ink)"}
_VARIABLES[_FAINT] = "var(--line)"

#: What takes the same colour in every plot.
_FIXED = {
    "lazycast": 0,
    "lazycast agree=False": 1,
    "lazycast values=copy": 2,
    "one memcpy": 9,
    "lazycast-auto": 0,
    "lazycast-shard": 1,
    "lazycast-root": 2,
    "lazycast-every": 8,
}
_OTHERS = (3, 4, 5, 6, 7)
_LONGEST = 40  # characters of a name
_DASHES = ("-", "--", ":")
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
}


def missing() -> str | None:
    """Return a line that says what to install, or None if nothing is missing."""
    absent = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    return f"a page needs {' and '.join(absent)}: pip install 'lazycast[bench]'" if absent else None


def _svg(width: float, height: float, fill: Callable[[Figure], None], label: str) -> str:
    """Draw a figure (inches) and return its `<svg>` element.

    Args:
        label: what is on it, for those who cannot see it; also what makes its identifiers its own.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_RC, "svg.hashsalt": label}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)  # without pyplot, which looks for a display and keeps state
        fill(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for hex_, variable in _VARIABLES.items():
        text = text.replace(hex_, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = f"p{zlib.crc32(label.encode()):x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{prefix}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label={quoteattr(label)} ', 1)


def _palette(ways: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for each way: the same for the same ways in the same order."""
    found: dict[str, tuple[str, str]] = {}
    others = 0
    for way in dict.fromkeys(ways):
        if way in _FIXED:
            found[way] = (_COLOURS[_FIXED[way]], "-" if way != "one memcpy" else ":")
        else:
            dash = _DASHES[(others // len(_OTHERS)) % len(_DASHES)]
            found[way] = (_COLOURS[_OTHERS[others % len(_OTHERS)]], dash)
            others += 1
    return found


def time_over_size(run: TimesRun, kind: str, name: str) -> str:
    """Draw one kind of payload: a panel for each thing done with the value, a line for each way."""
    from matplotlib.ticker import FuncFormatter

    results = [result for result in run.results if result.kind == kind]
    palette = _palette(result.way for result in results)
    sizes = sorted({result.nbytes for result in results})

    def fill(figure: Figure) -> None:
        handles: dict[str, Any] = {}
        panels = figure.subplots(1, len(COLUMNS), sharey=True, squeeze=False)[0]
        for panel, column in zip(panels, COLUMNS, strict=True):
            for way, (colour, dash) in palette.items():
                found = sorted(
                    (r for r in results if (r.way, r.column) == (way, column)), key=lambda result: result.nbytes
                )
                if not found:
                    continue
                x = [r.nbytes for r in found]
                wide = 2.6 if way == "lazycast" else 1.5
                (handles[way],) = panel.plot(
                    x, [r.median_s for r in found], dash, marker="o", markersize=4, color=colour, linewidth=wide
                )
                low, high = [r.p10_s for r in found], [r.p90_s for r in found]
                panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            panel.set_title({"holds": "holds it", "read": "has read it"}.get(column, "has overwritten it"))
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sizes, [size_text(nbytes) for nbytes in sizes], rotation=35, ha="right")
            panel.minorticks_off()
            panel.grid(True, alpha=0.6)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        panels[0].set_ylabel("until the last rank ...")
        _legend(figure, handles, palette)

    return _svg(12.0, 4.6, fill, f"{name}, {run.plan.backend}, {run.plan.ranks} ranks: time over size")


def _tick(seconds: float) -> str:
    return seconds_text(seconds).replace(".00", "").replace(".0", "")


def _legend(figure: Figure, handles: dict[str, Any], order: Iterable[str]) -> None:
    named = [way for way in order if way in handles]
    figure.legend([handles[way] for way in named], _short(named), loc="outside lower center", ncols=4)


def _short(names: Iterable[str]) -> list[str]:
    """Cut what would leave no room for the plot."""
    return [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..." for name in names]


def requests(workload: Workload, backend: str, ranks: int) -> str:
    """Draw one workload: requests a second, latency, and processor time, a bar for each way."""
    ways = list(workload.ways.values())

    def fill(figure: Figure) -> None:
        panels = figure.subplots(1, 3, squeeze=False)[0]
        colours = [_COLOURS[_FIXED[way.way]] if way.way in _FIXED else _COLOURS[9] for way in ways]
        qps = [way.qps for way in ways]
        _bars(panels[0], "requests a second (line: ideal)", ways, qps, colours, workload.ideal_qps)
        _latencies(panels[1], ways, colours)
        cpu_ms = [sum(way.cpu_s) * 1e3 for way in ways]
        title = "all ranks' CPU per request, ms (line: one made)"
        _bars(panels[2], title, ways, cpu_ms, colours, workload.yardstick_cpu_s * 1e3)
        for panel in panels:
            panel.set_yticks(range(len(ways)), _short(way.way for way in ways) if panel is panels[0] else [])

    label = f"{workload.name}, {backend}, {ranks} ranks: requests a second, latency, processor time"
    return _svg(12.0, 0.34 * max(3, len(ways)) + 0.9, fill, label)


#: What a stranger calls the ways of the benchmark of requests.
_SAID = {
    "lazycast-auto": "lazycast",
    "itself": "every rank makes the value",
    "root-value": "rank 0 makes it, and broadcasts it",
    "raw-all": "it is broadcast raw, every rank makes it",
}


def headline(workload: Workload, backend: str, ranks: int) -> str:
    """Draw requests a second of lazycast and of the usual ways: the first thing on the page."""
    ways = [way for name, way in workload.ways.items() if name in _SAID]
    if all(way.known for way in ways):  # ours was measured with another placement
        ways = list(workload.ways.values())
    ways.sort(key=lambda way: -way.qps)

    def fill(figure: Figure) -> None:
        panel = figure.subplots()
        names = [textwrap.fill(name, 22) for name in _short(_SAID.get(way.way, way.way) for way in ways)]
        colours = [_COLOURS[9] if way.known else _COLOURS[0] for way in ways]
        low, high = ([end(each.qps for each in way.rounds) for way in ways] for end in (min, max))
        panel.barh(names, [way.qps for way in ways], color=colours, height=0.6)
        panel.hlines(names, low, high, color=_INK, linewidth=1.6)
        for name, way, least, most in zip(names, ways, low, high, strict=True):  # beyond the line, which may be long
            _label(panel, f"{number(way.qps)} ({number(least)} to {number(most)})", max(way.qps, most), name)
        _horizontal(panel, "", room=0.6)

    title = f"{workload.name}, {backend}, {ranks} ranks: requests a second, longer is better"
    return _svg(5.6, 0.55 * max(2, len(ways)) + 0.5, fill, title)  # narrow: phones show it whole


def _bars(
    panel: Axes, title: str, ways: Sequence[Way], lengths: Sequence[float], colours: Sequence[str], limit: float
) -> None:
    bars = panel.barh([way.way for way in ways], lengths, color=colours, height=0.7)
    panel.bar_label(bars, labels=[number(length) for length in lengths], padding=3, color=_INK)
    if limit < 3 * max(lengths, default=0.0):  # far off it would flatten the bars
        panel.axvline(limit, color=_COLOURS[3], linewidth=1.4)
    _horizontal(panel, title)


def _latencies(panel: Axes, ways: Sequence[Way], colours: Sequence[str]) -> None:
    """Draw p50 as a bar and p99 as the end of a line beyond it."""
    p50, p99 = [way.p50_s * 1e3 for way in ways], [way.p99_s * 1e3 for way in ways]
    names = [way.way for way in ways]
    panel.barh(names, p50, color=colours, height=0.7)
    panel.hlines(names, p50, p99, color=colours, linewidth=2.0)
    panel.plot(p99, names, "|", color=_INK, markersize=9, markeredgewidth=1.6)
    for name, low, high in zip(names, p50, p99, strict=True):
        _label(panel, f"{number(low)} / {number(high)}", high, name)
    _horizontal(panel, "latency, ms: p50 (bar) / p99 (mark)", room=0.35)


def _label(panel: Axes, text: str, beyond: float, name: str) -> None:
    """Write a text to the right of what ends at `beyond` in the row of that name."""
    panel.annotate(text, (beyond, name), xytext=(5, 0), textcoords="offset points", va="center", color=_INK)


def _horizontal(panel: Axes, title: str, room: float = 0.16) -> None:
    panel.invert_yaxis()
    panel.set_title(title)
    panel.margins(x=room, y=0.02)
    panel.set_xlim(left=0)
    panel.grid(True, axis="x", alpha=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)


def scaling(found: Scaling) -> str:
    """Draw one figure of every way over numbers of ranks."""
    from matplotlib.ticker import FuncFormatter

    palette = _palette(found.lines)

    def fill(figure: Figure) -> None:
        panel = figure.subplots()
        handles: dict[str, Any] = {}
        for way, (colour, dash) in palette.items():
            x, y = zip(*sorted(found.lines[way]), strict=True)
            wide = 2.6 if way in ("lazycast", "lazycast-auto") else 1.5
            (handles[way],) = panel.plot(x, y, dash, marker="o", markersize=4, color=colour, linewidth=wide)
        panel.set_xticks(found.ranks, [str(ranks) for ranks in found.ranks])
        panel.set_xlabel("ranks")
        panel.set_ylabel(found.quantity)
        if found.rates:
            panel.set_ylim(bottom=0)
        else:
            panel.set_yscale("log")
            panel.minorticks_off()
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        panel.grid(True, alpha=0.6)
        named = [way for way in palette if way in handles]
        figure.legend([handles[way] for way in named], _short(named), loc="outside right center")

    return _svg(9.0, 4.0, fill, f"{found.title}, {found.backend}: {found.quantity} over ranks")

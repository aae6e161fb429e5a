"""The picture of a merged trace: for each rank its calls and its threads, over time. Needs matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazycast.watch.tracing.events import Event, TraceError
from lazycast.watch.tracing.merge import Say, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "queue": "#bdbdbd",
    "held": "#8d6e63",
    "blocked": "#d32f2f",
    "wait": "#e0e0e0",
    "agree": "#ffcc80",
    "encode": "#1e88e5",
    "send": "#00acc1",
    "transfer": "#b3e5fc",
    "arrive": "#80cbc4",
    "arrive value": "#4db6ac",
    "decode": "#7e57c2",
    "materialize": "#43a047",
    "share": "#f06292",
}
#: Waiting, drawn inside the bar of its call; `transfer` is what the arrows are.
_INSIDE = ("queue", "held", "wait", "agree")
_MAX_LANES = 12  # calls of one rank at once
_LABEL_SHARE, _LEAST_SHARE = 0.012, 0.0012  # of the width: that a bar needs for its text, and to be seen


def missing() -> str | None:
    """Return a line that says what to install, or None if nothing is missing."""
    return None if find_spec("matplotlib") else "a picture needs matplotlib: pip install 'lazycast[bench]'"


@dataclass
class _Span:
    """A bar: times in ms."""

    name: str
    begin: float
    end: float
    seq: int | None


@dataclass
class _Rank:
    """What one process has done."""

    title: str = ""
    threads: dict[int, str] = field(default_factory=dict)
    work: dict[int, list[_Span]] = field(default_factory=lambda: defaultdict(list))
    waits: list[_Span] = field(default_factory=list)
    moments: list[tuple[int, float, str]] = field(default_factory=list)


@dataclass
class _Picture:
    """All that may be drawn."""

    ranks: dict[int, _Rank] = field(default_factory=lambda: defaultdict(_Rank))
    arrows: dict[Any, dict[str, tuple[int, int, float]]] = field(default_factory=lambda: defaultdict(dict))


def _collect(events: Sequence[Event]) -> _Picture:
    picture = _Picture()
    begun: dict[Any, Event] = {}
    for event in events:
        rank, ms, name = picture.ranks[event["pid"]], event["ts"] / 1e3, event["name"]
        seq = event.get("args", {}).get("seq")
        if event["ph"] == "M" and name == "process_name":
            rank.title = event["args"]["name"]
        elif event["ph"] == "M" and name == "thread_name":
            rank.threads[event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            rank.work[event["tid"]].append(_Span(name, ms, ms + event["dur"] / 1e3, seq))
        elif event["ph"] == "b":
            begun[event["id"]] = event
        elif event["ph"] == "e" and event["id"] in begun:
            begin = begun.pop(event["id"])
            rank.waits.append(_Span(name, begin["ts"] / 1e3, ms, begin["args"].get("seq")))
        elif event["ph"] == "i" and name not in ("said", "heard"):
            of = event["args"].get("rank")
            rank.moments.append((event["tid"], ms, name if of is None else f"{name}: rank {of}"))
        elif event["ph"] in "sf":
            picture.arrows[event["id"]][event["ph"]] = event["pid"], event["tid"], ms
    return picture


def _window(picture: _Picture, casts: tuple[int, int] | None) -> tuple[float, float]:
    spans = [s for r in picture.ranks.values() for s in (*r.waits, *(w for work in r.work.values() for w in work))]
    if casts is not None:
        spans = [span for span in spans if span.seq is not None and casts[0] <= span.seq <= casts[1]]
    if not spans:
        raise TraceError("there are no such casts in this trace")
    begin, end = min(span.begin for span in spans), max(span.end for span in spans)
    margin = 0.01 * (end - begin)
    return begin - margin, end + margin


def draw(
    events: Sequence[Event],
    path: Path,
    *,
    casts: tuple[int, int] | None = None,
    width: float = 14.0,
    say: Say = silent,
) -> None:
    """Draw a merged trace as PNG.

    Args:
        casts: draw the time of these (numbers, both included); None: all.
        width: of the picture (inches).
        say: is told of each rank.
    Raises: TraceError if there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    picture = _collect(events)
    window = _window(picture, casts)
    ranks = {pid: rank for pid, rank in sorted(picture.ranks.items()) if rank.work or rank.waits}
    plan = {pid: _rows(rank, window) for pid, rank in ranks.items()}
    heights = [len(rows) for rows in plan.values()]
    figure = Figure(figsize=(width, 0.27 * sum(heights) + 0.45 * len(heights) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(plan), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    used: set[str] = set()
    for number, (panel, (pid, rows)) in enumerate(zip(panels, plan.items(), strict=True), 1):
        say(f"drawing {ranks[pid].title}, {number} of {len(plan)}")
        _panel(panel, ranks[pid], rows, window, used)
    panels[-1].set_xlabel("ms")
    panels[0].set_xlim(0, window[1] - window[0])
    _arrows(figure, dict(zip(plan, panels, strict=True)), plan, picture, window)
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items() if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 12), frameon=False)
    say(f"writing {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


@dataclass
class _Row:
    """One line of a panel: a thread's work, or calls that do not overlap."""

    label: str
    spans: list[_Span]
    tid: int | None = None


def _rows(rank: _Rank, window: tuple[float, float]) -> list[_Row]:
    """Return what is seen of a rank in the window: its calls, packed, then its threads."""

    def seen(spans: list[_Span]) -> list[_Span]:
        return [span for span in spans if span.end >= window[0] and span.begin <= window[1]]

    lanes: list[_Row] = []
    for call in sorted(seen([s for s in rank.waits if s.name == "total"]), key=lambda span: span.begin):
        lane = next((lane for lane in lanes if lane.spans[-1].end <= call.begin), None)
        if lane is not None:
            lane.spans.append(call)
        elif len(lanes) < _MAX_LANES:
            lanes.append(_Row("" if lanes else "calls", [call]))
    threads = [_Row(_short(name), seen(rank.work[tid]), tid) for tid, name in rank.threads.items()]
    threads.sort(key=lambda row: (row.label.startswith("worker"), row.label))
    return [*lanes, *(row for row in threads if row.spans)] or [_Row("idle", [])]


def _short(name: str) -> str:
    """A thread's name without that of the library and of the object."""
    if not name.startswith("lazycast-"):
        return "caller" if name == "MainThread" else name
    for end in ("-engine", "-light", "-host", "-callback"):
        if end in name:
            return end[1:] if end != "-light" else "worker, light"
    _, work, number = name.rpartition("-work-")
    return f"worker {number}" if work else name.removeprefix("lazycast-")


def _panel(panel: Axes, rank: _Rank, rows: list[_Row], window: tuple[float, float], used: set[str]) -> None:
    begin, width = window[0], window[1] - window[0]
    for y, row in enumerate(rows):
        for span in row.spans:
            if row.tid is None:
                _call(panel, rank, span, y, begin, width, used)
            else:
                depth = sum(o.begin <= span.begin and span.end <= o.end and o is not span for o in row.spans)
                _bar(panel, span, y, max(0.3, 0.84 - 0.22 * depth), begin, _LEAST_SHARE * width, used)
                wide = span.end - span.begin > _LABEL_SHARE * width
                if wide and span.name in ("materialize", "encode", "decode", "share") and span.seq is not None:
                    middle = (max(span.begin, begin) + min(span.end, window[1])) / 2 - begin
                    panel.text(
                        middle, y, f"#{span.seq}", ha="center", va="center", fontsize=7, color="white", clip_on=True
                    )
        if row.tid is not None:
            _moments(panel, [(ms, name) for tid, ms, name in rank.moments if tid == row.tid], y, window)
    panel.set_title(rank.title, loc="left", fontsize=9, pad=3)
    panel.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(True, axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _moments(panel: Axes, moments: list[tuple[float, str]], y: int, window: tuple[float, float]) -> None:
    """Mark what has happened; of what lies too close together, the first is named and the others are counted."""
    near_ms = 0.08 * (window[1] - window[0])
    seen = sorted(moment for moment in moments if window[0] <= moment[0] <= window[1])
    while seen:
        ms, name = seen[0]
        more = sum(other - ms < near_ms for other, _ in seen) - 1
        panel.plot([at - window[0] for at, _ in seen[: more + 1]], [y] * (more + 1), "v", color="#d32f2f", markersize=5)
        text, place = f"{name} (+{more})" if more else name, (ms - window[0], y)
        right = ms > window[1] - near_ms  # there the text would leave the picture
        panel.annotate(
            text,
            place,
            fontsize=7,
            xytext=(-6 if right else 6, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
        seen = seen[more + 1 :]


def _call(panel: Axes, rank: _Rank, call: _Span, y: int, begin: float, width: float, used: set[str]) -> None:
    panel.barh(
        y,
        call.end - call.begin,
        left=call.begin - begin,
        height=0.84,
        color="#f5f5f5",
        edgecolor="#9e9e9e",
        linewidth=0.6,
    )
    for span in rank.waits:
        inside = call.begin <= span.end and span.begin <= call.end
        if span.name in _INSIDE and span.seq == call.seq is not None and inside:
            left = max(span.begin, call.begin)
            _bar(panel, _Span(span.name, left, max(left, span.end), span.seq), y, 0.5, begin, 0.0, used)
    if call.seq is not None and call.end - call.begin > _LABEL_SHARE * width:
        middle = (max(call.begin, begin) + min(call.end, begin + width)) / 2 - begin
        panel.text(middle, y, f"#{call.seq}", ha="center", va="center", fontsize=7, color="#424242", clip_on=True)


def _bar(panel: Axes, span: _Span, y: int, height: float, begin: float, least: float, used: set[str]) -> None:
    colour = _COLOURS.get(span.name)
    if span.name == "broadcast" or colour is None:  # a caller that waits: an outline will do
        panel.barh(
            y,
            span.end - span.begin,
            left=span.begin - begin,
            height=0.84,
            color="none",
            edgecolor="#bdbdbd",
            linewidth=0.6,
        )
        return
    used.add(span.name)
    panel.barh(y, max(span.end - span.begin, least), left=span.begin - begin, height=height, color=colour, linewidth=0)


def _arrows(
    figure: Any, panels: dict[int, Axes], plan: dict[int, list[_Row]], picture: _Picture, window: tuple[float, float]
) -> None:
    """Draw from where casts left to where they arrived."""
    from matplotlib.patches import ConnectionPatch

    places = {(pid, row.tid): y for pid, rows in plan.items() for y, row in enumerate(rows) if row.tid is not None}
    for arrow in picture.arrows.values():
        if len(arrow) != 2:
            continue
        (pid_a, tid_a, a), (pid_b, tid_b, b) = arrow["s"], arrow["f"]
        if (pid_a, tid_a) not in places or (pid_b, tid_b) not in places or not window[0] <= a <= b <= window[1]:
            continue
        figure.add_artist(
            ConnectionPatch(
                (a - window[0], places[pid_a, tid_a]),
                (b - window[0], places[pid_b, tid_b]),
                coordsA="data",
                coordsB="data",
                axesA=panels[pid_a],
                axesB=panels[pid_b],
                arrowstyle="-|>",
                mutation_scale=6,
                color="#37474f",
                linewidth=0.5,
                alpha=0.45,
            )
        )

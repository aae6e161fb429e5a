"""Work with traces: what LAZYCAST_TRACE=DIR or `LazyBroadcast.trace(DIR)` has made each rank write.

`merge` makes one file of them, for https://ui.perfetto.dev or chrome://tracing, with the ranks' clocks aligned. `plot`
draws a piece of a merged trace as PNG.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lazycast.tools.cli import arguments
from lazycast.tools.cli.steps import Steps
from lazycast.watch.tracing import events, plot
from lazycast.watch.tracing.merge import merge, read_all

HELP = "merge what ranks have traced, and draw it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    merging = commands.add_parser("merge", help="make one file for Perfetto of a folder")
    merging.add_argument("folder", type=Path, metavar="DIR", help="where the ranks have written")
    merging.add_argument("-o", "--out", type=Path, default=Path("trace.json"), metavar="FILE", help="%(default)s")
    merging.set_defaults(trace=_merge)
    drawing = commands.add_parser("plot", help="draw a merged trace")
    drawing.add_argument("file", type=Path, metavar="FILE", help="what `merge` has written")
    drawing.add_argument("-o", "--out", type=Path, default=Path("trace.png"), metavar="PNG", help="%(default)s")
    drawing.add_argument(
        "--casts", type=_numbers, metavar="A-B", help="draw the time of these casts, by number; default: all"
    )
    drawing.add_argument("--width", type=arguments.above_zero, default=14.0, metavar="INCHES", help="%(default)g")
    drawing.set_defaults(trace=_plot)


def _numbers(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"must be a number or two with a dash between, got {text!r}")
    return int(first), int(last or first)


def run(args: argparse.Namespace) -> int:
    """Merge or draw. Returns the exit code."""
    try:
        code: int = args.trace(args)
    except (OSError, events.TraceError) as exc:
        print(f"lazycast trace: {exc}", file=sys.stderr)
        return 2
    return code


def _merge(args: argparse.Namespace) -> int:
    with Steps("lazycast trace merge") as steps:
        traces, notes = read_all(args.folder, steps.say)
        merged = merge(traces, notes, steps.say)
        clocks = {path.name: offset._asdict() for path, offset in merged.offsets.items()}
        said = {"notes": merged.notes, "clocks": clocks}
        steps.say(f"writing {args.out}")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        began = {"baseTimeNanoseconds": merged.base_ns}  # as in the traces of torch.profiler
        whole = {"traceEvents": merged.events, "displayTimeUnit": "ms", "otherData": said, **began}
        args.out.write_text(json.dumps(whole))
    objects = {trace.about["object"] for trace in traces}
    counts = f"{len(merged.events)} events of {_counted(len(traces), 'file')}, {_counted(len(objects), 'object')}"
    print(f"{counts}: {args.out}")
    for note in merged.notes:
        print(f"note: {note}")
    return 0


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plot(args: argparse.Namespace) -> int:
    missing = plot.missing()
    if missing is not None:
        print(f"lazycast trace: {missing}", file=sys.stderr)
        return 2
    with Steps("lazycast trace plot") as steps:
        steps.say(f"reading {args.file}")
        merged = events.load(args.file)
        plot.draw(merged, args.out, casts=args.casts, width=args.width, say=steps.say)
    print(args.out)
    return 0

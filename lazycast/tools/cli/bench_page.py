"""Make one HTML page of the benchmark runs (JSON files) in a folder: tables, plots, and what to choose.

The page needs nothing beside itself: no network, no script. `lazycast bench --report DIR` and `lazycast bench qps
--report DIR` put their runs into a folder and make its page; this makes it again, or of files from elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lazycast.tools.bench import progress
from lazycast.tools.bench.page import charts, render

HELP = "one HTML page of all runs in a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the JSON files are")
    parser.add_argument(
        "--html", type=Path, default=None, metavar="FILE", help=f"where to write the page; default: DIR/{render.NAME}"
    )


def run(args: argparse.Namespace, backend: str) -> int:
    """Make the page. Returns the exit code: 1 if some file could not be read, 2 if there is no page."""
    problem = charts.missing()
    if problem is None and not args.folder.is_dir():
        problem = f"{args.folder} is not a folder"
    elif problem is None and not any(args.folder.glob("*.json")):
        problem = f"{args.folder} has no JSON file of a run; `lazycast bench --short --report {args.folder}` makes some"
    if problem is not None:
        print(f"lazycast bench report: {problem}", file=sys.stderr)
        return 2
    return write(args.folder, args.html)


def write(folder: Path, path: Path | None = None) -> int:
    """Make the page of a folder, and say where it is and what is not on it. Returns the exit code."""
    path = path or folder / render.NAME
    with progress.display() as shows:
        found = render.write(folder, path, shows.show)
    for name, reason in found.unread.items():
        print(f"lazycast bench report: {folder / name}: {reason}", file=sys.stderr)
    print(f"report: {path}")
    return 1 if found.unread else 0

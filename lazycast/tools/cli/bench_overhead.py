"""Measure what counting and tracing cost: the rate of small casts with neither, with the first, and with both.

Each round takes every way in turn, and ways are compared within rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lazycast.tools.bench import overhead
from lazycast.tools.cli import arguments

HELP = "what stats() and traces cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # What `lazycast bench` takes too would be set to its default here, after it was set there.
    parser.argument_default = argparse.SUPPRESS
    usual = overhead.Plan("")
    parser.add_argument("--backend", choices=("torch", "mpi", "local"), help="default: the first that is installed")
    parser.add_argument("--ranks", type=arguments.RANKS, metavar="N,..", help="a run for each number; default: 4")
    parser.add_argument("--rounds", type=arguments.whole(1), metavar="N", help=f"default: {usual.rounds}")
    parser.add_argument("--casts", type=arguments.whole(1), metavar="N", help=f"in a turn; default: {usual.casts}")
    parser.add_argument("--window", type=arguments.whole(1), metavar="N", help=f"under way; default: {usual.window}")
    parser.add_argument("--no-agree", action="store_true", help="without agreement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    if args.json is not None and len(args.ranks) > 1:
        print("lazycast bench overhead: --json takes one number of ranks", file=sys.stderr)
        return 2
    usual = overhead.Plan(backend)
    for ranks in args.ranks:
        measured = overhead.run(
            overhead.Plan(
                backend,
                ranks,
                args.rounds or usual.rounds,
                getattr(args, "casts", usual.casts),
                getattr(args, "window", usual.window),
                agree=not getattr(args, "no_agree", False),
            )
        )
        print(overhead.table(measured))
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0

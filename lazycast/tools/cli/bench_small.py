"""Measure what a cast costs beside its bytes: a small dict, alone after a pause, in a row, and many at once.

All ways that the backend has take their turns in the same rounds. Among them is plain Python, with pickle and sockets
and nothing else: the least that a broadcast in Python can cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lazycast.tools.bench import small
from lazycast.tools.cli import arguments
from lazycast.tools.cli.bench_qps import write_json

HELP = "what small casts cost: time, processor time, and how many there are in a second"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # What `lazycast bench` takes too would be set to its default here, after it was set there.
    parser.argument_default = argparse.SUPPRESS
    usual = small.Plan("")
    windows = ",".join(map(str, usual.windows))
    parser.add_argument("--backend", choices=("torch", "mpi", "local"), help="default: the first that is installed")
    parser.add_argument("--ranks", type=arguments.RANKS, metavar="N,..", help="a run for each number; default: 4")
    parser.add_argument("--ways", type=arguments.listed(str), metavar="W,..", help="as `lazycast bench` names them")
    parser.add_argument("--rounds", type=arguments.whole(1), metavar="N", help=f"default: {usual.rounds}")
    parser.add_argument("--calls", type=arguments.whole(1), metavar="N", help=f"alone, a round; default: {usual.calls}")
    parser.add_argument("--casts", type=arguments.whole(1), metavar="N", help=f"in a row; default: {usual.casts}")
    parser.add_argument(
        "--windows",
        type=arguments.listed(arguments.whole(1)),
        metavar="N,..",
        help=f"under way; default: {windows}",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write small-BACKEND-RANKS.json and .md there")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    asked = args.ways or ()
    known = [way.name for way in small.available(backend)]
    unknown = [name for name in asked if name not in known]
    if unknown:
        print(
            f"lazycast bench small: not available: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr
        )
        return 2
    usual = small.Plan(backend)
    for ranks in args.ranks:
        plan = small.Plan(
            backend,
            ranks,
            asked,
            rounds=args.rounds or usual.rounds,
            calls=getattr(args, "calls", usual.calls),
            casts=getattr(args, "casts", usual.casts),
            windows=getattr(args, "windows", usual.windows),
        )
        measured = small.run(plan, command=args.command_line, label=f"{ranks} ranks: ")
        print("\n".join(small.lines(measured)), flush=True)
        if args.out:
            stem = arguments.stem("small", backend, ranks)
            write_json(measured, args.out / f"{stem}.json")
            (args.out / f"{stem}.md").write_text("\n".join(small.lines(measured)) + "\n")
    return 0

"""Measure who makes values, and what that costs: helpers, shards, memory, and pools of processes written by hand.

Rows: a scheduler on each rank beside each way, and beside the same load by processes that have nothing to do with the
ranks; photos a second; 10 MB from another process; a request of eight photos; what is remembered; a helper that is
killed. Each round takes every way in turn; each row has a target, and the table says whether it was reached.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lazycast.tools.bench.making import plan as plans
from lazycast.tools.bench.making import report, session
from lazycast.tools.cli import announce, arguments, extras
from lazycast.tools.cli.bench_qps import write_json

HELP = "who makes values, and what that costs a rank: helpers, memory, pools by hand"

_SHORT_ROUNDS, _SHORT_SECONDS = 3, 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # What `lazycast bench` takes too would be set to its default here, after it was set there.
    parser.argument_default = argparse.SUPPRESS
    usual = plans.Plan("")
    parser.add_argument("--backend", choices=("torch", "mpi", "local"), help="default: the first that is installed")
    # Under a name of its own: the default of `lazycast bench` is another.
    ranks = f"a run for each number; default: {usual.ranks}"
    parser.add_argument("--ranks", dest="making_ranks", type=arguments.RANKS, metavar="N,..", help=ranks)
    parser.add_argument("--helpers", type=arguments.whole(1), metavar="N", help=f"default: {usual.helpers}")
    parser.add_argument(
        "--rows",
        type=arguments.listed(arguments.one_of(plans.ROWS)),
        metavar="R,..",
        help=f"{', '.join(plans.ROWS)}; comma-separated; default: all",
    )
    parser.add_argument("--rounds", type=arguments.whole(1), metavar="N", help=f"default: {usual.rounds}")
    parser.add_argument(
        "--seconds", type=arguments.above_zero, metavar="S", help=f"beside a scheduler; default: {usual.seconds:g}"
    )
    parser.add_argument("--chat", type=arguments.whole(1), metavar="N", help=f"requests; default: {usual.chat}")
    parser.add_argument("--short", action="store_true", help="shorter rounds, and fewer")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write making-BACKEND.json and .md there")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    problem = extras.missing()
    if problem is not None:
        print(f"lazycast bench making: {problem}", file=sys.stderr)
        return 2
    asked = [_plan(args, backend, ranks) for ranks in getattr(args, "making_ranks", (plans.Plan("").ranks,))]
    announce.announce("lazycast bench making", sum(plan.about_s() for plan in asked))
    for plan in asked:
        measured = session.run(plan, command=args.command_line, label=f"{plan.ranks} ranks: " if asked[1:] else "")
        text = "\n".join(report.lines(measured)) + "\n"
        print(text, end="", flush=True)
        if args.out:
            stem = arguments.stem("making", backend, plan.ranks if asked[1:] else None)
            write_json(measured, args.out / f"{stem}.json")
            (args.out / f"{stem}.md").write_text(text)
    return 0


def _plan(args: argparse.Namespace, backend: str, ranks: int) -> plans.Plan:
    usual = plans.Plan(backend)
    return plans.Plan(
        backend,
        ranks,
        helpers=getattr(args, "helpers", usual.helpers),
        rows=getattr(args, "rows", usual.rows),
        rounds=args.rounds or (_SHORT_ROUNDS if args.short else usual.rounds),
        seconds=getattr(args, "seconds", _SHORT_SECONDS if args.short else usual.seconds),
        chat=getattr(args, "chat", usual.chat),
    )

"""Compare ways to get a materialized value to all ranks, under requests, in one run on ranks started on this machine.

Requests arrive at a rate, or so many are outstanding; each rank has an engine's loop. Each round takes every way in
turn: each rank for itself, the root's value or the raw request over the backend's broadcast of objects, and lazycast
with each placement. The first values of every turn are compared with what the root has made by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lazycast.tools.bench import plot as plots
from lazycast.tools.bench.page import charts
from lazycast.tools.bench.qps import plan as plans
from lazycast.tools.bench.qps import plot, report, session
from lazycast.tools.bench.qps.ways import WAYS
from lazycast.tools.bench.qps.workloads import WORKLOADS
from lazycast.tools.cli import announce, arguments, bench_page, extras

HELP = "throughput, latency and CPU of requests, by way and workload"

_SECONDS, _ROUNDS, _SLOWDOWNS = 5.0, 5, 3
#: How long the scheduler is watched at a time, at most.
_SLOWDOWN_S = 1.0
#: What `--short` takes instead.
_SHORT_SECONDS, _SHORT_ROUNDS, _SHORT_SLOWDOWNS = 1.0, 3, 1
#: What a report of `lazycast bench` has beside its own.
_REPORTED = ("photo", "replicated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. Those that `lazycast bench` has too may also stand before `qps`, so none has a default here."""
    parser.argument_default = argparse.SUPPRESS
    many = "comma-separated; default: all"
    parser.add_argument("--backend", choices=("torch", "mpi", "local"), help="default: the first that is installed")
    parser.add_argument("--ranks", type=arguments.RANKS, metavar="N,..", help="a run for each number; default: 4")
    parser.add_argument(
        "--workloads",
        type=arguments.listed(arguments.one_of(WORKLOADS)),
        default=tuple(WORKLOADS),
        metavar="W,..",
        help=f"{', '.join(WORKLOADS)}; {many}",
    )
    parser.add_argument(
        "--ways",
        type=arguments.listed(arguments.one_of(WAYS)),
        default=(),
        metavar="W,..",
        help=f"{', '.join(WAYS)}; {many}",
    )
    parser.add_argument(
        "--concurrency",
        type=arguments.whole(1),
        default=8,
        metavar="N",
        help="closed loop: so many requests outstanding, fewer of large ones; default: %(default)s",
    )
    parser.add_argument(
        "--rate", type=arguments.above_zero, default=None, metavar="R", help="open loop: so many requests a second"
    )
    parser.add_argument(
        "--seconds",
        type=arguments.above_zero,
        default=None,
        metavar="S",
        help=f"of one way in one round; default: {_SECONDS:g}, or {_SHORT_SECONDS:g} with --short",
    )
    parser.add_argument(
        "--rounds",
        type=arguments.whole(1),
        metavar="N",
        help=f"default: {_ROUNDS}, or {_SHORT_ROUNDS} with --short",
    )
    parser.add_argument("--short", action="store_true", help="shorter rounds, and fewer")
    parser.add_argument("--no-figures", action="store_true", help="leave out the scheduler beside each way")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write JSON, Markdown and PNG there, as qps-BACKEND.*")
    parser.add_argument("--report", type=Path, metavar="DIR", help="make one HTML page of all runs there")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    problem = extras.missing() or (charts.missing() if args.report else None)
    if problem is not None:
        print(f"lazycast bench qps: {problem}", file=sys.stderr)
        return 2
    asked = [_plan(args, backend, ranks) for ranks in args.ranks]
    announce.announce("lazycast bench qps", about_s(asked))
    measure(asked, args)
    return bench_page.write(args.report) if args.report else 0


def of_report(args: argparse.Namespace, backend: str, ways: tuple[str, ...]) -> list[plans.Plan]:
    """Return what a report of `lazycast bench` measures of requests, for each number of ranks."""
    workloads = ("photo",) if args.short or args.quick else _REPORTED
    seconds, rounds = _SHORT_SECONDS, args.rounds or _SHORT_ROUNDS
    plan = plans.Plan(backend, 0, workloads, ways, seconds, rounds, slowdown_s=0.0, slowdown_rounds=0)
    return [replace(plan, ranks=ranks) for ranks in args.ranks]


def about_s(asked: Sequence[plans.Plan]) -> float:
    """How long runs of requests will take (seconds)."""
    return sum(plan.about_s(len(plan.workloads), len(plan.ways or WAYS)) for plan in asked)


def measure(asked: Sequence[plans.Plan], args: argparse.Namespace) -> None:
    """Measure, print and write a run for each plan."""
    for plan in asked:
        label = f"{plan.ranks} ranks: " if len(asked) > 1 else ""
        measured = session.run(plan, command=args.command_line, label=label)
        report.print_run(measured)
        name = arguments.stem("qps", plan.backend, plan.ranks if len(asked) > 1 else None)
        if args.report:
            write_json(measured, args.report / f"{name}.json")
        if args.out:
            _write(measured, args.out / f"{name}.json")


def write_json(measured: dict[str, Any], path: Path) -> None:
    """Write everything that was measured; make the folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")


def _write(measured: dict[str, Any], at: Path) -> None:
    write_json(measured, at)
    picture = at.with_suffix(".png")
    if plots.missing() is None:
        plot.draw(measured, picture)
    else:
        print(f"lazycast bench qps: no picture: {plots.missing()}", file=sys.stderr)
    shown = picture.name if plots.missing() is None else None
    at.with_suffix(".md").write_text(report.markdown(measured, plot=shown))


def _plan(args: argparse.Namespace, backend: str, ranks: int) -> plans.Plan:
    rounds = args.rounds or (_SHORT_ROUNDS if args.short else _ROUNDS)
    seconds = args.seconds or (_SHORT_SECONDS if args.short else _SECONDS)
    return plans.Plan(
        backend=backend,
        ranks=ranks,
        workloads=args.workloads,
        ways=args.ways,
        seconds=seconds,
        rounds=rounds,
        concurrency=args.concurrency,
        rate=args.rate,
        slowdown_s=0.0 if args.no_figures else min(seconds, _SLOWDOWN_S),
        slowdown_rounds=0 if args.no_figures else min(rounds, _SHORT_SLOWDOWNS if args.short else _SLOWDOWNS),
    )

"""Say whether lazycast works here, how well, and what to do about what does not.

Without a launcher, small jobs are started on this machine. Under one, the job itself is examined, and rank 0 reports:

    torchrun --nproc-per-node 4 -m lazycast doctor
    mpirun -n 4 python -m lazycast doctor

Exit codes: 0 no problem was found (notes are none); 1 there is one; 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from lazycast.tools.cli import arguments
from lazycast.tools.cli.steps import Steps
from lazycast.tools.doctor import alone, job, judge, report, session
from lazycast.tools.doctor.finding import worst
from lazycast.tools.doctor.judge import Examination

HELP = "say whether lazycast works here, and what to do about what does not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=arguments.whole(2), metavar="N", help="without a launcher: how many to start; default: 2 to 4"
    )
    parser.add_argument(
        "--timeout-s",
        type=arguments.above_zero,
        default=30.0,
        metavar="S",
        help="how long to wait for a rank, or for one step; default: %(default)g",
    )
    parser.add_argument("--no-self-test", action="store_true", help="cast nothing: only look, and meet")
    parser.add_argument("--json", action="store_true", help="print JSON only")


def run(args: argparse.Namespace) -> int:
    """Examine, and print on rank 0. Returns the exit code."""
    found = job.launcher()
    if found is not None and args.ranks is not None:
        print(f"lazycast doctor: --ranks: this job has the ranks that {found.name} has started", file=sys.stderr)
        return 2
    plan = {"self_test": not args.no_self_test, "timeout_s": args.timeout_s}
    if found is None:
        with Steps("lazycast doctor") as steps:
            exam = alone.visit(ranks=args.ranks or alone.ranks_here(), say=steps.say, **plan)
        return _show(exam, args.json)

    with Steps("lazycast doctor", shown=found.rank == 0) as steps:
        led = session.visit(found, say=steps.say, text=lambda known: _text(known, args.json), **plan)
    if led is None:
        return 0
    code = _show(led, args.json)
    if led.abandoned:
        # Leaving as usual would wait for the ranks that do not answer: MPI does so when it is finalized.
        sys.stdout.flush()
        os._exit(code)
    return code


def _text(exam: Examination, as_json: bool) -> str:
    if as_json:
        return json.dumps(judge.as_data(exam), indent=2)
    return report.text(exam.title, judge.findings(exam))


def _show(exam: Examination, as_json: bool) -> int:
    findings = judge.findings(exam)
    if as_json:
        print(_text(exam, as_json), flush=True)
    else:
        # mpirun gives its ranks a terminal, whatever its own output goes to.
        report.print_text(exam.title, findings, plain=exam.launcher is not None and exam.backend == "mpi")
    return 1 if worst(findings) == "problem" else 0

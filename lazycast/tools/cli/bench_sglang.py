"""Compare SGLang's own broadcast of multimodal inputs with lazycast's adapter, on CPU, in one run.

Each round takes every way in turn: every rank for itself, the scheduler's own method, and the same method with
lazycast; for whole requests SGLang's broadcast_pyobj, and lazycast. It runs where SGLang is installed; a GPU is not
needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from lazycast.tools.bench.sglang import report, session
from lazycast.tools.bench.sglang.plan import Plan
from lazycast.tools.cli import arguments

HELP = "SGLang's multimodal inputs and requests, as they are and with lazycast"


def _number(text: str) -> int:
    return arguments.whole(1)(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "--ranks", type=arguments.listed(_number), dest="rank_counts", default=None, metavar="N,..", help="default: 2,4"
    )
    parser.add_argument(
        "--images", type=arguments.listed(_number), default=None, metavar="N,..", help="in a request; default: 1,2,4,8"
    )
    parser.add_argument("--rounds", type=arguments.whole(1), metavar="N", help="default: 7, or 3 with --short")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--no-requests", action="store_true", default=False, help="leave out whole requests")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write JSON and Markdown there, as sglang-RELEASE.*")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    if find_spec("rich") is None:
        print("lazycast bench sglang: rich not found; run: pip install rich", file=sys.stderr)
        return 2
    usual = Plan()
    plan = Plan(
        ranks=args.rank_counts or usual.ranks,
        images=args.images or usual.images,
        rounds=args.rounds or (3 if args.short else usual.rounds),
        requests=not args.no_requests,
    )
    measured = session.run(plan, command=args.command_line)
    report.print_run(measured)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        at = args.out / f"sglang-{measured['versions']['sglang']}"
        Path(f"{at}.json").write_text(json.dumps(measured, indent=1) + "\n")
        Path(f"{at}.md").write_text(report.markdown(measured))
    return 0

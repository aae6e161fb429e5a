"""Serve requests with images by SGLang's real schedulers and their real loop, as they are and with lazycast.

Two schedulers a way, on CPU, with a stand-in for the GPU that takes time and no processor; eight texts decode beside
the requests. Each round takes every way in turn. It needs SGLang 0.5.23 and no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from lazycast.tools.bench.sglang_loop import report, session
from lazycast.tools.bench.sglang_loop.plan import SIZES, WAYS, Load, LoopPlan
from lazycast.tools.cli import arguments

HELP = "SGLang's event loop under load, as it is and with lazycast"


def _load(text: str) -> Load:
    """Read a load: "32" outstanding, or "8/s"."""
    number, _, unit = text.partition("/")
    if unit not in ("", "s"):
        raise ValueError(f"a load is a number of outstanding requests, or N/s; got {text!r}")
    return Load(per_s=float(number)) if unit else Load(outstanding=arguments.whole(1)(number))


def _one_of(known: Iterable[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"one of {', '.join(known)}; got {text!r}")
        return text

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    for option, known in (("--ways", list(WAYS)), ("--sizes", list(SIZES))):
        names = arguments.listed(_one_of(known))
        parser.add_argument(option, type=names, default=None, metavar="NAME,..", help=f"default: {','.join(known)}")
    parser.add_argument(
        "--loads", type=arguments.listed(_load), default=None, metavar="N,N/s", help="default: 8,32,4/s,8/s"
    )
    parser.add_argument("--rounds", type=arguments.whole(1), default=None, metavar="N", help="default: 3")
    parser.add_argument("--seconds", type=float, default=None, metavar="S", help="of each measurement; default: 4")
    parser.add_argument("--normal", action="store_true", default=False, help="the normal loop, not the overlap loop")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="write JSON and Markdown there")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    if find_spec("rich") is None:
        print("lazycast bench sglang-loop: rich not found; run: pip install rich", file=sys.stderr)
        return 2
    usual = LoopPlan()
    plan = LoopPlan(
        ways=tuple(args.ways or usual.ways),
        sizes=tuple(args.sizes or usual.sizes),
        loads=tuple(args.loads or usual.loads),
        rounds=args.rounds or usual.rounds,
        seconds=args.seconds or usual.seconds,
        overlap=not args.normal,
    )
    measured = session.run(plan, command=args.command_line)
    report.print_run(measured)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        at = args.out / f"sglang-loop-{measured['versions']['sglang']}"
        Path(f"{at}.json").write_text(json.dumps(measured, indent=1) + "\n")
        Path(f"{at}.md").write_text(report.markdown(measured))
    return 0

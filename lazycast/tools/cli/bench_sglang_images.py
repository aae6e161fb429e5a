"""Process images as SGLang's tokenizer does: in its event loop, on its threads, and in lazycast's helpers.

It needs SGLang 0.5.23 and no GPU. Requests of two photos, many at once; each round takes every way in turn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lazycast.tools.bench.sglang_loop import images, images_report
from lazycast.tools.cli import arguments

HELP = "SGLang's image processor: in its event loop, on its threads, in helpers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("--rounds", type=arguments.whole(1), default=None, metavar="N", help="default: 5")
    parser.add_argument("--requests", type=arguments.whole(1), default=None, metavar="N", help="at once; default: 24")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="write JSON and Markdown there")


def run(args: argparse.Namespace, backend: str) -> int:
    """Measure, print and write. Returns the exit code."""
    usual = images.ImagesPlan()
    plan = images.ImagesPlan(rounds=args.rounds or usual.rounds, requests=args.requests or usual.requests)
    measured = images.run(plan, command=args.command_line)
    text = images_report.markdown(measured)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        at = args.out / f"sglang-images-{measured['versions']['sglang']}"
        Path(f"{at}.json").write_text(json.dumps(measured, indent=1) + "\n")
        Path(f"{at}.md").write_text(text)
    return 0

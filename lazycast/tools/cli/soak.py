"""Cast at random for as long as you like, with faults put in, and check every value on every rank.

Jobs of several processes follow each other. What is wrong, hangs or leaks is listed at the end, with the command that
runs that job again; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from lazycast.start.commands import BACKENDS
from lazycast.tools.cli import arguments

HELP = "cast at random, with faults put in, and check everything"

#: What may be planted, to see that the soak finds it.
PLANTS = ("wrong value", "hang", "stuck", "leak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lazycast soak`."""
    parser.add_argument("--minutes", type=arguments.above_zero, default=1.0, metavar="N", help="default: %(default)g")
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="default: %(default)s")
    parser.add_argument("--ranks", type=arguments.whole(2), default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=arguments.whole(0), metavar="S", help="of all plans; default: another each time")
    parser.add_argument("--job", type=arguments.whole(0), metavar="K", help="run this job of the seed, and no other")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the report there, as soak-BACKEND.txt and .json, and what the ranks of failing jobs have written; "
        "default: the latter only, to the folder of temporary files",
    )
    parser.add_argument(
        "--limit-s", type=arguments.above_zero, default=60.0, metavar="S", help="of each call; default: %(default)g s"
    )
    parser.add_argument(
        "--slack-s",
        type=arguments.above_zero,
        default=20.0,
        metavar="S",
        help="what anything may take beyond its time limit on a loaded machine; default: %(default)g s",
    )
    parser.add_argument("--plant", choices=PLANTS, help="plant one in each job, to see that it is found")


def run(args: argparse.Namespace) -> int:
    """Soak, print the report and write it. Returns the exit code."""
    from lazycast.tools.soak import session
    from lazycast.tools.soak.diary import Orders

    if sys.stderr.isatty() and find_spec("rich") is None:
        print("lazycast soak: rich not found; run: pip install 'lazycast[cli]'", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    orders = Orders(seed, args.job or 0, args.backend, args.ranks, args.limit_s, args.slack_s, args.plant)
    folder = args.out or Path(tempfile.gettempdir())
    report = session.run(session.Wish(orders, args.minutes if args.job is None else None, folder))
    text = report.as_text()
    print(text, flush=True)
    if not report.good:
        print(f"what the ranks of the jobs that failed have written is in {folder.resolve()}", file=sys.stderr)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"soak-{args.backend}.txt").write_text(text + "\n")
        (args.out / f"soak-{args.backend}.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if report.good else 1

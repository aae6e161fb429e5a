"""Runs the fault matrix, or a part of it, and writes the page.

python -m tests.faults.matrix --out docs/faults.md   # all of it: half an hour on two cores
python -m tests.faults.matrix --only torch-two-leader --out docs/faults.md   # that part anew, the rest stays
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.matrix import combinations, page, start, verdict
from tests.faults.matrix.combinations import Combination
from tests.faults.matrix.network import CASES, network
from tests.faults.matrix.start import Seen, Zygotes
from tests.faults.matrix.verdict import Sight
from tests.namespaces import why_not

_TRIES = 2  # on a busy machine a rank may get to its step too late; a fault of lazycast comes again


class Runner:
    """Runs combinations one after another and keeps what came of them."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.fine = 0

    def run(
        self, chosen: Sequence[Combination], how: Callable[[Combination], Seen], into: dict[Combination, list[Sight]]
    ) -> None:
        for it in chosen:
            began_s = time.monotonic()
            for attempt in range(_TRIES):
                try:
                    into[it] = verdict.check(it, how(it))
                except AssertionError as exc:
                    text = f"{'failed' if attempt + 1 == _TRIES else 'again'}: {exc}"
                    done = False
                else:
                    text, done = page.cell(into[it]), True
                sys.stdout.write(f"{it.id} ({time.monotonic() - began_s:.1f} s) {text}\n")
                sys.stdout.flush()
                if done:
                    self.fine += 1
                    break
            else:
                self.failed.append(it.id)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--some", action="store_true", help="a representative part instead of all")
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--out", type=Path, help="write the page here")
    args = parser.parse_args(argv)
    runner = Runner()
    chosen = [it for it in (combinations.some() if args.some else combinations.every()) if args.only in it.id]
    record = page.Record() if args.out is None else page.Record.load(args.out.with_suffix(".json"))
    try:
        with Zygotes() as zygotes:
            runner.run(chosen, lambda it: start.run(it, zygotes), record.results)
        wired = [it for it in CASES if args.only in f"network-{it.id}"]
        if wired and why_not() is None:
            with network() as net:
                runner.run(wired, net.run, record.network)
    finally:  # what was measured until an interrupt counts too
        if args.out is not None:
            record.save(args.out.with_suffix(".json"))
            page.write(args.out, record.results, record.network)
    sys.stdout.write(f"{runner.fine} fine, {len(runner.failed)} not: {' '.join(runner.failed)}\n")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())

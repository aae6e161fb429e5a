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

    def run(self, chosen: Sequence[Combination], how: Callable[[Combination], Seen]) -> dict[Combination, list[Sight]]:
        results = {}
        for it in chosen:
            began_s = time.monotonic()
            for attempt in range(_TRIES):
                try:
                    results[it] = verdict.check(it, how(it))
                except AssertionError as exc:
                    text = f"{'failed' if attempt + 1 == _TRIES else 'again'}: {exc}"
                else:
                    text = page.cell(results[it])
                sys.stdout.write(f"{it.id} ({time.monotonic() - began_s:.1f} s) {text}\n")
                sys.stdout.flush()
                if it in results:
                    break
            else:
                self.failed.append(it.id)
        return results


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
    with Zygotes() as zygotes:
        results = runner.run(chosen, lambda it: start.run(it, zygotes))
    over_wire: dict[Combination, list[Sight]] = {}
    wired = [it for it in CASES if args.only in f"network-{it.id}"]
    if wired and why_not() is None:
        with network() as net:
            over_wire = runner.run(wired, net.run)
    if args.out is not None:
        beside = args.out.with_suffix(".json")
        record = page.Record.load(beside)
        record.results |= results
        record.network |= over_wire
        record.save(beside)
        page.write(args.out, record.results, record.network)
    sys.stdout.write(f"{len(results) + len(over_wire)} fine, {len(runner.failed)} not: {' '.join(runner.failed)}\n")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())

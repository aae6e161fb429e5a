"""Plants defects one at a time and says which of them the tests find.

    python -m tests.mutants --list
    python -m tests.mutants --tests tests/unit --out build/mutants    # writes build/mutants.md and build/mutants.json
    python -m tests.mutants --resume --out build/mutants              # what `make test` runs, for those still alive
    python -m tests.mutants --select "" --resume --out build/mutants  # what `make test-all` runs, for the last ones

Each run works in a copy of the checkout in a temporary folder, and stops at the first test that fails. Those that lie
nearest to the defect come first, so most runs take seconds; a survivor takes as long as all tests. First of all they
run without any defect: they must pass, or nothing that follows means anything. What takes longer than `--limit` counts
as caught: a defect that makes the tests hang is one that somebody notices.

`--resume` keeps what has been found, whatever the selection was (a defect that a few tests catch, more catch as well),
and what survived the very same selection. So go from the small selection to the large.

Before and after a change of the tests: a defect that is caught after it by a test that was there before was caught
before, too. Only what new or changed tests catch, and what survives, needs a run of the old tests: make a worktree of
the old commit and name these defects with `--only`, and the worktree with `--source`. A snippet that the old sources
do not have is an error that names the mutant.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.mutants import checkout, engine, transport, values
from tests.mutants.mutant import Mutant, planted
from tests.mutants.runs import NONE, How, Row, begin, run

MUTANTS = engine.MUTANTS + transport.MUTANTS + values.MUTANTS
FOLDERS = ("tests/unit", "tests/conformance", "tests/launch", "tests/faults")


def read(path: Path) -> dict[str, Row]:
    return {row["name"]: Row(**row) for row in json.loads(path.read_text())} if path.exists() else {}


def settled(row: Row | None, how: How) -> bool:
    """Whether what is known of a defect need not be found out again."""
    return row is not None and ((row.state != "survived" and row.name != NONE) or row.selection == how.selection)


def write(rows: dict[str, Row], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps([row._asdict() for row in rows.values()], indent=1) + "\n")
    out.with_suffix(".md").write_text(table(rows))


def table(rows: dict[str, Row]) -> str:
    """Return the table for people, survivors first."""
    known = [(mutant, rows[mutant.name]) for mutant in MUTANTS if mutant.name in rows]
    known.sort(key=lambda pair: pair[1].state != "survived")
    caught = [row for _, row in known if row.state != "survived"]
    lines = [f"{len(caught)} of {len(known)} planted defects are caught:"]
    for selection in dict.fromkeys(row.selection for row in caught):
        of_these = [row for row in caught if row.selection == selection]
        hangs = sum(row.state == "hang" for row in of_these)
        lines.append(f"- {len(of_these)} with `{selection}`" + (f", {hangs} of them by a hang" if hangs else ""))
    lines += ["", "| defect | in | breaks | | first test that fails | s |", "|---|---|---|---|---|---|"]
    for mutant, row in known:
        test = f"`{row.test.replace('|', chr(92) + '|')}`" if row.test else ""
        state = f"**{row.state}**" if row.state == "survived" else row.state
        lines.append(f"| {mutant.name} | `{mutant.file}` | {mutant.breaks} | {state} | {test} | {row.seconds:g} |")
    return "\n".join(lines) + "\n"


def results(
    pool: concurrent.futures.Executor, chosen: Sequence[Mutant], how: How, rows: Mapping[str, Row]
) -> Iterator[Row]:
    """Run what is not settled, without a defect first."""
    if not settled(rows.get(NONE), how):
        yield pool.submit(run, None, how).result()
    left = [mutant for mutant in chosen if not settled(rows.get(mutant.name), how)]
    for done in concurrent.futures.as_completed([pool.submit(run, mutant, how) for mutant in left]):
        yield done.result()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show the defects, and check that each finds its place")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these defects alone")
    parser.add_argument("--tests", nargs="+", default=list(FOLDERS), metavar="PATH", help="folders or files, in order")
    parser.add_argument("--select", default="not exhaustive", metavar="MARKERS", help="as pytest's -m; '' for all")
    parser.add_argument("--near", action="store_true", help="those tests alone that lie near the defect: a first look")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="S", help="of one run; then it hangs")
    parser.add_argument("--jobs", type=int, default=1, help="how many run beside each other, each in its copy")
    parser.add_argument("--resume", action="store_true", help="keep what --out has: see above")
    parser.add_argument("--source", type=Path, default=checkout.ROOT, help="another checkout")
    parser.add_argument("--out", type=Path, default=Path("build/mutants"), help="where to write, without a suffix")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], metavar="ARG", help="more for pytest, last")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given: Any = parser.parse_args(argv)
    unknown = set(given.only) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}")
    source = given.source.resolve()
    chosen = [mutant for mutant in MUTANTS if not given.only or mutant.name in given.only]
    lost = []
    for mutant in chosen:
        try:
            planted(mutant, source)
        except ValueError as exc:
            lost.append(str(exc))
        if given.list:
            print(f"{mutant.name:32} {mutant.file:36} {mutant.breaks}")
    if lost:
        parser.error("\n".join(lost))
    if given.list:
        return 0
    how = How(tuple(given.tests), given.select, given.limit, tuple(given.pytest), given.near)
    rows = read(given.out.with_suffix(".json")) if given.resume else {}
    spawn = multiprocessing.get_context("spawn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder,
        concurrent.futures.ProcessPoolExecutor(given.jobs, spawn, begin, (source, Path(folder))) as pool,
    ):
        try:
            for row in results(pool, chosen, how, rows):
                rows[row.name] = row
                print(f"{row.name}: {row.state} {row.test} ({row.seconds:g} s)", flush=True)
                if row.name == NONE and row.state != "survived":
                    parser.exit(1, "the tests fail without a defect: mend that first\n")
                write(rows, given.out)
        except BaseException:  # nobody waits for what is running; it ends with its worker
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    print(table(rows).partition("\n\n")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())

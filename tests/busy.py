"""Runs a command again and again while other processes keep the machine busy.

    python -m tests.busy --loops 8 --runs 10 make test
    python -m tests.busy --loops 0 --runs 1 --beside 'make test JOBS=1' make test   # two suites beside each other

Ends with 1 if any run has failed, and shows the end of what that one said.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.children import die_with_parent

_SHOWN = 60  # lines of a run that has failed


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep so many processes computing. They end with this one, however it ends."""
    running = []
    try:
        for _ in range(loops):
            loop = [sys.executable, "-S", "-c", "while True: pass"]
            running.append(subprocess.Popen(loop, preexec_fn=die_with_parent))
        yield
        assert all(process.poll() is None for process in running), "a busy loop has ended by itself"
    finally:
        for process in running:
            process.kill()
            process.wait()


def once(command: Sequence[str], title: str) -> bool:
    """Run a command; say how it ended, and return whether it did well."""
    began_s = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    lines = done.stdout.splitlines()
    word, shown = ("passed", lines[-1:]) if done.returncode == 0 else (f"FAILED ({done.returncode})", lines[-_SHOWN:])
    head = f"{title} {shlex.join(command)}: {word} after {time.monotonic() - began_s:.0f} s"
    print("\n    ".join([head, *shown]), flush=True)
    return done.returncode == 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.busy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loops", type=int, default=8, help="processes that compute meanwhile")
    parser.add_argument("--runs", type=int, default=10, help="how often, one after another")
    parser.add_argument("--beside", metavar="COMMAND", help="another command, as one word, at the same time each time")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = parser.parse_args(argv)
    if not given.command:
        parser.error("name a command")
    commands = [given.command, *([shlex.split(given.beside)] if given.beside else [])]
    with busy(given.loops), ThreadPoolExecutor(len(commands)) as beside:
        good = []
        for number in range(1, given.runs + 1):
            titles = [f"{number}/{given.runs}"] * len(commands)
            good.append(all([*beside.map(once, commands, titles)]))
    print(f"{good.count(True)} of {len(good)} runs passed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

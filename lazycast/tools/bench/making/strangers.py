"""Load by processes that have nothing to do with any rank: `python -m lazycast.tools.bench.making.strangers`.

What a materializer costs a scheduler through the machine's cores alone is what such load costs it. Each process makes
its share of the requests, at their moments, as nice as helpers are; it ends when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from lazycast.options import Helpers
from lazycast.tools.bench.making.workloads import WORKLOADS
from lazycast.tools.bench.qps.plan import arrivals


@contextlib.contextmanager
def at_work(workload: str, rate: float, seconds: float, count: int) -> Iterator[tuple[subprocess.Popen[str], ...]]:
    """Start `count` processes that wait to be told when to begin; end them. Blocking: until they are there."""
    command = [sys.executable, "-m", __name__, workload, repr(rate), repr(seconds)]
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            process = subprocess.Popen(
                [*command, str(number), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            found.append(process)
            stack.callback(_end, process)
        for process in found:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process that was to make load ended with {process.wait()}")
        yield tuple(found)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def begin(processes: tuple[subprocess.Popen[str], ...], begin_ns: int, seed: int) -> None:
    """Let them make their requests from a moment on (CLOCK_MONOTONIC)."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{begin_ns} {seed}\n")
        process.stdin.flush()


def main(workload: str, rate: float, seconds: float, number: int, count: int) -> None:
    """Make each `count`th request, beginning with `number`, as often as it is said."""
    os.nice(Helpers(1).niceness)
    work = WORKLOADS[workload]
    pool = work.pool()
    work.materialize(pool[0])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        begin_ns, seed = map(int, line.split())
        for at, moment_s in enumerate(arrivals(rate, max(1, round(rate * seconds)), seed)):
            if at % count == number:
                time.sleep(max(0.0, begin_ns / 1e9 + moment_s - time.monotonic()))
                work.materialize(pool[at % len(pool)])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))

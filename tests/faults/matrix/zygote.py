"""A process that has imported everything and is forked for each rank, which then starts in milliseconds.

It reads lines of JSON, `{"folder": ..., "ranks": [...]}`, forks those ranks and answers with their process ids; at the
next line it waits for them, however they end, and answers with their exit codes. Whoever tells it to must see to it
that they do end. A forked rank ends like a program of its own, `atexit` and all.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.faults.matrix import rank as ranks


def _serve() -> tuple[Path, int] | None:
    """Fork ranks as told. Returns in each of them, with its folder and number, and at the end with nothing."""
    pids: list[int] = []
    for line in sys.stdin:
        order = json.loads(line)
        if "ranks" in order:
            pids = []
            for number in order["ranks"]:
                pid = os.fork()
                if pid == 0:
                    return Path(order["folder"]), number
                pids.append(pid)
            answer = pids
        else:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def main() -> None:
    for name in sys.argv[1:]:
        __import__(name)
    task = _serve()
    if task is not None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        ranks.main(*task)


main()

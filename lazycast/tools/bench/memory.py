"""How much private memory the ranks need while one broadcast runs: looked at from outside.

A child process of rank 0 looks at all ranks, many times a second. A thread inside a rank would see nothing while a
pickler holds the GIL, which is when memory is taken. What it looks at is `RssAnon`: the heap, and a rank's own copies
of shared pages that it has written to. Pages that are only mapped from shared memory are not in it. A peak that is over
before the child gets a core is not seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import subprocess
import sys

#: How long to sleep between two looks (seconds). Taking 1 MiB of fresh pages takes as long.
_INTERVAL_S = 0.0005


class Watch:
    """Looks at processes while it is told to. Not for several threads.

    Args:
        pids: processes of this machine and user.
    """

    def __init__(self, pids: list[int]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, pids)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._before: list[int] = []

    def begin(self) -> None:
        """Begin to look; what the processes hold now is what they held before."""
        self._before = self._ask()

    def end(self) -> list[int]:
        """Look no longer; return for each process the most it has held beyond what it held before, in bytes."""
        return [peak - before for peak, before in zip(self._ask(), self._before, strict=True)]

    def _ask(self) -> list[int]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        said: list[int] = json.loads(self._child.stdout.readline())
        return said

    def close(self) -> None:
        """End the child."""
        self._child.communicate()


def settle() -> None:
    """Give what the heap keeps free back to the kernel, so that what is taken next is seen to be taken."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep little
    if trim is not None:
        trim(0)


def main() -> None:
    """In the child: look from one line on standard input to the next; answer both."""
    with contextlib.suppress(PermissionError):
        os.nice(-20)  # as root: no rank keeps it from a core
    files = [os.open(f"/proc/{pid}/statm", os.O_RDONLY) for pid in map(int, sys.argv[1:])]
    page = os.sysconf("SC_PAGE_SIZE")

    def held() -> list[int]:
        # Pages that are resident without those of files and shared memory: RssAnon, at a fifth of the cost of `status`.
        fields = [os.pread(fd, 256, 0).split() for fd in files]
        return [(int(resident) - int(shared)) * page for _, resident, shared, *_ in fields]

    while sys.stdin.readline():
        peaks = held()
        print(json.dumps(peaks), flush=True)
        while not select.select([sys.stdin], [], [], _INTERVAL_S)[0]:
            peaks = [max(pair) for pair in zip(peaks, held(), strict=True)]
        if sys.stdin.readline():
            print(json.dumps([max(pair) for pair in zip(peaks, held(), strict=True)]), flush=True)


if __name__ == "__main__":
    main()

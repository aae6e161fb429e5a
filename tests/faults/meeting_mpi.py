"""Run by mpirun: ranks meet in contexts of MPI, and some do not come, or one dies while the others wait.

`meeting_mpi.py FOLDER [VICTIM]` writes a file for each rank, whose lines say how each case ended for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mpi4py import MPI

from lazycast.backends import _mpi_tree, _mpi_verdict
from lazycast.backends.mpi import MPIBackend
from lazycast.errors import BackendError, CastTimeoutError
from lazycast.net.backend import Context

FOREVER_S = 300.0  # longer than the test may take
WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size


def body(rank: int, number: int, nbytes: int) -> bytes:
    return bytes([rank, number]) * (nbytes // 2)


def outcome(context: Context, limit_s: float) -> str:
    try:
        context.exchange(b"", timeout_s=limit_s)
    except CastTimeoutError as exc:
        return f"{exc.rank} {sorted(exc.missing)} {exc}"
    except BackendError as exc:
        return f"lost {exc.rank}: {exc}"
    return "went well"


def together() -> None:
    """Wait for all ranks, and leave the processors to others."""
    request = WORLD.Ibarrier()
    while not request.Test():
        time.sleep(5e-3)


def rounds() -> str:
    """Blobs of all sizes, in rounds of one context; the ranks come one after another, in an order that changes."""
    context = MPIBackend().open(timeout_s=FOREVER_S)
    for number, nbytes in enumerate((0, 2, 600, 64 << 10, 64 << 10, 2, 64 << 10)):
        time.sleep((RANK + number) % SIZE * 1e-3)
        size = nbytes if number % 2 or RANK % 2 else nbytes // 4
        found = context.exchange(body(RANK, number, size), timeout_s=FOREVER_S)
        sizes = [nbytes if number % 2 or rank % 2 else nbytes // 4 for rank in range(SIZE)]
        assert found == [body(rank, number, size) for rank, size in enumerate(sizes)], number
    context.close()
    return "went well"


def absences() -> Iterator[tuple[set[int], int | None]]:
    """Who does not come, and whose time is short: that of all who come, or of one alone."""
    for missing in ({0}, {1}, {SIZE - 1}):
        yield missing, None
        yield missing, min({0, 1, 2} - missing)
    yield {1}, SIZE - 1
    yield {1, 2, SIZE - 1}, 0
    yield {0, SIZE // 2}, SIZE - 1
    yield {0, SIZE // 2, SIZE - 1}, 1
    yield set(range(1, SIZE)), None


def absence(missing: set[int], hasty: int | None) -> str:
    """Who did not come does so when the others have failed, and fails as they did; then nobody can go on."""
    context = MPIBackend().open(timeout_s=FOREVER_S)
    context.exchange(b"", timeout_s=FOREVER_S)
    if RANK in missing:
        together()
        said = outcome(context, FOREVER_S)
    else:
        said = outcome(context, 0.1 if hasty in (RANK, None) else FOREVER_S)
        together()
    assert "failed before" in outcome(context, 0.1)
    together()
    context.close()
    return said


def death(victim: int) -> str:
    context = MPIBackend().open(timeout_s=FOREVER_S)
    context.exchange(b"", timeout_s=FOREVER_S)
    if victim == RANK:
        time.sleep(0.3)  # most wait by now
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome(context, FOREVER_S)


def main(folder: Path, victim: int | None) -> None:
    _mpi_tree.FANOUT = 2  # so that few ranks are a deep tree
    _mpi_verdict.SILENT_S, _mpi_verdict.LONGEST_S = 4.0, 12.0  # on a busy machine a rank may not be run for a second
    if victim is None:
        lines = [rounds(), *(f"{sorted(missing)}: {absence(missing, hasty)}" for missing, hasty in absences())]
    else:
        lines = [death(victim)]
    part = folder.parent / f"part {RANK}"
    part.write_text("\n".join(lines))
    part.rename(folder / f"{RANK}")
    if victim is not None:
        while len(list(folder.iterdir())) < SIZE - 1:  # who leaves looks lost to others
            time.sleep(0.01)
        os._exit(0)  # MPI's own end may wait for the dead


main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)

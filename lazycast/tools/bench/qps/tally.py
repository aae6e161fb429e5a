"""How far every rank is: a shared page with a number for each, so that a closed loop is closed over all ranks.

Guarantees: a rank writes its own number only, with one aligned store; no rank waits for another here, and nothing goes
through the group under test. A number may be seen a moment late, never early.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

_FILE = "tally"


class Tally:
    """The numbers of finished requests of all ranks.

    Args:
        folder: shared by the ranks of this run alone; None for a rank that is alone.
    """

    def __init__(self, folder: Path | None, rank: int = 0, size: int = 1) -> None:
        self._rank = rank
        self._counts = np.zeros(size, np.int64)
        if folder is not None:
            path = folder / _FILE
            with path.open("ab") as file:  # whoever comes first makes it; all make it equally long
                file.truncate(self._counts.nbytes)
            self._counts = np.memmap(path, np.int64, "r+", shape=(size,))

    def put(self, finished: int) -> None:
        """Say how many requests this rank has finished."""
        self._counts[self._rank] = finished

    def least(self) -> int:
        """Return how many requests all ranks have finished."""
        return int(self._counts.min())

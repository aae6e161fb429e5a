"""What a run measures, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB}

SHORT_SIZES = (KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
SIZES = (*SHORT_SIZES, 256 * MIB)

#: The smallest payload whose memory is looked at. `malloc_trim` does not give back the top of a thread's heap (glibc
#: 2.36: `mtrim`), so some MiB can be taken again unseen: half a payload of 16 MiB, nothing of 64 that showed.
MEMORY_NBYTES = 64 * MIB

#: Until the last rank has done this with the value, from the moment the root makes its call.
COLUMNS = ("holds", "read", "overwritten")
#: What the ranks do with a value while their memory is looked at: holding it needs no more than reading it.
MEMORY_COLUMNS = COLUMNS[1:]

#: Rounds of a cell: as many as move so many bytes, between these bounds.
MIN_ROUNDS, MAX_ROUNDS = 7, 200

#: What `--quick` measures: within two minutes on two quiet cores, and what a newcomer asks first.
QUICK_SIZES = (KIB, MIB, 64 * MIB)
QUICK_KINDS = ("array",)
QUICK_CELL_S = 8.0
QUICK_WAYS = (
    *("lazycast", "one memcpy"),
    *("broadcast_object_list", "dist.broadcast (ready buffer)"),
    *("mpi4py bcast", "mpi4py pkl5 bcast", "MPI Bcast (ready buffer)"),
)

#: Beside the cells: to start ranks and import what they need; to watch memory, for each cell that is large enough (s).
_START_S, _MEMORY_S, _ASIDE_S = 10.0, 10.0, 1.2
_ROUNDS_NBYTES = 256 * MIB


@dataclass(frozen=True)
class Plan:
    """One run. A cell is one kind of payload at one size; each round of a cell takes every way once per column.

    Attributes:
        kinds, sizes: names in `payloads.SOURCES`; bytes.
        ways: only these; all that are available if empty.
        cell_s: start no further round of a cell after so many seconds, once there are `min_rounds`.
        min_rounds, max_rounds: bounds of the rounds of a cell.
        idle_s: how long to watch idle ranks; 0 leaves it out.
        async_calls: how often to time `broadcast_async`; 0 leaves it out.
        memory: whether to look at how much memory each way needs, in repetitions that are not timed.
    """

    backend: str
    ranks: int
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    ways: tuple[str, ...] = ()
    cell_s: float = 20.0
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = MAX_ROUNDS
    idle_s: float = 3.0
    async_calls: int = 50
    memory: bool = True

    def rounds(self, nbytes: int) -> int:
        """How many rounds a cell has if time allows: many for small payloads, few for large ones."""
        return max(self.min_rounds, min(self.max_rounds, _ROUNDS_NBYTES // nbytes))

    @property
    def about_s(self) -> float:
        """How long the run will take, as far as that is known before (seconds)."""
        large = sum(nbytes >= MEMORY_NBYTES for nbytes in self.sizes) if self.memory else 0
        cells = len(self.kinds) * (len(self.sizes) * self.cell_s * _ASIDE_S + large * _MEMORY_S)
        return _START_S + self.idle_s + cells

    def without_figures(self) -> Plan:
        """Return the plan without what it measures beside the broadcasts."""
        return replace(self, idle_s=0.0, async_calls=0, memory=False)


def parse_size(text: str) -> int:
    """Return the bytes of "1KiB", "64 MiB" or "4096".

    Raises: ValueError for anything else, and for 0.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    nbytes = int(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if not nbytes:
        raise ValueError(f"a size is a whole number of B, KiB, MiB or GiB, got {text!r}")
    return nbytes


def duration_text(seconds: float) -> str:
    """Return "about 40 seconds" or "about 3 minutes": what a run will take is known no better."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    return f"about {minutes} minutes" if minutes < 120 else f"about {seconds / 3600:.0f} hours"


def size_text(nbytes: int) -> str:
    """Return "64 MiB" and the like, exactly."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if nbytes % factor == 0:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"

"""The ways that are compared: a class for each. To add one: its name, its backend, and `run`, and its place in `WAYS`.

    base          what a way is
    ours          lazycast, and one memcpy
    plain         pickle and sockets, in plain Python
    over_torch    torch.distributed, accelerate
    vllm          vLLM's queue in shared memory
    over_mpi      mpi4py
    stores        those that start processes of their own, from the root, in place of ranks
    ray, dask     two of them

Rank 0 is the root. Importing this package imports none of those libraries.
"""

from __future__ import annotations

from lazycast.tools.bench.ways.base import Done, Way
from lazycast.tools.bench.ways.dask import DaskScatter
from lazycast.tools.bench.ways.ours import Lazycast, LazycastCopy, LazycastNoAgree, Memcpy
from lazycast.tools.bench.ways.over_mpi import MpiBcast, MpiPkl5, MpiRaw
from lazycast.tools.bench.ways.over_torch import AccelerateObjectList, TorchObjectList, TorchRaw
from lazycast.tools.bench.ways.plain import PlainPython
from lazycast.tools.bench.ways.ray import RayStore
from lazycast.tools.bench.ways.vllm import VllmArena, VllmQueue

WAYS: tuple[type[Way], ...] = (
    Lazycast,
    LazycastNoAgree,
    LazycastCopy,
    TorchObjectList,
    AccelerateObjectList,
    TorchRaw,
    VllmQueue,
    VllmArena,
    MpiBcast,
    MpiPkl5,
    MpiRaw,
    RayStore,
    DaskScatter,
    PlainPython,
    Memcpy,
)


def available(backend: str, only: tuple[str, ...] = ()) -> list[type[Way]]:
    """Return the ways that can run on ranks of this backend, of those named in `only` if it names any."""
    return [way for way in _asked(backend, only) if way.missing() is None]


def absent(backend: str, only: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the others that are for this backend, by name, and what each of them lacks."""
    lacks = {way.name: way.missing() for way in _asked(backend, only)}
    return {name: reason for name, reason in lacks.items() if reason is not None}


def _asked(backend: str, only: tuple[str, ...]) -> list[type[Way]]:
    return [way for way in WAYS if (not only or way.name in only) and way.belongs(backend)]


__all__ = [
    "AccelerateObjectList",
    "DaskScatter",
    "Done",
    "Lazycast",
    "LazycastCopy",
    "LazycastNoAgree",
    "Memcpy",
    "MpiBcast",
    "MpiPkl5",
    "MpiRaw",
    "PlainPython",
    "RayStore",
    "TorchObjectList",
    "TorchRaw",
    "VllmArena",
    "VllmQueue",
    "WAYS",
    "Way",
    "absent",
    "available",
]

"""Broadcasts of mpi4py."""

from __future__ import annotations

from typing import Any

from lazycast.tools.bench.touch import buffer_of
from lazycast.tools.bench.ways.base import Ready, Way


class MpiBcast(Way):
    """mpi4py's object broadcast."""

    name = "mpi4py bcast"
    backend = "mpi"

    def __init__(self, rank: int) -> None:
        from mpi4py import MPI

        super().__init__(rank)
        self._comm = MPI.COMM_WORLD.Dup()

    def run(self, payload: Any) -> Any:
        return self._comm.bcast(payload, root=0)

    def close(self) -> None:
        self._comm.Free()


class MpiPkl5(MpiBcast):
    """mpi4py's object broadcast with arrays out of band."""

    name = "mpi4py pkl5 bcast"

    def __init__(self, rank: int) -> None:
        from mpi4py.util import pkl5

        super().__init__(rank)
        self._pkl5 = pkl5.Intracomm(self._comm)

    def run(self, payload: Any) -> Any:
        return self._pkl5.bcast(payload, root=0)


class MpiRaw(Ready, MpiBcast):
    """MPI's broadcast of a buffer: no object, and receivers that know its size."""

    name = "MPI Bcast (ready buffer)"

    def run(self, payload: Any) -> Any:
        value = payload if self.rank == 0 else self._value
        self._comm.Bcast(buffer_of(value), root=0)
        return value

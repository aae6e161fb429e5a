"""Everything that one rank finds out by looking at itself: what is sent to rank 0 before anything is tried."""

from __future__ import annotations

import msgspec

from lazycast.materialize import cores
from lazycast.materialize.cores import Cores
from lazycast.tools.doctor import libraries, limits, machine, network
from lazycast.tools.doctor.libraries import MPI, Versions
from lazycast.tools.doctor.limits import Limits
from lazycast.tools.doctor.machine import Machine
from lazycast.tools.doctor.network import Interface


class Facts(msgspec.Struct, frozen=True):
    """Of one rank."""

    rank: int
    machine: Machine
    limits: Limits
    interface: Interface
    cores: Cores
    versions: Versions
    mpi: MPI | None


def look(rank: int, size: int, *, backend: str) -> Facts:
    """Look at this process, which is one of `size` ranks of a backend. Starts nothing; MPI is asked if it is used."""
    here = machine.look(rank)
    return Facts(
        rank=rank,
        machine=here,
        limits=limits.look(rank, size, here.host),
        interface=network.look(rank, here.boot),
        cores=cores.of_this_process(),
        versions=libraries.look(rank),
        mpi=libraries.look_at_mpi(rank) if backend == "mpi" else None,
    )

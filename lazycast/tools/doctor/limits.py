"""The limits that this process was started with, and what they mean for a job of some ranks."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lazycast.net.host import headroom
from lazycast.net.host.headroom import RESERVE_NBYTES
from lazycast.options import DEFAULT_ARENA_NBYTES
from lazycast.tools.doctor.finding import Finding, Verdict, by_rank, ranks_text, size_text

#: Descriptors that one object takes: for each other rank a socket, and while it is constructed one more; and some of
#: its own. Counted on each backend with 2 to 8 ranks, and rounded up.
_FILES_PER_RANK, _FILES_BESIDE = 2, 8
#: Fewer objects than this are soon used up by a program that opens files of its own.
_FEW_OBJECTS = 8
#: What a cast of some size needs at least, beside what is left alone.
_LEAST_NBYTES = 64 << 20


class Limits(msgspec.Struct, frozen=True):
    """Of one process; None where nothing limits it. Bytes, or numbers of descriptors."""

    rank: int
    size: int
    host: str
    files_soft: int
    files_hard: int | None
    files_open: int
    address_space: int | None
    address_space_used: int
    file_nbytes: int | None
    headroom: int | None
    available: int | None
    overcommit: int | None


def look(rank: int, size: int, host: str) -> Limits:
    """Look at this process."""
    soft, hard = (_limit(number) for number in resource.getrlimit(resource.RLIMIT_NOFILE))
    pages = Path("/proc/self/statm").read_text().split()[0]
    meminfo = _first_word("/proc/meminfo", "MemAvailable:")
    overcommit = _text("/proc/sys/vm/overcommit_memory")
    return Limits(
        rank=rank,
        size=size,
        host=host,
        files_soft=soft if soft is not None else 1 << 30,
        files_hard=hard,
        files_open=len(os.listdir("/proc/self/fd")),
        address_space=_limit(resource.getrlimit(resource.RLIMIT_AS)[0]),
        address_space_used=int(pages) * resource.getpagesize(),
        file_nbytes=_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        headroom=headroom.headroom(),
        available=int(meminfo) * 1024 if meminfo is not None else None,
        overcommit=int(overcommit) if overcommit is not None and overcommit.isdigit() else None,
    )


def _limit(number: int) -> int | None:
    return None if number == resource.RLIM_INFINITY else number


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _first_word(path: str, name: str) -> str | None:
    lines = (_text(path) or "").splitlines()
    return next((line.split()[1] for line in lines if line.startswith(name)), None)


def open_files(ranks: Sequence[Limits]) -> Finding:
    """Whether there are descriptors for some objects."""
    objects = [_objects(limits) for limits in ranks]
    least, at = min(zip(objects, ranks, strict=True), key=lambda pair: pair[0])
    found = by_rank(ranks, lambda r: r.rank, lambda r: f"{r.files_soft:,}")
    if least >= _FEW_OBJECTS:
        return Finding("limits", "open files", "ok", f"{found}: room for many objects of {_ranks(at.size)}")
    room = f"room for {least or 'no'} object{'s' if least != 1 else ''} of {_ranks(at.size)}"
    hard = "" if at.files_hard is None else f" (hard limit here: {at.files_hard:,}; beyond it as root"
    remedy = f"ulimit -n 65536 before the job starts{hard}, docker run --ulimit nofile=65536, LimitNOFILE= in systemd)"
    verdict: Verdict = "problem" if least < 1 else "note"
    return Finding(
        "limits",
        "open files",
        verdict,
        f"{found}, {at.files_open} open on rank {at.rank}: {room}",
        remedy if hard else "ulimit -n 65536 before the job starts",
    )


def _ranks(size: int) -> str:
    return f"{size} rank{'s' if size != 1 else ''}"


def _objects(limits: Limits) -> int:
    each = _FILES_PER_RANK * limits.size + _FILES_BESIDE
    return max(0, (limits.files_soft - limits.files_open) // each)


def memory(ranks: Sequence[Limits]) -> Finding:
    """Whether there is memory for arenas. They take it as they need it, so little is a note before it is a problem."""
    # Ranks of a host look a moment apart, so one speaks for all.
    lowest = [min((r for r in ranks if r.host == host), key=_left) for host in dict.fromkeys(r.host for r in ranks)]
    found = "; ".join(f"{r.host}: {_left_text(r)}" for r in lowest) if len(lowest) > 1 else _left_text(lowest[0])
    short = [r.rank for r in ranks if _left(r) < RESERVE_NBYTES + _LEAST_NBYTES]
    tight = [r.rank for r in ranks if _left(r) < RESERVE_NBYTES + DEFAULT_ARENA_NBYTES]
    if short:
        remedy = "raise the memory limit of the container or cgroup, or free memory: casts fail beyond it"
        return Finding("limits", "memory", "problem", f"{found}: too little for a cast of 64 MiB", remedy)
    if tight:
        arena = size_text(DEFAULT_ARENA_NBYTES)
        remedy = f"raise the memory limit, or give arena_nbytes= and max_inflight_nbytes= less than their {arena}"
        return Finding("limits", "memory", "note", f"{found}: less than one full arena on {ranks_text(tight)}", remedy)
    if any(r.overcommit == 2 for r in ranks):
        remedy = "sysctl vm.overcommit_memory=0, or smaller arena_nbytes=: each rank maps the arenas of its host"
        return Finding(
            "limits", "memory", "note", f"{found}; the kernel does not overcommit, so mappings count in full", remedy
        )
    return Finding("limits", "memory", "ok", f"{found}; an arena grows to {size_text(DEFAULT_ARENA_NBYTES)} at most")


def _left(limits: Limits) -> int:
    lefts = [left for left in (limits.headroom, limits.available) if left is not None]
    return min(lefts, default=1 << 60)


def _left_text(limits: Limits) -> str:
    free = "unknown" if limits.available is None else size_text(limits.available)
    if limits.headroom is None:
        return f"{free} available, no cgroup limit"
    return f"{free} available, {size_text(max(0, limits.headroom))} left in the cgroup"


def address_space(ranks: Sequence[Limits]) -> Finding:
    """Whether the arenas of a host can be mapped, and made: their address space is taken at once, their memory not."""
    for limits in ranks:
        local = sum(other.host == limits.host for other in ranks)
        need, left = local * DEFAULT_ARENA_NBYTES, _space_left(limits)
        if left is not None and left < need:
            arenas = f"{local} arena{'s' if local != 1 else ''}"
            return Finding(
                "limits",
                "address space",
                "problem",
                f"{size_text(left)} left on rank {limits.rank} by RLIMIT_AS, {size_text(need)} needed for {arenas}",
                f"ulimit -v unlimited, or arena_nbytes={_power_below(left // (2 * local))} for each object",
            )
        if limits.file_nbytes is not None and limits.file_nbytes < DEFAULT_ARENA_NBYTES:
            return Finding(
                "limits",
                "address space",
                "problem",
                f"RLIMIT_FSIZE allows rank {limits.rank} {size_text(limits.file_nbytes)}; it counts for shared memory",
                "ulimit -f unlimited before the job starts",
            )
    unlimited = all(limits.address_space is None for limits in ranks)
    return Finding("limits", "address space", "ok", "unlimited" if unlimited else "enough for the arenas of a host")


def _space_left(limits: Limits) -> int | None:
    return None if limits.address_space is None else max(0, limits.address_space - limits.address_space_used)


def _power_below(number: int) -> int:
    return 1 << max(20, number.bit_length() - 1)

"""What kind of place this process is in: kernel, namespaces, container; and whether memory can be handed over there."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lazycast.net.host import memory
from lazycast.tools.doctor.finding import Finding, by_rank, size_text

_NAMESPACES = ("net", "user", "pid", "mnt", "ipc")


class Machine(msgspec.Struct, frozen=True):
    """Where one rank runs.

    Attributes:
        boot: tells machines apart, whatever their containers call themselves.
        namespaces: by kind, the kernel's own names for them.
        refusal: why no memory can be handed over here, if so.
    """

    rank: int
    host: str
    pid: int
    uid: int
    boot: str
    namespaces: dict[str, str]
    kernel: str
    container: str | None
    shm_nbytes: int | None
    refusal: str | None


def look(rank: int) -> Machine:
    """Look at where this process is."""
    host = socket.gethostname()
    return Machine(
        rank=rank,
        host=host,
        pid=os.getpid(),
        uid=os.getuid(),
        boot=_read("/proc/sys/kernel/random/boot_id") or host,
        namespaces={kind: name for kind in _NAMESPACES if (name := _link(f"/proc/self/ns/{kind}"))},
        kernel=platform.release(),
        container=container(),
        shm_nbytes=_size_of("/dev/shm"),
        refusal=refusal(),
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _size_of(path: str) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_frsize * found.f_blocks


def container() -> str | None:
    """Return what kind of container this looks like, or None."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "Kubernetes"
    if Path("/.dockerenv").exists():
        return "Docker"
    if Path("/run/.containerenv").exists():
        return "Podman"
    if "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ:
        return "Apptainer"
    # systemd's convention, in lower case, followed by lxc, nspawn and others
    named = os.environ.get("container") or _read("/run/systemd/container")  # noqa: SIM112
    return named or None


def refusal() -> str | None:
    """Do what sharing memory takes: make sealed memory, map it, listen on an abstract address. Return why it fails."""
    step = "memfd_create"
    try:
        fd = memory.create(memory.PAGE)
        try:
            step = "sealing against writers (F_SEAL_FUTURE_WRITE)"
            region = memory.Region(fd, memory.PAGE)
            memory.seal_against_writers(fd)
            step = "a private mapping"
            region = memory.Region(fd, memory.PAGE, private=True)
            del region
        finally:
            os.close(fd)
        step = "an abstract Unix socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(f"\0lazycast-doctor-{os.getpid()}-{os.urandom(8).hex()}")
    except (OSError, AttributeError, MemoryError) as exc:
        return f"{step}: {exc}"
    return None


def shared_memory(ranks: Sequence[Machine]) -> Finding:
    """Whether the kernel and the sandbox let processes hand each other memory."""
    refused = [rank for rank in ranks if rank.refusal is not None]
    if not refused:
        kernel = by_rank(ranks, lambda r: r.rank, lambda r: f"Linux {r.kernel.partition('-')[0]}")
        return Finding("host", "shared memory", "ok", f"memfd, seals and abstract sockets work ({kernel})")
    found = by_rank(refused, lambda r: r.rank, lambda r: f"not to be had: {r.refusal}")
    remedy = (
        "lazycast needs Linux 5.1 or newer, and a sandbox (seccomp profile) that allows memfd_create, its seals and "
        "Unix sockets; until then everything goes over the network"
    )
    return Finding("host", "shared memory", "problem", found, remedy)


def place(ranks: Sequence[Machine]) -> Finding:
    """What kind of container this is; and what need not be looked at there."""
    kind = by_rank(ranks, lambda r: r.rank, lambda r: r.container or "none seen")
    sizes = sorted({rank.shm_nbytes for rank in ranks if rank.shm_nbytes is not None})
    shm = f" ({', '.join(map(size_text, sizes))})" if sizes else ""
    found = f"{kind}; the sizes of /dev/shm{shm} and of locked memory do not matter: lazycast uses neither"
    return Finding("host", "container", "ok", found)

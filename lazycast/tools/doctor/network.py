"""Which network interface gloo, torch's transport between hosts, is going to use: found as gloo finds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lazycast.tools.doctor.finding import Finding, by_rank, ranks_text

VARIABLE = "GLOO_SOCKET_IFNAME"

_SIOCGIFADDR, _SIOCGIFFLAGS = 0x8915, 0x8913
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8


class Interface(msgspec.Struct, frozen=True):
    """What gloo will bind to on one rank.

    Attributes:
        asked: what the environment variable names, if it is set.
        name, address: what that, or the host's name, comes to.
        problem: why it comes to nothing; gloo then fails, or takes the loopback interface.
        others: interfaces that other machines could reach, with their addresses.
    """

    rank: int
    boot: str
    host: str
    asked: str | None
    name: str | None
    address: str | None
    problem: str | None
    others: list[str]

    @property
    def loopback(self) -> bool:
        return self.name == "lo" or (self.address or "").startswith("127.") or self.address == "::1"


def look(rank: int, boot: str) -> Interface:
    """Find the interface of this process."""
    host, asked = socket.gethostname(), os.environ.get(VARIABLE) or None
    here = _interfaces()
    others = [f"{name} ({address})" for name, (address, flags) in here.items() if _serves(flags)]
    if asked is not None:
        name = asked.split(",")[0]
        problem = None if name in {n for _, n in socket.if_nameindex()} else f"there is no interface {name!r}"
        address = here[name][0] if name in here else _six(name)
        if problem is None and address is None:
            problem = f"the interface {name!r} has no address"
        return Interface(rank, boot, host, asked, name if problem is None else None, address, problem, others)
    address = _resolve(host)
    problem = None if address else f"the host name {host!r} does not resolve to an address of this machine"
    return Interface(rank, boot, host, None, _name_of(address, here), address, problem, others)


def _serves(flags: int) -> bool:
    return bool(flags & _IFF_UP) and not flags & _IFF_LOOPBACK


def _interfaces() -> dict[str, tuple[str, int]]:
    """Return address (IPv4) and flags of each interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                address = socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24])
                (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
                found[name] = (address, flags)
    return found


def _six(name: str) -> str | None:
    """Return an IPv6 address of an interface."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, owner = line.split()
            if owner == name:
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    return None


def _resolve(host: str) -> str | None:
    """Return the first address of a host name that can be bound here: gloo's own choice."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as sock, contextlib.suppress(OSError):
                sock.bind(address)
                return str(address[0])
    return None


def _name_of(address: str | None, here: dict[str, tuple[str, int]]) -> str | None:
    if address is None:
        return None
    if address.startswith("127."):
        return "lo"
    by_six = {_six(name): name for _, name in socket.if_nameindex()}
    return next((name for name, (own, _) in here.items() if own == address), by_six.get(address))


def gloo(ranks: Sequence[Interface]) -> Finding:
    """Whether ranks on several machines can reach each other by the interface that gloo takes."""
    several = len({rank.boot for rank in ranks}) > 1
    found = by_rank(ranks, lambda r: r.rank, _text)
    missing = [rank for rank in ranks if rank.problem is not None and rank.asked is not None]
    if missing:
        remedy = f"set {VARIABLE} to one of: {_choices(missing)}"
        return Finding("network", "gloo interface", "problem", found, remedy)
    bad = [rank for rank in ranks if rank.problem is not None or rank.loopback]
    if several and bad:
        remedy = (
            f"on {ranks_text([r.rank for r in bad])}, set {VARIABLE} to the interface that the other machines reach: "
            f"{_choices(bad)}; or let the host name resolve to its address"
        )
        return Finding("network", "gloo interface", "problem", f"{found}; ranks are on several machines", remedy)
    if any(rank.problem for rank in ranks):
        remedy = f"set {VARIABLE}, or give the host name an address (/etc/hosts), before there are several machines"
        return Finding("network", "gloo interface", "note", found, remedy)
    alone = "; enough on one machine" if not several and bad else ""
    return Finding("network", "gloo interface", "ok", found + alone)


def _text(rank: Interface) -> str:
    if rank.problem is not None:
        return f"{VARIABLE}={rank.asked}: {rank.problem}" if rank.asked else rank.problem
    how = f"{VARIABLE}" if rank.asked else f"the host name {rank.host!r} resolves to it"
    return f"{rank.name or 'an interface'} ({rank.address}; {how})"


def _choices(ranks: Sequence[Interface]) -> str:
    names = dict.fromkeys(name for rank in ranks for name in rank.others)
    return ", ".join(names) or "none: this machine has no other interface that is up"

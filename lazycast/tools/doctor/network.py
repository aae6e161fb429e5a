"""Which network interface torch's ranks are going to use between hosts, found as gloo finds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import msgspec

from lazycast import interfaces
from lazycast.interfaces import VARIABLE
from lazycast.tools.doctor.finding import Finding, by_rank, ranks_text

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
        return self.name == "lo" or interfaces.loopback(self.address or "")


def look(rank: int, boot: str) -> Interface:
    """Find the interface of this process."""
    host, asked = socket.gethostname(), os.environ.get(VARIABLE) or None
    here = interfaces.interfaces()
    others = [f"{name} ({address})" for name, (address, flags) in here.items() if _serves(flags)]
    if asked is not None:
        name = asked.split(",")[0]
        address = interfaces.four(name) or next(iter(interfaces.six(name)), None)
        known = address is not None or name in {n for _, n in socket.if_nameindex()}
        problem = None if known else f"there is no interface {name!r}"
        if problem is None and address is None:
            problem = f"the interface {name!r} has no address"
        return Interface(rank, boot, host, asked, name if problem is None else None, address, problem, others)
    address = next(iter(interfaces.bindable(host)), None)  # gloo's own choice
    problem = None if address else f"the host name {host!r} does not resolve to an address of this machine"
    return Interface(rank, boot, host, None, _name_of(address, here), address, problem, others)


def _serves(flags: int) -> bool:
    return bool(flags & _IFF_UP) and not flags & _IFF_LOOPBACK


def _name_of(address: str | None, here: dict[str, tuple[str, int]]) -> str | None:
    if address is None:
        return None
    if address.startswith("127."):
        return "lo"
    by_six = {six: name for _, name in socket.if_nameindex() for six in interfaces.six(name)}
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

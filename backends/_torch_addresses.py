"""At which addresses other hosts may reach a rank: first what the user names, else what gloo takes, and the way to the
store's host. What is tried is decided by whoever calls."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

from lazycast.interfaces import VARIABLE, bindable, four, loopback, named, six, towards


def candidates(store_host: str | None) -> list[str]:
    """Return the addresses of this rank at which it listens, the likeliest first; none if there is none.

    Args:
        store_host: where the group's store is, if that is known.
    Blocking: as long as the resolver takes.
    """
    names = named()
    if names:
        found = [address for name in names for address in (four(name), *six(name)) if address is not None]
    else:
        found = bindable(socket.gethostname())
        way = towards(store_host) if store_host else None
        found += [way] if way is not None else []
    return [address for address in dict.fromkeys(found) if not address.startswith("fe80")]  # which need a scope


def why_none() -> str:
    """Return why `candidates` has found none."""
    if named():
        return f"{VARIABLE}={os.environ[VARIABLE]} names no interface that is here and has an address"
    return f"its host name {socket.gethostname()!r} does not resolve to an address of its own"


def machine() -> str:
    """Return what tells apart those whose loopback addresses are not the same; empty if that cannot be known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def worth_calling(addresses: Iterable[tuple[str, int]], there: str, here: str) -> list[tuple[str, int]]:
    """Leave out the loopback addresses of another machine: at those somebody else would answer, on this one."""
    apart = bool(there and here) and there != here
    return [(host, port) for host, port in addresses if not (apart and loopback(host))]


def text(addresses: Iterable[tuple[str, int]]) -> str:
    """Return addresses as people write them."""
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)

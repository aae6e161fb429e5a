"""The addresses of this process's network interfaces, and those that its host's name comes to.

Asked of the kernel anew each time, without other libraries. Nothing is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

#: The environment variable that names the interfaces between hosts: it is gloo's, and torch's users know it.
VARIABLE = "GLOO_SOCKET_IFNAME"

_MAX_NAME_NBYTES = 15
_SIOCGIFADDR, _SIOCGIFFLAGS = 0x8915, 0x8913


def named() -> list[str]:
    """Return the names of interfaces that the environment gives."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def interfaces() -> dict[str, tuple[str, int]]:
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


def four(name: str) -> str | None:
    """Return the IPv4 address of an interface, or of a label of one ("eth0:1"); None if there is none."""
    if len(name.encode()) > _MAX_NAME_NBYTES:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        return socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24])
    return None


def six(name: str) -> list[str]:
    """Return the IPv6 addresses of an interface."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, owner = line.split()
            if owner == name:
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found


def bindable(host: str) -> list[str]:
    """Return the addresses of a host name that can be bound here, as the resolver orders them.

    Blocking: as long as the resolver takes.
    """
    found: dict[str, None] = {}
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as sock, contextlib.suppress(OSError):
                sock.bind(address)
                found[str(address[0])] = None
    return list(found)


def towards(host: str) -> str | None:
    """Return the address of this machine from which a host is reached; None if there is no way to it.

    Nothing is sent. Blocking: as long as the resolver takes.
    """
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as sock, contextlib.suppress(OSError):
                sock.connect(address)
                return str(sock.getsockname()[0])
    return None


def loopback(address: str) -> bool:
    """Return whether an address reaches its own machine only."""
    return address.startswith("127.") or address == "::1"

"""Hosts on one machine: network namespaces, two on one wire or some at a switch. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest


class End(NamedTuple):
    """One host's end of its wire."""

    namespace: str
    interface: str
    address: str

    @property
    def within(self) -> list[str]:
        """What to put before a command so that it runs on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def set_link(self, state: str) -> None:
        """Cut the wire ("down"), or restore it ("up")."""
        ip("-n", self.namespace, "link", "set", self.interface, state)


def ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr}"


def why_not() -> str | None:
    """Why there can be no namespaces here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip (iproute2)"
    return None


def need() -> None:
    """Skip a test where there can be no namespaces."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[End]]:
    """Two network namespaces connected by one wire."""
    pid = os.getpid()
    ends = [End(f"lazycast-{pid}-{end}", f"lz{pid}{end}", f"10.77.{pid % 250}.{n}") for n, end in ((1, "a"), (2, "b"))]
    made = []
    try:
        for end in ends:
            ip("netns", "add", end.namespace)
            made.append(end.namespace)
        first, second = ends
        peer = ["peer", "name", second.interface, "netns", second.namespace]
        ip("link", "add", first.interface, "netns", first.namespace, "type", "veth", *peer)
        for end in ends:
            ip("-n", end.namespace, "addr", "add", f"{end.address}/24", "dev", end.interface)
            end.set_link("up")
            ip("-n", end.namespace, "link", "set", "lo", "up")
        yield ends
    finally:
        for namespace in made:
            ip("netns", "delete", namespace)  # and with the last one the wire goes


@contextlib.contextmanager
def hosts_at_a_switch(count: int) -> Iterator[list[End]]:
    """So many network namespaces, each with a wire to a bridge in a namespace of its own."""
    pid = os.getpid()
    switch = f"lazycast-{pid}-s"
    ends = [End(f"lazycast-{pid}-{n}", f"lz{pid}h{n}", f"10.78.{pid % 250}.{n + 1}") for n in range(count)]
    with contextlib.ExitStack() as made:
        for namespace in (switch, *(end.namespace for end in ends)):
            ip("netns", "add", namespace)
            made.callback(ip, "netns", "delete", namespace)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for n, end in enumerate(ends):
            port = f"port{n}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", end.interface, "netns", end.namespace)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", end.namespace, "addr", "add", f"{end.address}/24", "dev", end.interface)
            end.set_link("up")
            ip("-n", end.namespace, "link", "set", "lo", "up")
        yield ends


@contextlib.contextmanager
def narrow_host() -> Iterator[list[str]]:
    """One namespace whose sockets hold little, so that a body is under way for long: what to put before a command."""
    namespace = f"lazycast-{os.getpid()}-n"
    ip("netns", "add", namespace)
    try:
        ip("-n", namespace, "link", "set", "lo", "mtu", "1500", "up")  # a packet is less than they hold
        within = ["ip", "netns", "exec", namespace]
        for way in ("rmem", "wmem"):
            subprocess.run([*within, "sysctl", "-qw", f"net.ipv4.tcp_{way}=4096 65536 262144"], check=True, timeout=20)
        yield within
    finally:
        ip("netns", "delete", namespace)

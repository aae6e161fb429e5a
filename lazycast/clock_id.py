"""Which ranks read the same clock, so that moments on one mean something on the other."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = "/proc/self/ns/time"


def ident() -> str:
    """Name the CLOCK_MONOTONIC of this process: it is the same for all processes on a kernel and in a time namespace.

    Where that cannot be found out, the name is this process's own.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        return f"{socket.gethostname()}:{os.getpid()}"
    try:
        return f"{boot}:{os.stat(_TIME_NAMESPACE).st_ino}"
    except OSError:  # kernels before 5.6 have no such namespaces
        return boot

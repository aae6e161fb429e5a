"""What the kernel says of the process behind a local socket, in a word for people."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_WORDS = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "dead, and not yet waited for",
    "X": "dead",
    "D": "waiting for a disk, or for memory",
    "R": "running, and busy with something else",
}


def pid_behind(sock: socket.socket) -> int | None:
    """Return the process at the other end of a Unix socket; None if it is this one, or in another pid namespace."""
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid if pid > 0 and pid != os.getpid() else None


def word(pid: int | None) -> str | None:
    """Say what a process does, if that explains why it does not answer. None if nothing is known, or it just sleeps."""
    if pid is None:
        return None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        # The name of the program, in parentheses, may hold anything.
        state = stat.read().rpartition(b")")[2].split()
        return _WORDS.get(state[0].decode()) if state else None
    return None

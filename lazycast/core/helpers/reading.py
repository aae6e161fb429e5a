"""Takes what lies in another process's memory: one copy, by the kernel, from there to where it is wanted.

Guarantees: a process may read only those that it has started, and the kernel sees to it (`process_vm_readv`). Where
that is forbidden (by seccomp, say, or `kernel.yama.ptrace_scope` of 2 and more) `read` says so, and its caller does
without. The interpreter's lock is not held.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST = 1024  # pieces in one call: IOV_MAX


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_readv = getattr(_libc, "process_vm_readv", None)  # not in every C library
if _readv is not None:
    _readv.restype = ctypes.c_ssize_t
    _readv.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]


class Unreadable(Exception):
    """This process may not read another's memory."""


def address_of(buffer: memoryview | bytes | bytearray) -> int:
    """Return where the bytes of a buffer lie, which must have some. They stay there as long as the buffer does."""
    where: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return where


def read(pid: int, pieces: Sequence[tuple[int, int, int]], into: memoryview) -> None:
    """Copy pieces of a process's memory (offset in `into`, address there, bytes).

    Raises: Unreadable where the kernel forbids it. ProcessLookupError if the process has ended. ValueError for pieces
        that do not fit, or that are not there.
    """
    if _readv is None:
        raise Unreadable("the C library has no process_vm_readv")
    base, left_nbytes = address_of(into), 0
    for offset, _, nbytes in pieces:
        if offset < 0 or nbytes <= 0 or offset + nbytes > into.nbytes:
            raise ValueError(f"pieces do not fit into {into.nbytes} bytes")
        left_nbytes += nbytes
    here = [(base + offset, nbytes) for offset, _, nbytes in pieces]
    there = [(address, nbytes) for _, address, nbytes in pieces]
    while left_nbytes:
        count = _some(pid, here[:_MOST], there[:_MOST])
        left_nbytes -= count
        if left_nbytes:
            here, there = _after(here, count), _after(there, count)


def _some(pid: int, here: list[tuple[int, int]], there: list[tuple[int, int]]) -> int:
    """Read as much as the kernel does in one call: 2 GiB at most."""
    assert _readv is not None
    kind: Any = _Iovec * len(here)
    mine, others = kind(*here), kind(*there)
    count: int = _readv(pid, mine, len(mine), others, len(others), 0)
    if count > 0:
        return count
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        raise ProcessLookupError(number, os.strerror(number))
    if number in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        raise Unreadable(os.strerror(number))
    raise ValueError(f"process {pid} has no such memory: {os.strerror(number)}")


def _after(places: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return what is left of places after so many bytes."""
    for index, (address, nbytes) in enumerate(places):
        if count < nbytes:
            return [(address + count, nbytes - count), *places[index + 1 :]]
        count -= nbytes
    return []

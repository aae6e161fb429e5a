"""Anonymous shared memory from the kernel: nothing here has a name, so nothing can be left behind or opened by others.

Guarantees:

* A region is unmapped when its `Region` and all that it has handed out are gone.
* A region keeps no descriptor: `mmap.mmap` duplicates one per mapping, and 1,018 held values would be the end.
* `hold` returns memory whose finalizer runs when the last array, tensor or memoryview made from it is gone. It is a
  ctypes array: NumPy collapses chains of its own bases, so an ndarray (or a subclass) is forgotten while views live.
* Finalizers do nothing in another process, and nothing for what was held when this process forked: the child has the
  memory too, so it stays as it is until the region goes. Nor do they do anything while the interpreter exits.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import mmap
import os
import stat
from collections.abc import Callable
from typing import Any

PAGE = mmap.PAGESIZE

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 1, 2, 4, 16
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_epoch = (
    0  # ends with each fork, so that a finalizer can tell that its memory has been shared with a child; and at exit
)


def _end_epoch() -> None:
    global _epoch
    _epoch += 1


os.register_at_fork(before=_end_epoch)
atexit.register(_end_epoch)


def create(nbytes: int) -> int:
    """Return a descriptor of fresh zeroed memory of a fixed size. Close-on-exec."""
    fd = os.memfd_create("lazycast", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        seal(fd, _F_SEAL_SHRINK | _F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int, seals: int) -> None:
    """Forbid what `seals` say, for good."""
    import fcntl

    fcntl.fcntl(fd, _F_ADD_SEALS, seals)


def seal_against_writers(fd: int) -> None:
    """Let nobody map this memory for shared writing any more; mappings that exist stay as they are."""
    seal(fd, _F_SEAL_FUTURE_WRITE | _F_SEAL_SEAL)


@functools.cache
def _own_device() -> int:
    """Return the number of the file system that anonymous memory of pages of the usual size lies on."""
    fd = os.memfd_create("lazycast", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def check_foreign(fd: int, nbytes: int) -> None:
    """Raise ValueError unless a descriptor that somebody has sent is memory of at least `nbytes` that cannot shrink.

    To read behind the end of what it maps kills a process, and so does reading huge pages of which there are none left.
    Huge pages, secret memory, files and devices lie on other file systems than the memory that `create` makes.
    """
    import fcntl

    known = os.fstat(fd)
    if known.st_dev != _own_device() or not stat.S_ISREG(known.st_mode):
        raise ValueError("a descriptor arrived that is no anonymous memory of ordinary pages")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise ValueError("a descriptor arrived of memory that cannot be written to")
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as exc:
        raise ValueError("a descriptor arrived that is no anonymous memory") from exc
    if not seals & _F_SEAL_SHRINK:
        raise ValueError("a descriptor arrived of memory that can be cut off")
    has_nbytes = known.st_size
    if not 0 < nbytes <= has_nbytes:
        raise ValueError(f"a descriptor arrived of {has_nbytes} bytes of memory, said to be {nbytes}")


class Region:
    """A mapping of a descriptor, of `nbytes` bytes from `start` on. The descriptor may be closed at once."""

    def __init__(self, fd: int, nbytes: int, *, private: bool = False, writable: bool = True, start: int = 0) -> None:
        self.nbytes = nbytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = (mmap.MAP_PRIVATE | _MAP_NORESERVE) if private else mmap.MAP_SHARED
        address = _libc.mmap(None, nbytes, protection, flags, fd, start)
        if address is None or address == _MAP_FAILED:
            error = ctypes.get_errno()
            raise MemoryError(f"cannot map {nbytes} bytes: {os.strerror(error)}")
        self.address: int = address

    def hold(self, offset: int, nbytes: int, released: Callable[[], None]) -> memoryview:
        """Return the bytes from `offset` on; `released()` runs, in any thread, when nothing refers to them any more.

        `released` must take no locks: garbage collection may run it anywhere.
        """
        # Whole pages, since each length needs a class, and a memoryview can be cut.
        array = _held(pages(nbytes)).from_address(self.address + offset)
        array.lease = self, released, os.getpid(), _epoch  # the region too: so it stays mapped
        return memoryview(array).cast("B")[:nbytes]

    @functools.cached_property
    def whole(self) -> memoryview:
        """All of its bytes, for use while the region is at hand: this view holds nothing."""
        return memoryview((ctypes.c_ubyte * self.nbytes).from_address(self.address)).cast("B")

    def forget(self, offset: int, nbytes: int) -> None:
        """Drop this process's own copies of the pages, so that what the writer puts there next is seen."""
        _libc.madvise(self.address + offset, nbytes, mmap.MADV_DONTNEED)

    def __del__(self) -> None:
        # What is held keeps the region, so nothing refers to its bytes any more.
        if getattr(self, "address", 0):
            _libc.munmap(self.address, self.nbytes)


def pages(nbytes: int) -> int:
    """Return `nbytes` rounded up to whole pages, at least one."""
    return max(1, -(-nbytes // PAGE)) * PAGE


@functools.lru_cache(maxsize=1024)
def _held(nbytes: int) -> Any:
    """Return a class of arrays that end their lease when they go. `weakref.finalize` would take 6 µs more for each."""

    class Held(ctypes.Array[ctypes.c_ubyte]):
        _type_ = ctypes.c_ubyte
        _length_ = nbytes
        lease: tuple[Region, Callable[[], None], int, int]

        def __del__(self) -> None:
            _, released, pid, epoch = self.lease
            if epoch == _epoch and os.getpid() == pid:
                released()

    return Held

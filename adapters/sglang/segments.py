"""Shared memory for features, written again when it is free: a new segment costs more than what is put there.

A tokenizer makes a segment for each tensor, gives its name away, and hears no more of it: schedulers take the name away
and drop the memory, pages and all. Here the memory stays, and each use gives it another name, a link. SGLang's own code
writes and reads it; schedulers need no part of this.

Guarantees:

* Memory is written again only when no name that was given away is left, and the kernel says that no process has it open
  or mapped (a lease for writing). So who dies, or forgets a name, makes memory wait, and nobody sees another's bytes.
* What is kept is bounded. Beyond it, and where there are no such leases, a segment is SGLang's own.
* What a killed process leaves is taken away by its resource tracker, or when the next one starts.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import logging
import mmap
import os
import secrets
import signal
import sys
import threading
import weakref
from multiprocessing import resource_tracker
from multiprocessing import shared_memory as stdlib
from pathlib import Path
from typing import Any

logger = logging.getLogger("lazycast")

#: How many MiB the tokenizer keeps for features; 0: none, every segment is a new one.
SEGMENTS = "LAZYCAST_SGLANG_SEGMENTS_MIB"
_DEFAULT_MIB = 512
_LEAST_NBYTES = 1 << 18  # of memory that is kept: less is as fast from the system
_FOLDER = Path("/dev/shm")  # where names of POSIX shared memory are, on Linux
_PREFIX = "lazycast_features_"
_KINDS = "sglang.srt.managers.mm_utils"


def wanted_nbytes() -> int:
    """Return how much the environment lets a tokenizer keep. Raises: ValueError for what is no number."""
    given = os.environ.get(SEGMENTS) or str(_DEFAULT_MIB)
    if not given.isdecimal():
        raise ValueError(f"{SEGMENTS} must be a number of MiB, got {given!r}")
    return int(given) << 20


class Segments:
    """The memory that is kept. May be called from any thread, and waits for no other process.

    Args:
        limit_nbytes: how much, in use or not.

    Attributes:
        made, used_again: how often memory was new, and how often it was not.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._lock = threading.Lock()
        self._kept: list[_Memory] = []  # what was used last is the last
        self._pid = os.getpid()
        self.made = self.used_again = 0

    def keeps(self, nbytes: int) -> bool:
        """Whether memory of that size is kept. A forked process keeps none: it shares its parent's."""
        return _LEAST_NBYTES <= nbytes <= self._limit_nbytes and os.getpid() == self._pid

    def take(self, nbytes: int, name: str) -> Taken:
        """Return memory of a size that is kept, under a new name.

        Raises: OSError if there is not that much, or the name is taken.
        """
        with self._lock:
            memory = self._free(nbytes)
            if memory is not None:
                self._kept.remove(memory)
                self.used_again += 1
            else:
                self._drop_beyond(self._limit_nbytes - nbytes)
                memory = _Memory()
                self.made += 1
            try:
                memory.resize(nbytes)
                taken = Taken(memory, name)
            except BaseException:
                memory.give_up()
                self._drop_beyond(0)  # there may be too little because of what is kept
                raise
            self._kept.append(memory)
            self._drop_beyond(self._limit_nbytes)
            return taken

    def close(self) -> None:
        """Keep nothing. Who has something open keeps it."""
        if os.getpid() == self._pid:
            with self._lock:
                self._drop_beyond(0)

    def _free(self, nbytes: int) -> _Memory | None:
        """Return the free memory that fits best, and was used longest ago among equals; none that is far too large."""
        near = [memory for memory in self._kept if nbytes <= 2 * memory.nbytes and memory.nbytes <= 2 * nbytes]
        near.sort(key=lambda memory: abs(memory.nbytes - nbytes))
        return next((memory for memory in near if memory.is_free()), None)

    def _drop_beyond(self, nbytes: int) -> None:
        while self._kept and sum(memory.nbytes for memory in self._kept) > nbytes:
            self._kept.pop(0).give_up()


class _Memory:
    """A file in memory, with a name of its own by which it gets others."""

    def __init__(self) -> None:
        self._name = f"{_PREFIX}{os.getpid()}_{secrets.token_hex(8)}"
        self.nbytes = 0
        self.path = _FOLDER / self._name
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self.fd).atexit = False
        resource_tracker.register(f"/{self._name}", "shared_memory")
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # as long as it is held, somebody uses the name
        # Who opens the file while a lease is held has its holder get a signal; the default one would end this process.
        fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
        self.map: mmap.mmap | None = None
        self.is_written = False  # by a `Taken`

    def resize(self, nbytes: int) -> None:
        """Give it a size, and pages for all of it. Those that it has stay, where they fit.

        Raises: OSError if there is not that much.
        """
        if nbytes > self.nbytes:
            os.posix_fallocate(self.fd, 0, nbytes)
        if self.map is None:
            self.map = mmap.mmap(self.fd, nbytes)
        elif nbytes != self.nbytes:
            self.map.resize(nbytes)
        self.nbytes = nbytes

    def is_free(self) -> bool:
        """Whether it has its own name alone, and nobody has it open or mapped but this object."""
        if self.is_written or os.fstat(self.fd).st_nlink != 1:
            return False
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def give_up(self) -> None:
        """Take its own name away. The pages are freed when nobody has it open any more, in this process or others."""
        self.path.unlink(missing_ok=True)
        resource_tracker.unregister(f"/{self._name}", "shared_memory")


class Taken:
    """One use of memory: what SGLang needs of a `SharedMemory` that it has created."""

    def __init__(self, memory: _Memory, name: str) -> None:
        assert memory.map is not None
        os.link(memory.path, _FOLDER / name)
        resource_tracker.register(f"/{name}", "shared_memory")
        self.name, self.size = name, memory.nbytes
        self.buf = memoryview(memory.map)
        self._fd = memory.fd
        self._memory = memory
        memory.is_written = True

    def close(self) -> None:
        """Write no more. The name stays."""
        self.buf.release()
        self._memory.is_written = False

    def unlink(self) -> None:
        """Take the name away. Raises: FileNotFoundError if it has gone."""
        os.unlink(_FOLDER / self.name)
        resource_tracker.unregister(f"/{self.name}", "shared_memory")


class SharedMemoryModule:
    """Stands for `multiprocessing.shared_memory` where SGLang puts features: what is created there is kept."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

    def SharedMemory(self, name: str | None = None, create: bool = False, size: int = 0) -> Any:
        """Create a segment, or open one, as the class of this name does."""
        if create and name and self.segments.keeps(size):
            return self.segments.take(size, name)
        return stdlib.SharedMemory(name, create, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(stdlib, name)


def keep_segments() -> Segments | None:
    """Let this process, a tokenizer, write the features that it sends into memory that is kept.

    Returns: the memory; None if this system or release cannot, or the environment says so.
    """
    limit_nbytes = wanted_nbytes()
    kinds: Any = importlib.import_module(_KINDS)
    if not limit_nbytes or not sys.platform.startswith("linux"):
        return None
    if getattr(kinds, "shared_memory", None) is not stdlib:
        logger.warning("lazycast: this SGLang puts features elsewhere; each segment is a new one")
        return None
    try:
        sweep()
        room = os.statvfs(_FOLDER)
        segments = Segments(min(limit_nbytes, room.f_blocks * room.f_frsize // 4))
        _try()
    except OSError as exc:
        logger.warning("lazycast: shared memory for features is not kept: %s", exc)
        return None
    atexit.register(segments.close)
    kinds.shared_memory = SharedMemoryModule(segments)
    return segments


def sweep() -> None:
    """Take away what processes have left that were killed: nobody holds its lock."""
    for path in _FOLDER.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it has gone, or is another user's, or somebody's
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _try() -> None:
    """Raise OSError where the kernel does not say who has a file open."""
    memory = _Memory()
    try:
        memory.resize(mmap.PAGESIZE)
        with memory.path.open("rb"):
            seen = not memory.is_free()
        if not seen or not memory.is_free():
            raise OSError("leases do not say whether a file is open")
    finally:
        memory.give_up()

"""Memory that has names, as segments of shared memory have, and that can have another one when nobody sees it.

Guarantees:

* It is free only when no name that was given away is left, and the kernel says that no process has it open or mapped (a
  lease for writing). So who dies, or forgets a name, makes it wait.
* A name of its own is there only while somebody holds the file's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import signal
import weakref
from multiprocessing import resource_tracker
from pathlib import Path

FOLDER = Path("/dev/shm")  # where names of POSIX shared memory are, on Linux
PREFIX = "lazycast_features_"


class Memory:
    """A file in memory, with a name of its own by which it gets others.

    Raises: OSError if there is not that much.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path, self.nbytes = path, nbytes
        self.fd = os.open(FOLDER, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        self._close = weakref.finalize(self, os.close, self.fd)
        self._close.atexit = False
        self._taken: weakref.ref[Taken] | None = None  # who writes it
        os.posix_fallocate(self.fd, 0, nbytes)
        self.map = mmap.mmap(self.fd, nbytes)
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # as long as it is held, somebody needs the name
        # Who opens the file while a lease is held has its holder get a signal; the default one would end this process.
        fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
        os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)  # what the link leads to

    def give(self, name: str, nbytes: int, taken: Taken) -> None:
        """Give it another name, and a size. Its pages stay, where they fit. Raises: OSError; then there is no name."""
        os.link(self.path, FOLDER / name)
        try:
            if nbytes > self.nbytes:
                os.posix_fallocate(self.fd, 0, nbytes)
            if nbytes != self.nbytes:
                self.map.resize(nbytes)
        except BaseException:
            os.unlink(FOLDER / name)
            raise
        self.nbytes = nbytes
        self._taken = weakref.ref(taken)

    def written(self) -> None:
        """Nobody writes it any more."""
        self._taken = None

    def is_free(self) -> bool:
        """Whether it has its own name alone, and nobody has it open or mapped but this object."""
        if self._taken is not None and self._taken() is not None:
            return False
        try:
            if os.fstat(self.fd).st_nlink != 1:
                return False
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:  # somebody has, or the kernel will not say
            return False
        return True

    def give_up(self) -> None:
        """Take its own name away. The pages are freed when nobody has it open any more, in this process or others."""
        self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Have nothing of it open in this process, which shares it with its parent."""
        with contextlib.suppress(BufferError):  # a thread of the parent was writing
            self.map.close()
        self._close()


class Taken:
    """One use of memory: what SGLang needs of a `SharedMemory` that it has created."""

    def __init__(self, memory: Memory, name: str, nbytes: int) -> None:
        memory.give(name, nbytes, self)
        resource_tracker.register(f"/{name}", "shared_memory")  # as Python does with each that it creates
        self.name, self.size = name, nbytes
        self.buf = memoryview(memory.map)
        self._fd = memory.fd
        self._memory = memory

    def close(self) -> None:
        """Write no more. The name stays."""
        self.buf.release()
        self._memory.written()

    def unlink(self) -> None:
        """Take the name away. Raises: FileNotFoundError if it has gone."""
        os.unlink(FOLDER / self.name)
        resource_tracker.unregister(f"/{self.name}", "shared_memory")


def sweep() -> None:
    """Take away what was left by processes that were killed, and what watched them, too: nobody holds its lock."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it has gone, or is another user's, or somebody's
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def probe() -> None:
    """Find out whether this system can.

    Raises: OSError where files in memory get no names, or the kernel does not say who has one open.
    """
    token = secrets.token_hex(8)
    memory = Memory(FOLDER / f"lazycast_try_{token}", mmap.PAGESIZE)
    try:
        taken = Taken(memory, f"lazycast_tried_{token}", mmap.PAGESIZE)
        taken.close()
        seen = [memory.is_free()]
        with memory.path.open("rb"):
            taken.unlink()
            seen.append(memory.is_free())
        if seen != [False, False] or not memory.is_free():
            raise OSError("leases do not say whether a file is open")
    finally:
        memory.give_up()

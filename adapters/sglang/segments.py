"""Shared memory for features, written again when it is free: a new segment costs more than what is put there.

A tokenizer makes a segment for each tensor, gives its name away, and hears no more of it: schedulers take the name away
and drop the memory, pages and all. Here the memory stays, and each use gives it another name, a link. SGLang's own code
writes and reads it; schedulers need no part of this.

Guarantees:

* Memory is written again only when nobody can see it any more, as `memory` says; nobody sees another's bytes.
* What is kept is bounded, in bytes and descriptors, and half of the file system is left to others. Beyond that, and
  where there are no such leases, a segment is SGLang's own.
* Nothing is left when the process ends, however it ends: a shell that is no child of it takes the names away. Where
  that was killed, too, the next start does.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import resource
import secrets
import subprocess
import sys
import threading
import weakref
from multiprocessing import shared_memory as stdlib
from typing import Any

from .memory import FOLDER, PREFIX, Memory, Taken, probe, sweep

logger = logging.getLogger("lazycast")

#: How many MiB the tokenizer keeps for features; 0: none, every segment is a new one.
SEGMENTS = "LAZYCAST_SGLANG_SEGMENTS_MIB"
_DEFAULT_MIB = 512
_LEAST_NBYTES = 1 << 18  # of memory that is kept: less is as fast from the system
_LOOKED_AT = 16  # pieces of memory, before a new one is made
_KINDS = "sglang.srt.managers.mm_utils"
#: Waits, in the background, until nobody has the other end of standard input, and takes names away.
_TAKE_AWAY = 'exec 3<&0; { read -r _ <&3; rm -f -- "$1"*; } &'


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
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = 256 if descriptors == resource.RLIM_INFINITY else min(256, descriptors // 16)  # two for a piece
        self._lock = threading.Lock()
        self._kept: list[Memory] = []  # what was used last is the last
        self._prefix = f"{PREFIX}{os.getpid()}_{secrets.token_hex(8)}_"
        self._is_closed = False
        self._watched: int | None = None  # a descriptor: as long as somebody has it, names stay
        self.made = self.used_again = 0
        here = weakref.ref(self)

        def leave() -> None:
            if (there := here()) is not None:
                there._leave()

        os.register_at_fork(after_in_child=leave)

    def keeps(self, nbytes: int) -> bool:
        """Whether memory of that size is kept."""
        return not self._is_closed and _LEAST_NBYTES <= nbytes <= self._limit_nbytes

    def take(self, nbytes: int, name: str) -> Taken | None:
        """Return memory of a size that is kept, under a new name; None if no more is to be kept.

        Raises: OSError if there is not that much, or the name is taken.
        """
        with self._lock:
            memory = self._free(nbytes)
            if memory is None:
                self._drop_beyond(self._limit_nbytes - nbytes, self._limit - 1)
                if not _leaves_half(nbytes):
                    self._drop_beyond(0)  # others need it
                    return None
                memory = Memory(FOLDER / f"{self._prefix}{self.made}", nbytes)
                self.made += 1
            else:
                self._kept.remove(memory)
                self.used_again += 1
            try:
                taken = Taken(memory, name, nbytes)
            except BaseException:
                memory.give_up()
                raise
            self._kept.append(memory)
            self._drop_beyond(self._limit_nbytes)
            return taken

    def watch(self) -> None:
        """Let the names be taken away when this process ends, however it ends. Raises: OSError if there is no shell.

        It is no child, and of another session: what kills a process and all that it has started leaves it alone.
        """
        ours, self._watched = os.pipe()
        command = ["/bin/sh", "-c", _TAKE_AWAY, "sh", str(FOLDER / self._prefix)]
        quiet = subprocess.DEVNULL
        try:
            subprocess.run(command, stdin=ours, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            self._end_watch()
            raise OSError(f"there is no shell: {exc}") from exc
        finally:
            os.close(ours)

    def close(self) -> None:
        """Keep nothing any more. Who has something open keeps it."""
        with self._lock:
            self._is_closed = True
            self._drop_beyond(0)
            self._end_watch()

    def _free(self, nbytes: int) -> Memory | None:
        """Return free memory that fits, if there is some among what fits best and was used longest ago."""
        near = [memory for memory in self._kept if nbytes <= 2 * memory.nbytes and memory.nbytes <= 2 * nbytes]
        near.sort(key=lambda memory: abs(memory.nbytes - nbytes))
        return next((memory for memory in near[:_LOOKED_AT] if memory.is_free()), None)

    def _drop_beyond(self, nbytes: int, count: int = 1 << 30) -> None:
        while self._kept and (sum(memory.nbytes for memory in self._kept) > nbytes or len(self._kept) > count):
            self._kept.pop(0).give_up()

    def _leave(self) -> None:
        """In a forked child: this is its parent's, and the child would keep it from being freed."""
        self._is_closed = True
        for memory in self._kept:
            memory.leave()
        self._kept.clear()
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watched is not None:
            os.close(self._watched)
            self._watched = None


def _leaves_half(nbytes: int) -> bool:
    """Whether half of the file system stays free if so much more is kept. One without a limit says nothing."""
    room = os.statvfs(FOLDER)
    return room.f_blocks == 0 or room.f_bavail * room.f_frsize - nbytes >= room.f_blocks * room.f_frsize // 2


class SharedMemoryModule:
    """Stands for `multiprocessing.shared_memory` where SGLang puts features: what is created there is kept."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

    def SharedMemory(self, name: str | None = None, create: bool = False, size: int = 0) -> Any:
        """Create a segment, or open one, as the class of this name does."""
        if create and name and self.segments.keeps(size):
            with contextlib.suppress(OSError):  # Python's own says what is wrong, if it is wrong there, too
                taken = self.segments.take(size, name)
                if taken is not None:
                    return taken
        return stdlib.SharedMemory(name, create, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(stdlib, name)


def keep_segments() -> Segments | None:
    """Let this process, a tokenizer, write the features that it sends into memory that is kept.

    Returns: the memory; None if this system or release cannot, or the environment says so.
    """
    kinds: Any = importlib.import_module(_KINDS)
    found = getattr(kinds, "shared_memory", None)
    if isinstance(found, SharedMemoryModule):
        return found.segments
    limit_nbytes = wanted_nbytes()
    if not sys.platform.startswith("linux"):
        return None
    sweep()
    if not limit_nbytes:
        return None
    if found is not stdlib:
        logger.warning("lazycast: this SGLang puts features elsewhere; each segment is a new one")
        return None
    try:
        probe()
        room = os.statvfs(FOLDER)
        segments = Segments(min(limit_nbytes, room.f_blocks * room.f_frsize // 4 or limit_nbytes))
        segments.watch()
    except OSError as exc:
        logger.warning("lazycast: shared memory for features is not kept: %s", exc)
        return None
    kinds.shared_memory = SharedMemoryModule(segments)
    return segments

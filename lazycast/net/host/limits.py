"""What a process lacks, in words that say which limit to raise."""

from __future__ import annotations

import errno
import resource


def _limit(which: int) -> str:
    soft, _ = resource.getrlimit(which)
    return "no limit" if soft == resource.RLIM_INFINITY else str(soft)


def lacked(exc: MemoryError | OSError) -> str:
    """Say what was lacking when `exc` was raised, and the limits that may be why."""
    number = exc.errno if isinstance(exc, OSError) else None
    if number == errno.EMFILE:
        files = _limit(resource.RLIMIT_NOFILE)
        return f"too many open files in this process (RLIMIT_NOFILE: {files}); raise `ulimit -n`, or close files"
    text = str(exc) or "no memory"
    if "RLIMIT" in text:
        return text
    space, data = _limit(resource.RLIMIT_AS), _limit(resource.RLIMIT_DATA)
    return (
        f"{text} (RLIMIT_AS, `ulimit -v`: {space} bytes; RLIMIT_DATA, `ulimit -d`: {data} bytes); raise the limit, "
        "lower arena_nbytes, or drop values"
    )

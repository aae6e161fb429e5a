"""How much memory this process may still take before its cgroup kills it. Both versions of cgroup."""

from __future__ import annotations

from pathlib import Path

#: Left alone: what the rest of the process, and others in the group, may need meanwhile.
RESERVE_NBYTES = 64 << 20

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _groups(membership: str, root: Path) -> list[tuple[Path, str, str]]:
    """Return the memory groups of a process, from its own up: (folder, file of the limit, file of the use)."""
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, use = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, use = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        found += [(f, limit, use) for f in (folder, *folder.parents) if f == base or base in f.parents]
    return found


def headroom(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes left in the tightest memory cgroup of this process, or None if nothing limits it."""
    try:
        groups = _groups(membership.read_text(), root)
    except (OSError, ValueError):
        return None
    left = None
    for folder, limit_file, use_file in groups:
        limit, use = _number(folder / limit_file), _number(folder / use_file)
        if limit is None or use is None or limit >= _UNLIMITED:
            continue
        # Page cache that can be dropped counts as used there; so this errs on the safe side.
        left = limit - use if left is None else min(left, limit - use)
    return left


def check(nbytes: int) -> None:
    """Raise MemoryError if taking `nbytes` more would come near the limit: beyond it is a kill, not an error."""
    left = headroom()
    if left is not None and nbytes + RESERVE_NBYTES > left:
        raise MemoryError(
            f"{nbytes} bytes of shared memory would come within {RESERVE_NBYTES} bytes of this cgroup's memory limit "
            f"({left} bytes are left); raise the limit, or lower arena_nbytes or max_inflight_nbytes"
        )

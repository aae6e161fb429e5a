"""Ranks of a torch.distributed group, connected by gloo.

Guarantees:

* Contexts are made from the group's store alone: `new_group` needs all ranks of the default group, and its local form
  derives its name from the ranks, so that a third one on the same ranks hangs (torch 2.13).
* Each context has a generation counted in the store, so no two ever share keys, and its own `ProcessGroupGloo` outside
  torch's registry. The user's group is never used for communication; it may be an NCCL group.
* Receives name their source: one from anybody never notices a death, a named one fails at once and idles without CPU.
* Ranks connect as soon as all have come to the store, which knows of nobody's death. From then on one that dies, or
  gives up, fails the construction of the others at once, and all of them name that one. Where gloo has no interface on
  some rank they stay with the store: ranks of one host need no more.
* All ranks are group-local: `root=0` is the group's first rank, whatever its global rank is.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError
from lazycast.net.backend import Backend, Context, Link, Sink
from lazycast.net.threaded_link import Pipe, PipeClosed, ThreadedLink

try:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, Store
except ImportError as exc:
    raise BackendUnavailableError(
        "the torch backend needs torch: pip install 'lazycast[torch]' (or torch as your platform wants it)"
    ) from exc

if not dist.is_available():
    raise BackendUnavailableError("this build of torch has no torch.distributed; install one that does")

_PREFIX = struct.Struct("<IQ")  # header bytes, body bytes
# Every message begins with one gloo message of at most this size, which a small body shares with its header. gloo
# takes a message into a larger buffer, so the receiver need not know how long it is.
_HEAD_NBYTES = 64 << 10
_HEAD_TAG, _BODY_TAG, _ROUND_TAG = 1, 2, 3
_FOR_EVER = timedelta(days=3650)


def _until(deadline_s: float) -> timedelta:
    return timedelta(seconds=max(0.001, deadline_s - time.monotonic()))


def _why_no_gloo() -> str | None:
    """Return why gloo has no interface to use in this process."""
    try:
        names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
        for name in names:
            dist.ProcessGroupGloo.create_device(interface=name)
        if not names:
            dist.ProcessGroupGloo.create_default_device()
    except RuntimeError as exc:
        return str(exc).splitlines()[0]
    return None


def _tensor(buffer: memoryview) -> torch.Tensor:
    if buffer.readonly:  # torch has no read-only tensors, and warns
        buffer = memoryview(bytearray(buffer))
    return torch.frombuffer(buffer, dtype=torch.uint8)


class _GlooPipe(Pipe):
    """One neighbour in a ProcessGroupGloo."""

    def __init__(self, group: dist.ProcessGroupGloo, peer: int) -> None:
        self._group: Any = group  # torch's stubs leave out send and recv; None once this pipe is closed
        self._peer = peer
        self._head = torch.empty(_HEAD_NBYTES, dtype=torch.uint8)
        self._head_view = self._head.numpy().data
        self._inline: memoryview | None = None

    def send(self, header: bytes, body: memoryview | None) -> None:
        nbytes = body.nbytes if body is not None else 0
        head = bytearray(_PREFIX.pack(len(header), nbytes) + header)
        inline = body is not None and len(head) + nbytes <= _HEAD_NBYTES
        if body is not None and inline:
            head += body
        self._wait("send", _tensor(memoryview(head)), _HEAD_TAG)
        if body is not None and not inline:
            self._wait("send", _tensor(body), _BODY_TAG)

    def recv_header(self) -> tuple[bytes, int]:
        self._wait("recv", self._head, _HEAD_TAG)
        header_nbytes, nbytes = _PREFIX.unpack_from(self._head_view)
        end = _PREFIX.size + header_nbytes
        inline = end + nbytes <= _HEAD_NBYTES
        self._inline = self._head_view[end : end + nbytes] if inline else None
        return bytes(self._head_view[_PREFIX.size : end]), nbytes

    def recv_body(self, into: memoryview) -> None:
        if self._inline is not None:
            into[:] = self._inline
        else:
            self._wait("recv", _tensor(into), _BODY_TAG)

    def _wait(self, operation: str, tensor: torch.Tensor, tag: int) -> None:
        group = self._group
        if group is None:
            raise PipeClosed("closed here")
        try:
            getattr(group, operation)([tensor], self._peer, tag).wait(
                _FOR_EVER
            )  # else gloo's: the time that connecting was given
        except RuntimeError as exc:
            raise PipeClosed(str(exc).splitlines()[0]) from exc

    def interrupt(self) -> None:
        """Nothing wakes a blocked gloo receive (torch 2.13); a farewell does, or the peer's death."""

    def close(self) -> None:
        """Let go of the group: with the last pipe gloo's connections, threads and descriptors go."""
        self._group = None

    def close_after_fork(self) -> None:
        """gloo owns the descriptors; they are close-on-exec, but a plain fork keeps copies until the child ends."""


class _TorchContext(Context):
    """Keys of one generation in the group's store, and connections between all of its ranks."""

    def __init__(self, rank: int, size: int, store: Store, generation: int) -> None:
        self._rank, self._size = rank, size
        self._store = PrefixStore(f"lazycast/{generation}", store)
        self._rounds = 0
        self._group: Any = None  # a ProcessGroupGloo, from the end of the first exchange on
        self._no_gloo: str | None = None  # why there is none

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        self._rounds += 1
        deadline_s = time.monotonic() + timeout_s
        if self._rounds == 1:
            blobs = self._swap("1", blob, deadline_s, timeout_s)
            self._meet(deadline_s, timeout_s)
            return blobs
        return self._swap(str(self._rounds), blob, deadline_s, timeout_s)

    def _swap(self, name: str, blob: bytes, deadline_s: float, timeout_s: float) -> list[bytes]:
        """Put a blob into the store, and get everybody's."""
        keys = [f"{name}/{rank}" for rank in range(self._size)]
        try:
            self._store.set(keys[self._rank], blob)  # type: ignore[arg-type]  # it takes bytes, its stub does not
        except RuntimeError as exc:
            raise BackendError(f"the group's store failed during the handshake: {exc}") from exc
        if self._group is not None:
            self._pass_round(keys, deadline_s, timeout_s)
        blobs = []
        for key in keys:
            try:
                self._store.wait([key], _until(deadline_s))
                blobs.append(self._store.get(key))
            except RuntimeError as exc:
                missing = self._missing(keys)
                if not missing or time.monotonic() < deadline_s:
                    raise BackendError(f"the group's store failed during the handshake: {exc}") from exc
                raise self._too_late(missing, timeout_s) from exc
        return blobs

    def _missing(self, keys: Sequence[str]) -> list[int]:
        try:
            return [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        except RuntimeError:  # the store has gone
            return []

    def _too_late(self, missing: Sequence[int], timeout_s: float) -> CastTimeoutError:
        return CastTimeoutError(
            f"lazycast handshake over the torch store: rank {', '.join(map(str, missing))} (group-local) did "
            f"not come within {timeout_s:g} s; every rank of the group must construct its object, in the same "
            "order",
            rank=missing[0],
            missing=missing,
        )

    def _meet(self, deadline_s: float, timeout_s: float) -> None:
        """Connect with all ranks. All have come: whoever does not connect has died, or is frozen."""
        said = self._swap("interface", (_why_no_gloo() or "").encode(), deadline_s, timeout_s)
        unable = [f"on rank {rank}: {why.decode()}" for rank, why in enumerate(said) if why]
        if unable:
            self._no_gloo = "; ".join(unable[:3])
            return
        store = PrefixStore("gloo", self._store)
        try:
            self._group = dist.ProcessGroupGloo(store, self._rank, self._size, _until(deadline_s))
        except RuntimeError as exc:
            kind = BackendError if time.monotonic() < deadline_s else CastTimeoutError
            raise kind(f"gloo could not connect the ranks within {timeout_s:g} s: {exc}") from exc
        # Who let go of its group at once would reset connections that others are making.
        self._pass_round([], deadline_s, timeout_s)

    def _pass_round(self, keys: Sequence[str], deadline_s: float, timeout_s: float) -> None:
        """Wait until all have come here. Raises at once if one has died, or let go of its group."""
        peers = [peer for peer in range(self._size) if peer != self._rank]
        token = torch.zeros(1, dtype=torch.uint8)
        works: list[tuple[int, Any]] = []
        peer = self._rank
        try:
            # Each statement may raise, about the peer of the moment.
            for peer in peers:
                works.append((peer, self._group.recv([torch.empty_like(token)], peer, _ROUND_TAG)))  # noqa: PERF401
            for peer in peers:
                works.append((peer, self._group.send([token], peer, _ROUND_TAG)))  # noqa: PERF401
            for peer, work in works:  # noqa: B007
                work.wait(_until(deadline_s))
        except RuntimeError as exc:
            if time.monotonic() >= deadline_s or "Timed out waiting" in str(exc):  # gloo's clock may be a little ahead
                raise self._too_late(self._missing(keys) or [peer], timeout_s) from exc
            lost = self._first_lost(peer)
            raise BackendError(
                f"rank {lost} (group-local) was lost during the handshake: {str(exc).splitlines()[0]}", rank=lost
            ) from exc

    def _first_lost(self, peer: int) -> int:
        """Return the rank that was lost first: those that have seen it let go, and look lost to others."""
        try:
            return int(self._store.compare_set("lost", "", str(peer)))
        except RuntimeError:  # the store has gone with it
            return peer

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        if self._group is None and self._no_gloo is None:
            self._meet(time.monotonic() + timeout_s, timeout_s)
        if self._group is None:
            raise BackendError(
                f"gloo cannot connect the hosts: {self._no_gloo}; GLOO_SOCKET_IFNAME names the interface"
            )
        group, self._group = self._group, None
        pipes: dict[int, Pipe] = {peer: _GlooPipe(group, peer) for peer in neighbours}
        return ThreadedLink(pipes, sink, name=f"lazycast-torch-{self._rank}", kind="gloo")

    def close(self) -> None:
        """Let go of the connections. The keys of a generation are small and never read again."""
        self._group = None


class TorchBackend(Backend):
    """Connects the ranks of a torch.distributed process group.

    Args:
        group: a process group of any backend that this process belongs to; the default group if None.
    """

    name = "torch"

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise BackendUnavailableError(
                "torch.distributed is not initialised: call torch.distributed.init_process_group() first (under "
                "torchrun: init_process_group('gloo') is enough)"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            raise BackendUnavailableError(
                f"this process (global rank {dist.get_rank()}) is not in the given group; only its members may "
                "construct the object"
            )
        self.rank, self.size = rank, dist.get_world_size(group)
        pg = group if group is not None else dist.distributed_c10d._get_default_group()
        self._store: Store = dist.distributed_c10d._get_process_group_store(pg)

    @classmethod
    def from_environment(cls) -> TorchBackend:
        """Use the default group."""
        return cls()

    def open(self, *, timeout_s: float) -> Context:
        # Counted in the store and not in this process: a group that is destroyed and made anew may get the same store.
        generation = self._store.add(f"lazycast/opened/{self.rank}", 1)
        return _TorchContext(self.rank, self.size, self._store, generation)

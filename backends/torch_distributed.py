"""Ranks of a torch.distributed group: introduced by its store and by gloo, connected by TCP sockets of their own.

Guarantees:

* Contexts are made from the group's store alone: `new_group` needs all ranks of the default group, and its local form
  derives its name from the ranks, so that a third one on the same ranks hangs (torch 2.13).
* Each context has a generation counted in the store, so no two ever share keys, and its own `ProcessGroupGloo` outside
  torch's registry. The user's group is never used for communication; it may be an NCCL group.
* gloo is for the construction. Its ranks connect as soon as all have come to the store, which knows of nobody's death.
  From then on one that dies, or gives up, fails the construction of the others at once, and all of them name that one.
  Where gloo has no interface on some rank they stay with the store, and learn of a death when their time is over.
* Messages between hosts have sockets of their own (`_torch_dialling`, `_torch_pipe`): gloo never tells of a peer that
  dies in the middle of what it sends, and nothing wakes who waits for that (torch 2.13). Once there is a link, what
  gloo held has gone.
* All ranks are group-local: `root=0` is the group's first rank, whatever its global rank is.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError, LazycastError
from lazycast.interfaces import VARIABLE, named
from lazycast.net.backend import Backend, Context, Link, Sink
from lazycast.net.threaded_link import Pipe, ThreadedLink

from ._torch_dialling import Card, Dialling, Late, Lost
from ._torch_pipe import TCPPipe

try:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
except ImportError as exc:
    raise BackendUnavailableError(
        "the torch backend needs torch: pip install 'lazycast[torch]' (or torch as your platform wants it)"
    ) from exc

if not dist.is_available():
    raise BackendUnavailableError("this build of torch has no torch.distributed; install one that does")

_ROUND_TAG = 3
_ANSWER_S = 30.0  # what the machine of another rank gets to answer a call


def _until(deadline_s: float) -> timedelta:
    return timedelta(seconds=max(0.001, deadline_s - time.monotonic()))


def _why_no_gloo() -> str | None:
    """Return why gloo has no interface to use in this process."""
    try:
        for name in named():
            dist.ProcessGroupGloo.create_device(interface=name)
        if not named():
            dist.ProcessGroupGloo.create_default_device()
    except RuntimeError as exc:
        return str(exc).splitlines()[0]
    return None


@contextlib.contextmanager
def _naming_the_rank(rank: int) -> Iterator[None]:
    """Translate what the system refuses while sockets are made."""
    try:
        yield
    except LazycastError:  # of which some are an OSError
        raise
    except OSError as exc:
        raise BackendError(f"rank {rank} (group-local) cannot connect to other hosts: {exc}", rank=rank) from exc


def _host_of(store: Store) -> str | None:
    """Return where a store is, as this rank knows it; None of a store that is no server."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store.host if isinstance(store, TCPStore) else None


class _TorchContext(Context):
    """Keys of one generation in the group's store, and gloo's connections between all ranks until there is a link."""

    def __init__(self, rank: int, size: int, store: Store, generation: int) -> None:
        self._rank, self._size = rank, size
        self._store = PrefixStore(f"lazycast/{generation}", store)
        self._rounds = 0
        self._group: Any = None  # a ProcessGroupGloo, from the end of the first exchange on
        self._no_gloo: str | None = None  # why there is none
        self._store_host = _host_of(store)

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
            raise self._lost(peer, str(exc).splitlines()[0]) from exc

    def _lost(self, peer: int, why: str) -> BackendError:
        """Name the rank that was lost first: those that have seen it let go, and look lost to others."""
        with contextlib.suppress(RuntimeError):  # the store has gone with it
            peer = int(self._store.compare_set("lost", "", str(peer)))
        return BackendError(f"rank {peer} (group-local) was lost during the handshake: {why}", rank=peer)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        deadline_s = time.monotonic() + timeout_s
        pipes: dict[int, Pipe] = {}
        try:
            if self._group is None and self._no_gloo is None:
                self._meet(deadline_s, timeout_s)
            with _naming_the_rank(self._rank):
                for peer, sock in self._dial(neighbours, deadline_s, timeout_s).items():
                    pipes[peer] = TCPPipe(sock)
            return ThreadedLink(pipes, sink, name=f"lazycast-torch-{self._rank}", kind="tcp")
        except BaseException:
            for pipe in pipes.values():  # there may be threads for some of them already
                pipe.interrupt()
                pipe.close()
            raise
        finally:
            self._group = None

    def _dial(self, neighbours: Sequence[int], deadline_s: float, timeout_s: float) -> dict[int, socket.socket]:
        """Return a connection to each neighbour. A rank without any takes part, and opens nothing."""
        with contextlib.ExitStack() as stack:
            dialling, card, failed = None, Card([], b"", ""), dict[int, str]()
            if neighbours:
                try:
                    dialling = Dialling(self._rank, neighbours, self._store_host)
                    stack.callback(dialling.close)
                    card = dialling.card
                except OSError as exc:  # which is everybody's error
                    card.refused = str(exc)
            said = self._swap("card", msgspec.msgpack.encode(card), deadline_s, timeout_s)
            cards = [msgspec.msgpack.decode(blob, type=Card) for blob in said]
            self._check_cards(cards)
            if dialling is not None:
                left_s = deadline_s - time.monotonic()
                failed = dialling.call(cards, time.monotonic() + min(_ANSWER_S, left_s / 2))  # then all are told
            said = self._swap("called", msgspec.msgpack.encode(failed), deadline_s, timeout_s)
            self._check_calls([msgspec.msgpack.decode(blob, type=dict[int, str]) for blob in said])
            found: dict[int, socket.socket] = {}
            try:
                if dialling is not None:
                    found = dialling.finish(deadline_s)
                # Whoever fails now hangs up on ranks that are through, and would look lost to them.
                self._swap("connected", b"", deadline_s, timeout_s)
            except BaseException as exc:
                for sock in found.values():
                    sock.close()
                if isinstance(exc, Late):
                    raise self._too_late(exc.peers, timeout_s) from exc
                if isinstance(exc, Lost):
                    raise self._lost(exc.peer, str(exc)) from exc
                raise
            return found

    def _check_cards(self, cards: Sequence[Card]) -> None:
        for rank, card in enumerate(cards):
            if card.refused is not None:
                raise BackendError(
                    f"rank {rank} (group-local) cannot connect to other hosts: {card.refused}", rank=rank
                )
            if card.problem is not None:
                also = f" (gloo: {self._no_gloo})" if self._no_gloo else ""
                raise BackendError(
                    f"rank {rank} (group-local) has no address for ranks on other hosts: {card.problem}{also}; set "
                    f"{VARIABLE}= to the interface that they reach",
                    rank=rank,
                )

    def _check_calls(self, failed: Sequence[dict[int, str]]) -> None:
        for rank, why in enumerate(failed):
            for peer, addresses in why.items():
                raise BackendError(
                    f"rank {rank} (group-local) cannot connect to rank {peer}, which is on another host: {addresses}; "
                    f"set {VARIABLE}= on rank {peer} to the interface that other hosts reach, and see that no firewall "
                    "is between them",
                    rank=peer,
                )

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

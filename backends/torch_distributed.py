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

import msgspec

from lazycast.errors import BackendError, BackendUnavailableError, CastTimeoutError, LazycastError
from lazycast.interfaces import VARIABLE, named
from lazycast.net.backend import Backend, Context, Link, Sink
from lazycast.net.threaded_link import Pipe, ThreadedLink

from ._torch_dialling import Card, Dialling, Late, Lost
from ._torch_pipe import TCPPipe

try:
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

    from ._torch_tree import Broken, Tree, until
except ImportError as exc:
    raise BackendUnavailableError(
        "the torch backend needs torch: pip install 'lazycast[torch]' (or torch as your platform wants it)"
    ) from exc

if not dist.is_available():
    raise BackendUnavailableError("this build of torch has no torch.distributed; install one that does")

_SAYS_WHY_S = 0.2  # what a rank that has hung up gets to say why, before it counts as lost
_ANSWER_S = 30.0  # what the machine of another rank gets to answer a call


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


class _Failure(msgspec.Struct):
    """Why the construction came to nothing."""

    text: str
    ranks: list[int]  # whose fault it is
    late: bool


class _TorchContext(Context):
    """Keys of one generation in the group's store, and gloo's connections along a tree until there is a link."""

    def __init__(self, rank: int, size: int, store: Store, generation: int) -> None:
        self._rank, self._size = rank, size
        self._store = PrefixStore(f"lazycast/{generation}", store)
        self._rounds = 0
        self._tree: Tree | None = None  # from the first round on
        self._no_gloo: str | None = None  # why there is none
        self._store_host = _host_of(store)

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        deadline_s = time.monotonic() + timeout_s
        if self._rounds == 0:
            self._meet(deadline_s, timeout_s)
        return self._swap(blob, deadline_s, timeout_s)

    def _meet(self, deadline_s: float, timeout_s: float) -> None:
        """Connect with some ranks. All have come to the store: who does not connect has died, or is frozen.

        A round follows: who let go of its connections at once would reset some that others are making.
        """
        said = self._gather((_why_no_gloo() or "").encode(), deadline_s, timeout_s)
        unable = [f"on rank {rank}: {why.decode()}" for rank, why in enumerate(said) if why]
        if unable:
            self._no_gloo = "; ".join(unable[:3])
            return
        self._tree = Tree(self._rank, self._size)
        try:
            self._tree.connect(self._store, deadline_s)
        except RuntimeError as exc:
            text = f"gloo could not connect the ranks within {timeout_s:g} s: {exc}"
            raise self._failure(_Failure(text, [], late=time.monotonic() >= deadline_s)) from exc

    def _swap(self, blob: bytes, deadline_s: float, timeout_s: float) -> list[bytes]:
        """Get everybody's blob: along the tree, or where there is none through the store."""
        if self._tree is None:
            return self._gather(blob, deadline_s, timeout_s)
        keys = self._come(b"")
        try:
            return self._tree.swap(blob, deadline_s)
        except Broken as exc:
            if time.monotonic() >= deadline_s or "Timed out waiting" in str(exc):  # gloo's clock may be a little ahead
                raise self._too_late(self._missing(keys) or [exc.peer], timeout_s) from exc
            raise self._lost(exc.peer, str(exc)) from exc

    def _gather(self, blob: bytes, deadline_s: float, timeout_s: float) -> list[bytes]:
        """Get everybody's blob through the store. Rank 0 collects them, and makes one value of them for all."""
        keys = self._come(blob)
        table = f"{self._rounds}/all"
        try:
            if self._rank == 0:
                self._store.wait(keys, until(deadline_s))
                self._store.set(table, msgspec.msgpack.encode(self._store.multi_get(keys)))  # type: ignore[arg-type]
            self._store.wait([table], until(deadline_s))
            return msgspec.msgpack.decode(self._store.get(table), type=list[bytes])
        except RuntimeError as exc:
            missing = self._missing(keys)
            if missing is None or time.monotonic() < deadline_s:
                raise BackendError(f"the group's store failed during the handshake: {exc}") from exc
            raise self._too_late(missing or [0], timeout_s) from exc

    def _come(self, blob: bytes) -> list[str]:
        """Begin a round: put a blob into the store, and return where those of all ranks are."""
        self._rounds += 1
        keys = [f"{self._rounds}/{rank}" for rank in range(self._size)]
        try:
            self._store.set(keys[self._rank], blob)  # type: ignore[arg-type]  # it takes bytes, its stub does not
        except RuntimeError as exc:
            raise BackendError(f"the group's store failed during the handshake: {exc}") from exc
        return keys

    def _missing(self, keys: Sequence[str]) -> list[int] | None:
        """Return who has not come; None if the store has gone."""
        try:
            return [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        except RuntimeError:
            return None

    def _too_late(self, missing: list[int], timeout_s: float) -> LazycastError:
        text = (
            f"lazycast handshake over the torch store: rank {', '.join(map(str, missing))} (group-local) did "
            f"not come within {timeout_s:g} s; every rank of the group must construct its object, in the same order"
        )
        return self._failure(_Failure(text, missing, late=True))

    def _lost(self, peer: int, why: str) -> LazycastError:
        # Gloo hangs up on all when the time of one is over, and that one says so a moment later.
        with contextlib.suppress(RuntimeError):
            self._store.wait(["failed"], timedelta(seconds=_SAYS_WHY_S))
        text = f"rank {peer} (group-local) was lost during the handshake: {why}"
        return self._failure(_Failure(text, [peer], late=False))

    def _failure(self, failure: _Failure) -> LazycastError:
        """Return what has failed first: those that have seen it let go, and look lost to others."""
        try:
            said = self._store.compare_set("failed", "", msgspec.json.encode(failure).decode())
            failure = msgspec.json.decode(said, type=_Failure)
        except RuntimeError:  # with who serves it, who may be the first, while others that let go are named
            failure.text = f"the group's store was lost, and with it the process that serves it; then {failure.text}"
        rank = failure.ranks[0] if failure.ranks else None
        if failure.late:
            return CastTimeoutError(failure.text, rank=rank, missing=failure.ranks)
        return BackendError(failure.text, rank=rank)

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        deadline_s = time.monotonic() + timeout_s
        pipes: dict[int, Pipe] = {}
        try:
            if self._rounds == 0:
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
            self.close()

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
            said = self._swap(msgspec.msgpack.encode(card), deadline_s, timeout_s)
            cards = [msgspec.msgpack.decode(blob, type=Card) for blob in said]
            self._check_cards(cards)
            if dialling is not None:
                left_s = deadline_s - time.monotonic()
                failed = dialling.call(cards, time.monotonic() + min(_ANSWER_S, left_s / 2))  # then all are told
            said = self._swap(msgspec.msgpack.encode(failed), deadline_s, timeout_s)
            self._check_calls([msgspec.msgpack.decode(blob, type=dict[int, str]) for blob in said])
            found: dict[int, socket.socket] = {}
            try:
                if dialling is not None:
                    found = dialling.finish(deadline_s)
                # Whoever fails now hangs up on ranks that are through, and would look lost to them.
                self._swap(b"", deadline_s, timeout_s)
            except BaseException as exc:
                for sock in found.values():
                    sock.close()
                if isinstance(exc, Late):
                    raise self._too_late(list(exc.peers), timeout_s) from exc
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
        if self._tree is not None:
            self._tree.close()
            self._tree = None


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

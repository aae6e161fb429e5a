"""What lazycast needs from an engine that connects ranks: the contract that every backend implements.

Three objects, each with one job:

    Backend   who am I                 rank, size; opens contexts
    Context   meet, privately          exchange small blobs with all ranks; then connect neighbours
    Link      move bytes               ordered messages between connected neighbours

Guarantees that the rest of lazycast relies on, and that `lazycast.testing` checks:

* **Order.** Messages from one rank to another arrive whole, once, in the order of `send`.
* **No blocking.** `Link.send` returns at once, whatever the peer does; the link owns the threads it needs.
* **Privacy.** Two contexts never see each other's bytes, nor those of anybody else who uses the same group.
* **Ends.** Each neighbour's end is told once: `Sink.gone(peer, None)` after its farewell, `Sink.gone(peer, why)`
  when it died. Nothing of it is delivered afterwards.
* **Bytes only.** A backend knows no objects, keys, casts or futures.

Native errors are translated here and nowhere else: a backend raises `BackendError`, `BackendUnavailableError`
or `CastTimeoutError`, each `from` the native one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

#: The most bytes a message body may have unless a link declares less; what is larger travels in chunks.
DEFAULT_MAX_BODY_NBYTES = 4 << 20

#: The most bytes a message header may have.
MAX_HEADER_NBYTES = 32 << 10


@runtime_checkable
class Sink(Protocol):
    """The receiving end that lazycast hands to `Context.connect`. Called from the link's threads.

    For one peer the calls come one after another; for different peers they may overlap. They return quickly and
    never call back into the link except through `Link.send`.
    """

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        """Return the writable buffer of exactly `nbytes` (> 0) into which the body of this message goes."""
        ...

    def deliver(self, peer: int, header: bytes) -> None:
        """Take a complete message; its body, if it has one, lies in the buffer that `place` returned last."""
        ...

    def gone(self, peer: int, reason: str | None) -> None:
        """Learn that `peer` sends nothing any more: it said farewell (`None`), or it was lost (the reason)."""
        ...


class Link(ABC):
    """Connected neighbours, from this rank's side. Made by `Context.connect`."""

    #: The largest body `send` accepts, in bytes.
    max_body_nbytes: int = DEFAULT_MAX_BODY_NBYTES
    #: What carries the bytes, in a word or two, for messages to people: "tcp", "MPI".
    kind: str = "the backend's link"

    @abstractmethod
    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        """Queue one message for a neighbour.

        Args:
            peer: a rank that was among the neighbours.
            header: 1 byte to 32 KiB.
            body: contiguous bytes, at most `max_body_nbytes`; empty and `None` mean the same.
        Raises: ValueError for a rank that is no neighbour, or a header or body of a size that is not allowed. Nothing
            for a peer that is gone, whose end is told through the sink; what is sent to it is dropped.
        Blocking: never. Threads: safe.
        Memory: the link keeps a reference to `body`; its bytes must not change while anybody does.
        """

    @abstractmethod
    def close(self, *, timeout_s: float) -> None:
        """Send what is queued, then a farewell, and wait for the neighbours' farewells so that no receive is left.

        A neighbour's link answers a farewell by itself, without its own `close`; what it sends afterwards is dropped.
        Those that do not answer within `timeout_s` are given up. Idempotent. Not collective. Must not be called from
        a sink's call.
        """

    def state(self) -> list[str]:
        """Return a line for each neighbour: what waits to be sent, which threads live. Never blocks; takes no lock."""
        return []

    @abstractmethod
    def close_after_fork(self) -> None:
        """In a forked child: close this process's copies of descriptors, without a word to anybody.

        Called in the child with only the forking thread alive: take no locks.
        """


class Context(ABC):
    """A private meeting of all ranks of a backend, made by `Backend.open`."""

    @abstractmethod
    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        """Give every rank's blob (up to 64 KiB) to every rank, in rank order.

        Raises: CastTimeoutError naming the ranks that did not come; the context is of no use afterwards.
        Collective: every rank of the backend, any number of times. Blocking: yes, up to `timeout_s`.
        """

    @abstractmethod
    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        """Connect to some ranks and start delivering to `sink`.

        Args:
            neighbours: ranks to exchange messages with. The relation is symmetric: if a names b, b names a.
        Raises: CastTimeoutError naming the neighbours that did not come.
        Collective: every rank of the backend, once; also a rank without neighbours. Blocking: up to `timeout_s`.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what `open` and `exchange` hold. After the link's `close`. Idempotent, local, never blocks."""


class Backend(ABC):
    """An engine that connects ranks."""

    #: How users name it: `backend="torch"`.
    name: ClassVar[str]
    #: This process's place in the group, 0-based and group-local.
    rank: int
    #: The number of ranks in the group.
    size: int

    @classmethod
    @abstractmethod
    def from_environment(cls) -> Backend:
        """Make the backend from what the process was started with (`backend="torch"` calls this).

        Raises: BackendUnavailableError with what to do about it.
        """

    @abstractmethod
    def open(self, *, timeout_s: float) -> Context:
        """Meet the other ranks in a context that nobody has used before.

        Contexts pair up by order: the n-th `open` on one rank meets the n-th on the others.
        Raises: CastTimeoutError naming the ranks that did not come, where the engine can tell.
        Collective: every rank, in the same order. Blocking: up to `timeout_s`. Threads: one call at a time.
        """

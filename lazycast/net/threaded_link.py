"""A `Link` for engines whose sends and receives block: two threads a neighbour.

A backend brings one `Pipe` per neighbour; this module brings queues, threads, farewells and the end of each.

Guarantees:

* A pipe's `send` is called by one thread only, its `recv_*` by one other only.
* A message leaves whole or not at all; the farewell is the last thing a pipe sends.
* A farewell is answered with one's own at once, so that the peer's listener returns from its receive: some engines
  (gloo) can neither interrupt a blocked receive nor exit beside one.
* Lock order: none. The queues are the only shared state; a peer's end is told by its listener alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from lazycast.here import own_thread
from lazycast.net.backend import MAX_HEADER_NBYTES, Link, Sink
from lazycast.tracebacks import forget_frames, log

logger = logging.getLogger("lazycast")


class PipeClosed(Exception):
    """Raised by a pipe whose other end is gone, in either direction."""


class Pipe(ABC):
    """A blocking, ordered connection with one neighbour. An empty header is the farewell; pipes just carry it."""

    @abstractmethod
    def send(self, header: bytes, body: memoryview | None) -> None:
        """Send one message; block until `body` may be reused. Raises PipeClosed."""

    @abstractmethod
    def recv_header(self) -> tuple[bytes, int]:
        """Wait for a message; return its header and its body's size. Raises PipeClosed."""

    @abstractmethod
    def recv_body(self, into: memoryview) -> None:
        """Receive the body announced by the last `recv_header` (size > 0). Raises PipeClosed."""

    @abstractmethod
    def interrupt(self) -> None:
        """Wake whoever is blocked in this pipe, if the engine can. Called from any thread, any number of times."""

    @abstractmethod
    def close(self) -> None:
        """Give up the connection, after both threads have ended or been given up. Idempotent."""

    @abstractmethod
    def close_after_fork(self) -> None:
        """In a forked child: close the inherited descriptors that can be reached, without a word to the peer."""


#: What the threads of all neighbours get to end once they are woken (seconds).
_LAST_MOMENT_S = 0.2

_Message = tuple[bytes, "memoryview | None"]
_FAREWELL: _Message = (b"", None)


class _Neighbour:
    """One peer: its pipe, its outbox, its two threads."""

    def __init__(self, peer: int, pipe: Pipe, sink: Sink, name: str) -> None:
        self.peer = peer
        self.pipe = pipe
        self._sink = sink
        self._outbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._send_error: str | None = None  # as text: the exception would keep the body that was being sent
        self._ended = False
        self.sender = threading.Thread(target=self._send_loop, name=f"{name}-send-{peer}", daemon=True)
        self.listener = threading.Thread(target=self._listen_loop, name=f"{name}-recv-{peer}", daemon=True)
        self.sender.start()
        self.listener.start()

    def state(self) -> str:
        threads = [t.name for t in (self.sender, self.listener) if t.is_alive()]
        ended = ", ended" if self._ended else ""
        return f"rank {self.peer}: {self._outbox.qsize()} to be sent{ended}; threads: {', '.join(threads) or 'none'}"

    def put(self, message: _Message) -> None:
        if message is _FAREWELL or not self._ended:
            self._outbox.put(message)

    def _send_loop(self) -> None:
        own_thread()
        while True:
            message = self._outbox.get()
            try:
                self.pipe.send(*message)
            except PipeClosed as exc:
                self._send_error = str(exc)
                self.pipe.interrupt()  # the listener tells the end, once
                self._drop()
                return
            if message is _FAREWELL:
                return
            del message  # a body must not stay alive while this thread waits for the next one

    def _drop(self) -> None:
        """Let go of what nobody will send."""
        self._ended = True
        while True:
            try:
                self._outbox.get_nowait()
            except queue.Empty:
                return

    def _listen_loop(self) -> None:
        own_thread()
        sink, pipe, peer = self._sink, self.pipe, self.peer
        reason: str | None = None
        try:
            while True:
                header, nbytes = pipe.recv_header()
                if not header:
                    if nbytes:
                        raise PipeClosed(f"what arrived is no message: a farewell with {nbytes} bytes")
                    break
                if nbytes:
                    into = sink.place(peer, header, nbytes)
                    pipe.recv_body(into)
                    del into
                sink.deliver(peer, header)
                forget_frames()
        except PipeClosed as exc:
            reason = self._send_error or str(exc) or "connection closed without a farewell"
        except Exception as exc:  # a sink must not raise; if it does, this peer can no longer be served
            log(logger, f"lazycast: the receiver of rank {peer} failed; its messages are no longer read", exc)
            reason = f"receiving failed here: {exc!r}"
        sink.gone(peer, reason)  # first: if the failure is ours, the sink may have something to say to this peer
        self._ended = True
        self.put(_FAREWELL)  # the answer to a farewell; after a loss it only stops the sender


class ThreadedLink(Link):
    """Serve pipes with threads. See the module's text for what it guarantees."""

    def __init__(
        self,
        pipes: Mapping[int, Pipe],
        sink: Sink,
        *,
        name: str,
        kind: str | None = None,
        max_body_nbytes: int | None = None,
    ) -> None:
        if max_body_nbytes is not None:
            self.max_body_nbytes = max_body_nbytes
        if kind is not None:
            self.kind = kind
        self._closed = False
        self._neighbours = {peer: _Neighbour(peer, pipe, sink, name) for peer, pipe in pipes.items()}

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        neighbour = self._neighbours.get(peer)
        nbytes = body.nbytes if body is not None else 0
        if neighbour is None:
            raise ValueError(f"rank {peer} is not a neighbour of this link: {sorted(self._neighbours)}")
        if not 0 < len(header) <= MAX_HEADER_NBYTES or nbytes > self.max_body_nbytes:
            raise ValueError(f"a header of {len(header)} and a body of {nbytes} bytes cannot be sent")
        neighbour.put((header, body if nbytes else None))

    def close(self, *, timeout_s: float) -> None:
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + timeout_s
        for neighbour in self._neighbours.values():
            neighbour.put(_FAREWELL)
        for neighbour in self._neighbours.values():
            for thread in (neighbour.sender, neighbour.listener):
                thread.join(max(0.0, deadline - time.monotonic()))
        for neighbour in self._neighbours.values():
            neighbour.pipe.interrupt()  # wakes, where the engine can, who did not get an answer
        deadline = time.monotonic() + _LAST_MOMENT_S
        for neighbour in self._neighbours.values():
            for thread in (neighbour.sender, neighbour.listener):
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    logger.warning("lazycast: rank %d did not answer the farewell", neighbour.peer)
                    break
            neighbour.pipe.close()

    def state(self) -> list[str]:
        return [neighbour.state() for neighbour in self._neighbours.values()]

    def close_after_fork(self) -> None:
        for neighbour in self._neighbours.values():
            neighbour.pipe.close_after_fork()

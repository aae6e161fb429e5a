"""The threaded link on pipes that are queues."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import pytest

from lazycast.net.threaded_link import Pipe, PipeClosed, ThreadedLink

WAIT_S = 10.0
Frame = tuple[bytes, bytes]


class QueuePipe(Pipe):
    """What is sent goes into `out`; what is put into `into` is received. None breaks the pipe."""

    def __init__(self) -> None:
        self.out: queue.Queue[Frame] = queue.Queue()
        self.into: queue.Queue[Frame | None] = queue.Queue()
        self.broken_for_sending = False
        self.closed = threading.Event()
        self.forked = False
        self._body = b""

    def send(self, header: bytes, body: memoryview | None) -> None:
        if self.broken_for_sending:
            raise PipeClosed("cannot send")
        self.out.put((header, bytes(body) if body is not None else b""))

    def recv_header(self) -> tuple[bytes, int]:
        frame = self.into.get()
        if frame is None:
            raise PipeClosed("" if self.closed.is_set() else "reset by peer")
        header, self._body = frame
        return header, len(self._body)

    def recv_body(self, into: memoryview) -> None:
        into[:] = self._body

    def interrupt(self) -> None:
        self.closed.set()
        self.into.put(None)

    def close(self) -> None:
        self.interrupt()

    def close_after_fork(self) -> None:
        self.forked = True


class Events:
    """A sink."""

    def __init__(self, on_deliver: Callable[[bytes], None] = lambda _: None) -> None:
        self.events: queue.Queue[tuple[object, ...]] = queue.Queue()
        self._body = bytearray()
        self._on_deliver = on_deliver

    def place(self, peer: int, header: bytes, nbytes: int) -> memoryview:
        self._body = bytearray(nbytes)
        return memoryview(self._body)

    def deliver(self, peer: int, header: bytes) -> None:
        self._on_deliver(header)
        self.events.put((peer, header, bytes(self._body)))
        self._body = bytearray()

    def gone(self, peer: int, reason: str | None) -> None:
        self.events.put(("gone", peer, reason))


def _link(sink: Events) -> tuple[ThreadedLink, QueuePipe]:
    pipe = QueuePipe()
    return ThreadedLink({3: pipe}, sink, name="unit-link"), pipe


def _farewell(pipe: QueuePipe) -> None:
    pipe.into.put((b"", b""))


def test_it_sends_in_order_and_an_empty_body_is_none() -> None:
    link, pipe = _link(Events())
    link.send(3, b"a", memoryview(b"body"))
    link.send(3, b"b", memoryview(b""))
    link.send(3, b"c")
    assert [pipe.out.get(timeout=WAIT_S) for _ in range(3)] == [(b"a", b"body"), (b"b", b""), (b"c", b"")]
    _farewell(pipe)
    link.close(timeout_s=WAIT_S)


def test_a_farewell_is_answered_and_told_once() -> None:
    sink = Events()
    link, pipe = _link(sink)
    pipe.into.put((b"h", b"body"))
    _farewell(pipe)
    assert sink.events.get(timeout=WAIT_S) == (3, b"h", b"body")
    assert sink.events.get(timeout=WAIT_S) == ("gone", 3, None)
    assert pipe.out.get(timeout=WAIT_S) == (b"", b"")
    link.send(3, b"too late", memoryview(b"x"))
    link.close(timeout_s=WAIT_S)
    assert sink.events.empty()


def test_closing_sends_what_is_queued_then_the_farewell_and_is_idempotent() -> None:
    sink = Events()
    link, pipe = _link(sink)
    for number in range(10):
        link.send(3, bytes([number + 1]))
    _farewell(pipe)
    link.close(timeout_s=WAIT_S)
    link.close(timeout_s=WAIT_S)
    sent = [pipe.out.get_nowait() for _ in range(pipe.out.qsize())]
    assert sent[-1] == (b"", b"") or (b"", b"") in sent
    assert pipe.closed.is_set()
    assert sink.events.get(timeout=WAIT_S) == ("gone", 3, None)


def test_a_broken_pipe_is_a_loss_with_its_reason() -> None:
    sink = Events()
    link, pipe = _link(sink)
    pipe.into.put(None)
    assert sink.events.get(timeout=WAIT_S) == ("gone", 3, "reset by peer")
    link.close(timeout_s=WAIT_S)
    assert sink.events.empty(), "told once"


def test_a_farewell_with_a_body_is_none() -> None:
    pipe, sink = QueuePipe(), Events()
    link = ThreadedLink({1: pipe}, sink, name="t")
    pipe.into.put((b"", b"junk"))
    assert sink.events.get(timeout=WAIT_S) == ("gone", 1, "what arrived is no message: a farewell with 4 bytes")
    link.close(timeout_s=WAIT_S)


def test_a_pipe_that_breaks_while_sending_is_a_loss_told_by_the_listener() -> None:
    sink = Events()
    link, pipe = _link(sink)
    pipe.broken_for_sending = True
    link.send(3, b"h")
    assert sink.events.get(timeout=WAIT_S) == ("gone", 3, "cannot send")
    link.close(timeout_s=WAIT_S)


def test_a_sink_that_raises_ends_this_peer_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: bytes) -> None:
        raise ValueError("makes no sense")

    sink = Events(refuse)
    with caplog.at_level(logging.ERROR, "lazycast"):
        link, pipe = _link(sink)
        pipe.into.put((b"h", b""))
        what, peer, reason = sink.events.get(timeout=WAIT_S)
        link.close(timeout_s=WAIT_S)
    assert (what, peer) == ("gone", 3)
    assert "makes no sense" in str(reason)
    assert "the receiver of rank 3 failed" in caplog.text


def test_a_peer_that_does_not_answer_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    link, pipe = _link(Events())
    link.close(timeout_s=0.01)
    assert pipe.out.get(timeout=WAIT_S) == (b"", b"")
    assert pipe.closed.is_set()


def test_the_largest_body_can_be_given() -> None:
    assert ThreadedLink({}, Events(), name="x", max_body_nbytes=5).max_body_nbytes == 5
    assert ThreadedLink({}, Events(), name="x").max_body_nbytes == 4 << 20


def test_a_forked_child_closes_its_copies_only() -> None:
    link, pipe = _link(Events())
    link.close_after_fork()
    assert pipe.forked
    assert not pipe.closed.is_set()
    _farewell(pipe)
    link.close(timeout_s=WAIT_S)

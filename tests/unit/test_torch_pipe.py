"""The pipe between hosts of the torch backend, on real sockets: no torch is needed."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from lazycast.backends._torch_pipe import TCPPipe
from lazycast.net.backend import MAX_HEADER_NBYTES
from lazycast.net.threaded_link import PipeClosed

WAIT_S = 20.0
LARGE = 64 << 20  # more than two sockets hold


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            yield one, other


@pytest.fixture
def pipes(sockets: tuple[socket.socket, socket.socket]) -> tuple[TCPPipe, TCPPipe]:
    return TCPPipe(sockets[0]), TCPPipe(sockets[1])


@pytest.fixture
def begin() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


def receive(pipe: TCPPipe) -> tuple[bytes, bytes]:
    header, nbytes = pipe.recv_header()
    into = bytearray(nbytes)
    if nbytes:
        pipe.recv_body(memoryview(into))
    return header, bytes(into)


SIZES = [0, 1, 1000, (64 << 10) - 13, 64 << 10, (64 << 10) + 1, 4 << 20]


def test_messages_of_all_sizes_arrive_whole_and_in_order(pipes: Any, begin: Callable[..., Future[Any]]) -> None:
    headers = [b"h", b"h" * 77, b"", b"H" * MAX_HEADER_NBYTES]
    messages = [(header, os.urandom(nbytes)) for nbytes in SIZES * 2 for header in headers]
    sending = begin(lambda: [pipes[0].send(header, memoryview(body) if body else None) for header, body in messages])
    assert [receive(pipes[1]) for _ in messages] == messages
    sending.result(WAIT_S)


def test_a_body_may_be_of_another_type_and_read_only(pipes: Any, begin: Callable[..., Future[Any]]) -> None:
    body = memoryview(bytes(range(16))).cast("I")
    begin(pipes[0].send, b"h", body).result(WAIT_S)
    assert receive(pipes[1]) == (b"h", bytes(range(16)))


def test_bytes_that_come_one_at_a_time_are_one_message(sockets: Any, begin: Callable[..., Future[Any]]) -> None:
    def drip() -> None:
        sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in struct.pack("<IQ", 2, 3) + b"hhabc":
            sockets[0].sendall(bytes([byte]))

    dripping = begin(drip)
    assert receive(TCPPipe(sockets[1])) == (b"hh", b"abc")
    dripping.result(WAIT_S)


def test_a_header_that_is_too_large_is_no_message(sockets: Any) -> None:
    sockets[0].sendall(struct.pack("<IQ", MAX_HEADER_NBYTES + 1, 0))
    with pytest.raises(PipeClosed, match=f"no message: a header of {MAX_HEADER_NBYTES + 1} bytes"):
        TCPPipe(sockets[1]).recv_header()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_the_peers_end_is_told_in_the_middle_of_a_body(
    end: str, sockets: Any, begin: Callable[..., Future[Any]]
) -> None:
    receiver = TCPPipe(sockets[1])
    sockets[0].sendall(struct.pack("<IQ", 1, LARGE) + b"h" + bytes(1 << 20))
    assert receiver.recv_header() == (b"h", LARGE)
    receiving = begin(receiver.recv_body, memoryview(bytearray(LARGE)))
    if end == "reset":
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sockets[0].close()
    with pytest.raises(PipeClosed, match="reset by peer" if end == "reset" else "ended without a farewell"):
        receiving.result(WAIT_S)


def test_the_peers_end_is_told_to_a_send_that_is_blocked(sockets: Any, begin: Callable[..., Future[Any]]) -> None:
    sending = begin(TCPPipe(sockets[0]).send, b"h", memoryview(bytes(LARGE)))
    sockets[1].recv(1)
    assert not sending.done()
    sockets[1].close()
    with pytest.raises(PipeClosed, match=r"sending failed: .*(reset by peer|Broken pipe)"):
        sending.result(WAIT_S)


def test_an_interrupt_wakes_who_sends_and_who_receives(pipes: Any, begin: Callable[..., Future[Any]]) -> None:
    sending = begin(pipes[0].send, b"h", memoryview(bytes(LARGE)))
    receiving = begin(pipes[0].recv_header)
    assert pipes[1].recv_header() == (b"h", LARGE)  # so it is under way
    for _ in range(2):
        pipes[0].interrupt()
    for blocked in (sending, receiving):
        with pytest.raises(PipeClosed):
            blocked.result(WAIT_S)
    pipes[0].close()
    pipes[0].close()
    pipes[0].interrupt()


def test_a_forked_child_that_closes_its_copy_ends_nothing(sockets: Any, pipes: Any) -> None:
    copies = socket.socket(fileno=os.dup(sockets[0].fileno()))
    TCPPipe(copies).close_after_fork()
    pipes[0].send(b"h", None)
    assert receive(pipes[1]) == (b"h", b"")


def test_small_messages_do_not_wait_for_each_other(sockets: Any, pipes: Any) -> None:
    assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in sockets)
    assert all(not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for sock in sockets), "see the module's text"
    assert all(not os.get_inheritable(sock.fileno()) for sock in sockets)

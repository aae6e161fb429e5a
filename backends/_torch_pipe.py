"""A neighbour on another host, over a TCP connection.

Guarantees:

* A header and its body leave in one system call, as far as the socket takes them. Bodies are not copied here, but for
  the part of at most 64 KiB that has come together with its header.
* A peer that dies is told by its kernel, in the middle of a body too: a blocked send and a blocked receive both end.
* A peer that is frozen, or behind a wire that is cut, is waited for. So there is no keepalive and no TCP_USER_TIMEOUT:
  the latter counts a peer as dead that has been frozen with its buffer full, though its kernel answers.
* `send` belongs to one thread, `recv_*` to one other; `interrupt` is for any.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from lazycast.net.backend import MAX_HEADER_NBYTES
from lazycast.net.threaded_link import Pipe, PipeClosed

_PREFIX = struct.Struct("<IQ")  # header bytes, body bytes
_BUFFER_NBYTES = 64 << 10  # more than the largest header with its prefix
# A program may have given SIGPIPE its default action, which ends the process.
_SEND_FLAGS = int(socket.MSG_NOSIGNAL)
_RECV_WHOLE = int(socket.MSG_WAITALL)


class TCPPipe(Pipe):
    """Carries messages over a connected, blocking socket, which is then this pipe's own."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._begin = self._end = 0  # what has been received and not been taken yet

    def send(self, header: bytes, body: memoryview | None) -> None:
        head = _PREFIX.pack(len(header), body.nbytes if body is not None else 0) + header
        rest = [memoryview(head)]
        if body is not None:
            rest.append(body.cast("B"))
        try:
            while rest:
                n = self._sock.sendmsg(rest, (), _SEND_FLAGS)
                while rest and n >= rest[0].nbytes:
                    n -= rest.pop(0).nbytes
                if rest:
                    rest[0] = rest[0][n:]
        except OSError as exc:
            raise PipeClosed(f"sending failed: {exc}") from exc

    def recv_header(self) -> tuple[bytes, int]:
        header_nbytes, nbytes = _PREFIX.unpack(self._take(_PREFIX.size))
        if header_nbytes > MAX_HEADER_NBYTES:
            raise PipeClosed(f"what arrived is no message: a header of {header_nbytes} bytes")
        return bytes(self._take(header_nbytes)), nbytes

    def recv_body(self, into: memoryview) -> None:
        n = min(into.nbytes, self._end - self._begin)
        into[:n] = self._buffer[self._begin : self._begin + n]
        self._begin += n
        into = into[n:]
        while into.nbytes:
            into = into[self._recv(into, _RECV_WHOLE) :]

    def _take(self, nbytes: int) -> memoryview:
        """Return the next bytes; they are there until the next call."""
        if self._begin + nbytes > _BUFFER_NBYTES:  # no room for them: what is there goes to the beginning
            left = self._end - self._begin
            self._buffer[:left] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, left
        while self._end - self._begin < nbytes:
            if self._begin == self._end:
                self._begin = self._end = 0
            self._end += self._recv(self._buffer[self._end :], 0)
        self._begin += nbytes
        return self._buffer[self._begin - nbytes : self._begin]

    def _recv(self, into: memoryview, flags: int) -> int:
        try:
            n = self._sock.recv_into(into, 0, flags)
        except OSError as exc:
            raise PipeClosed(f"receiving failed: {exc}") from exc
        if n == 0:
            raise PipeClosed("the connection ended without a farewell")
        return n

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # the peer may have gone first
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def close_after_fork(self) -> None:
        self._sock.close()  # without a shutdown: the connection is the parent's

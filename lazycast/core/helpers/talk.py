"""What the leader of a host and a helper say to each other, over a Unix socket of their own.

Guarantees:

* Headers are msgpack of the structs below; a body follows as it is. They take turns: a job, and what came of it.
* Whoever waits for the other looks up now and then (`check`), and may raise to give up; nothing waits for ever.
* The end of the other process is `Ended`, whatever it was in the middle of.
* Descriptors that arrive are the receiver's to close.
"""

from __future__ import annotations

import array
import functools
import os
import select
import socket
import struct
from collections.abc import Callable

import msgspec

from lazycast.codec.pickling import allocate
from lazycast.net.wire import Count, Failure, MaterializerRef

#: How often whoever waits looks up (seconds).
LOOK_S = 0.05
#: How often a helper says with which item it begins, at most (seconds).
TELLS_S = 0.05
#: A value or payload up to this size travels in the socket, which takes less time than to look for it elsewhere.
INLINE_NBYTES = 64 << 10

_PREFIX = struct.Struct("<I")
_PIECE_NBYTES = 1 << 20  # so that a send returns while the other side reads
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_MAX_FDS = 1  # that come with a message: with `Memory`
_FDS_ROOM = socket.CMSG_SPACE(4 * _MAX_FDS)
_AHEAD_NBYTES = 4 << 10  # read in one step, so that most messages take one


class Ended(Exception):
    """The process at the other end sends no more."""


class Config(msgspec.Struct, frozen=True, tag="config"):
    """What a helper is: the first message to it. The code of its `init` follows, if it has one."""

    number: int
    rank: int
    host: str
    trust: str
    allow: list[str] | None
    readonly: bool
    same_program: bool
    program: tuple[str, str] | None
    argv: list[str]
    memory_nbytes: int | None
    init_nbytes: Count


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    """Memory that payloads of the jobs to come lie in, known by `ident` from now on; its descriptor comes along."""

    ident: int
    nbytes: Count


class Job(msgspec.Struct, frozen=True, tag="job"):
    """Make a value. The codes follow, and the payload if it lies nowhere.

    Attributes:
        trusted: the code of the materializer is the leader's own: what the object's `trust` says is not asked.
        at: where the payload lies: in which memory, and from where on.
        codes: what code that the helper lacked follows: its name, and how many bytes.
        part: of an `Each`, the number of a part of its results, and how many there are; that is to be made alone.
        numbers: the payload is a list of some items of another one, with these numbers there.
    """

    number: int
    ref: MaterializerRef
    trusted: bool
    nbytes: Count
    stream_nbytes: Count
    frames: Count
    at: tuple[int, int] | None
    codes: list[tuple[str, int]] = []
    part: tuple[int, int] | None = None
    numbers: list[int] | None = None


class Item(msgspec.Struct, frozen=True, tag="item"):
    """The helper begins with an item. Of those that take less than `TELLS_S` it tells now and then."""

    index: Count


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The value: its bytes follow, or lie in the helper's own memory (offset, address, bytes), until they are taken.

    Of a part of an `Each`, `items` says how many items the whole has.
    """

    nbytes: Count
    stream_nbytes: Count
    frames: Count
    seconds: float
    cpu_s: float
    pieces: list[tuple[int, int, int]] | None
    items: Count = 0


class Raised(msgspec.Struct, frozen=True, tag="raised"):
    """There is no value, and this is why."""

    failure: Failure
    seconds: float


class Lacking(msgspec.Struct, frozen=True, tag="lacking"):
    """The helper needs the code named `ident`: the same job again, with it."""

    ident: str
    text: str


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The value was taken, or nobody wants it."""


class Stream(msgspec.Struct, frozen=True, tag="stream"):
    """The value cannot be taken where it lies: its bytes are to follow."""


class Over(msgspec.Struct, frozen=True, tag="over"):
    """The job is over; payloads of these jobs are still held by what materializers have kept of them."""

    held: list[int]


Message = Config | Memory | Job | Item | Done | Raised | Lacking | Taken | Stream | Over
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


def _nothing() -> None:
    """Nobody looks up."""


class Talk:
    """One end. Used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._ahead = bytearray()  # what has come, and nobody has asked for
        self._fds: list[int] = []
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)

    def send(
        self,
        message: Message,
        *bodies: memoryview | bytes | bytearray,
        fd: int | None = None,
        check: Callable[[], object] = _nothing,
    ) -> None:
        """Send a message, with a descriptor, and what follows it. Raises Ended, and what `check` raises."""
        header = _encode(message)
        opening = _PREFIX.pack(len(header)) + header
        if fd is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            sent = self._when(self._writable, lambda: self._sock.sendmsg([opening], rights, _FLAGS), check)
            opening = opening[sent:]
        for body in (opening, *bodies):
            view = memoryview(body).cast("B")
            while view.nbytes:
                piece = view[:_PIECE_NBYTES]
                view = view[self._when(self._writable, functools.partial(self._sock.send, piece, _FLAGS), check) :]

    def receive(self, check: Callable[[], object] = _nothing) -> tuple[Message, list[int]]:
        """Return the next message, and the descriptors that came with it. Raises Ended, and what `check` raises."""
        ahead = self._ahead
        while len(ahead) < _PREFIX.size:
            self._read_ahead(check)
        end = _PREFIX.size + _PREFIX.unpack_from(ahead)[0]
        while len(ahead) < end:
            self._read_ahead(check)
        message = _decoder.decode(memoryview(ahead)[_PREFIX.size : end])
        del ahead[:end]
        fds: list[int] = []
        if isinstance(message, Memory):
            fds, self._fds = self._fds[:_MAX_FDS], self._fds[_MAX_FDS:]
        return message, fds

    def _read_ahead(self, check: Callable[[], object]) -> None:
        """Take what is there, in one step: a message, and maybe what follows it."""
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_AHEAD_NBYTES, _FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
                break
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:  # it was closed, with something unread or not
                raise Ended from exc
            if not self._readable.poll(LOOK_S * 1e3):
                check()
        for _, kind, rights in ancillary:
            if kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", rights)
        if not data:
            raise Ended
        self._ahead += data

    def body(self, nbytes: int, check: Callable[[], object] = _nothing) -> memoryview:
        """Return what follows a message, in memory of its own."""
        found = allocate(nbytes)
        self.fill(found, check)
        return found

    def skip(self, nbytes: int) -> None:
        """Leave out what follows a message: there is no room for it. Raises Ended."""
        waste = memoryview(bytearray(min(nbytes, INLINE_NBYTES)))
        while nbytes:
            self.fill(waste[:nbytes])
            nbytes -= min(nbytes, waste.nbytes)

    def fill(self, into: memoryview, check: Callable[[], object] = _nothing) -> None:
        """Put what follows a message where it belongs. Raises Ended, and what `check` raises."""
        here = min(len(self._ahead), into.nbytes)
        into[:here] = self._ahead[:here]
        del self._ahead[:here]
        into = into[here:]
        while into.nbytes:
            count = self._when(self._readable, functools.partial(self._sock.recv_into, into), check)
            if count == 0:
                raise Ended
            into = into[count:]

    @staticmethod
    def _when(poller: select.poll, act: Callable[[], int], check: Callable[[], object]) -> int:
        while True:
            try:
                return act()
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:  # it was closed, with something unread or not
                raise Ended from exc
            if not poller.poll(LOOK_S * 1e3):
                check()

    def close(self) -> None:
        """Close the socket, and what came over it for nobody."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.pop())

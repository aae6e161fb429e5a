"""How ranks of a host meet: nobody but a process of this user that knows the meeting's secret is let in."""

from __future__ import annotations

import array
import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazycast.backends.local import LocalBackend
from lazycast.net.host.memory import create
from lazycast.start import meeting

RIGHTS = socket.SCM_RIGHTS


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, Any]]:
    listener, card = meeting._listen()
    if listener is None:
        pytest.skip(f"no shared memory here: {card.reason}")
    with listener:
        yield listener, card


def _call(card: Any, hello: bytes, contents: bytes | None) -> socket.socket:
    """Call as `_dial` does, but with a hello and a piece of memory of one's own."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60.0)
    sock.connect(f"\0lazycast-{card.address}")
    fds = []
    if contents is not None:
        fds.append(create(4096))
        os.pwrite(fds[0], contents, 0)
    sock.sendmsg([hello], [(socket.SOL_SOCKET, RIGHTS, array.array("i", fds))] if fds else [])
    for fd in fds:
        os.close(fd)
    return sock


def _accepted(listener: socket.socket, card: Any, callers: set[int]) -> dict[int, socket.socket]:
    """Accept, but do not wait for a call that has not come."""
    impatient: Any = _Impatient(listener)
    return meeting._accept(impatient, callers, card.secret)


class _Impatient:
    """A listener that waits a fifth of a second at most."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def settimeout(self, seconds: float) -> None:
        self._listener.settimeout(min(seconds, 0.2))

    def accept(self) -> tuple[socket.socket, Any]:
        sock, address = self._listener.accept()
        return _Unwaited(fileno=sock.detach()), address


class _Unwaited(socket.socket):
    """A caller's socket: what it has not said yet is not waited for. It blocks again when the caller is known."""

    def settimeout(self, seconds: float | None) -> None:
        assert not seconds, f"a caller is waited for, for {seconds} s"
        super().settimeout(seconds)


def test_a_rank_that_knows_the_secret_is_let_in(listening: tuple[socket.socket, Any]) -> None:
    listener, card = listening
    dialled: list[socket.socket] = []
    thread = threading.Thread(target=lambda: dialled.append(meeting._dial(card, card, 3)))
    thread.start()
    thread.join()  # all have called before anybody answers
    accepted = _accepted(listener, card, {3})
    assert list(accepted) == [3]
    assert meeting._answered(dialled[0])
    for sock in (accepted[3], dialled[0]):
        assert not sock.get_inheritable()
        sock.close()


def _call_with(card: Any, hello: bytes, *fds: int) -> socket.socket:
    """Call with descriptors of any sort."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(60.0)
    sock.connect(f"\0lazycast-{card.address}")
    if hello:
        sock.sendmsg([hello], [(socket.SOL_SOCKET, RIGHTS, array.array("i", fds))] if fds else [])
    for fd in fds:
        os.close(fd)
    return sock


def _pipe(*, with_secret: bytes = b"") -> int:
    """A pipe that holds the secret: nobody may wait for what is in it."""
    reader, writer = os.pipe()
    os.write(writer, with_secret or b"x")
    os.close(writer)
    return reader


STRANGERS: dict[str, Callable[[Any], socket.socket]] = {
    "another secret": lambda card: _call(card, meeting._HELLO.pack(3, b"x" * 32), card.secret),
    "memory without the secret": lambda card: _call(card, meeting._HELLO.pack(3, card.secret), b"y" * 32),
    "no memory": lambda card: _call(card, meeting._HELLO.pack(3, card.secret), None),
    "another rank": lambda card: _call(card, meeting._HELLO.pack(4, card.secret), card.secret),
    "too short": lambda card: _call(card, b"\3", card.secret),
    "half a hello": lambda card: _call_with(card, meeting._HELLO.pack(3, card.secret)[:18]),
    "silence": lambda card: _call_with(card, b""),
    "a pipe": lambda card: _call_with(card, meeting._HELLO.pack(3, card.secret), _pipe(with_secret=card.secret)),
    "zeros without end": lambda card: _call_with(
        card, meeting._HELLO.pack(3, card.secret), os.open("/dev/zero", os.O_RDONLY)
    ),
    "memory that was never sized": lambda card: _call_with(
        card, meeting._HELLO.pack(3, card.secret), os.memfd_create("stranger")
    ),
    "many descriptors": lambda card: _call_with(
        card, meeting._HELLO.pack(4, card.secret), *(os.open(os.devnull, os.O_RDONLY) for _ in range(200))
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_turned_away_and_the_rank_is_still_let_in(who: str, listening: tuple[socket.socket, Any]) -> None:
    listener, card = listening
    descriptors = len(os.listdir("/proc/self/fd"))
    stranger = STRANGERS[who](card)
    good = _call(card, meeting._HELLO.pack(3, card.secret), card.secret)
    accepted = _accepted(listener, card, {3})
    assert list(accepted) == [3]
    assert meeting._answered(good)
    assert not meeting._answered(stranger)
    for sock in (stranger, good, *accepted.values()):
        sock.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_process_of_another_user_is_turned_away(
    listening: tuple[socket.socket, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, card = listening
    caller = _call(card, meeting._HELLO.pack(3, card.secret), card.secret)
    me = os.getuid()
    monkeypatch.setattr(meeting.os, "getuid", lambda: me + 1)
    assert _accepted(listener, card, {3}) == {}
    assert not meeting._answered(caller)
    caller.close()


@pytest.mark.skipif(os.getuid() != 0, reason="to be another user for a moment takes root")
def test_a_real_process_of_another_user_is_turned_away_though_it_knows_everything(
    listening: tuple[socket.socket, Any],
) -> None:
    listener, card = listening
    called, calls = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            listener.close()
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            fd = os.memfd_create("stranger")  # before the call: another user's process cannot do much afterwards
            os.write(fd, card.secret)
            caller = _call_with(card, meeting._HELLO.pack(3, card.secret), fd)
            os.write(calls, b"!")
            code = 2 if meeting._answered(caller) else 0
        finally:
            os._exit(code)
    os.close(calls)
    assert os.read(called, 1) == b"!", "it has not called"
    os.close(called)
    assert _accepted(listener, card, {3}) == {}
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_each_meeting_has_an_address_and_a_secret_of_its_own(listening: tuple[socket.socket, Any]) -> None:
    _, card = listening
    other_listener, other = meeting._listen()
    assert other_listener is not None
    other_listener.close()
    assert len(card.secret) == len(other.secret) == 32
    assert card.secret != other.secret
    assert card.address != other.address


def test_the_address_is_abstract_so_nothing_is_left_in_any_folder(listening: tuple[socket.socket, Any]) -> None:
    listener, _ = listening
    assert listener.getsockname().startswith(b"\0lazycast-")


def _meet(wanted: list[bool], together: Callable[..., list[Any]]) -> list[meeting.Host]:
    """Let as many ranks as there are wishes meet; close what they have got."""

    def rank(backend: LocalBackend) -> meeting.Host:
        context = backend.open(timeout_s=20)
        found = meeting.meet(context, backend.rank, backend.size, wanted=wanted[backend.rank], timeout_s=20)
        for sock in found.sockets.values():
            sock.close()
        context.close()
        return found

    backends = LocalBackend.threads(len(wanted))
    met = together(*[functools.partial(rank, backend) for backend in backends])
    backends[0].close_hub()
    return met


def test_every_rank_learns_who_has_reached_whom(together: Callable[..., list[Any]]) -> None:
    for host in _meet([True, True, True], together):
        assert (host.hosts, host.reached, host.reason) == ([[0, 1, 2]], [set(), {0}, {0, 1}], None)
        assert host.refused == {}


def test_a_rank_says_why_it_could_not_reach_another(together: Callable[..., list[Any]]) -> None:
    hosts = _meet([True, False, True], together)
    for host in hosts:
        assert (host.hosts, host.reached) == ([[0, 2], [1]], [set(), set(), {0}])
    assert [host.refused for host in hosts] == [
        {},
        {0: "this rank shares no memory: shared_memory=False"},
        {1: "it shares no memory: shared_memory=False"},
    ]


def test_other_labels_and_a_refusal_are_reasons(
    listening: tuple[socket.socket, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, card = listening
    monkeypatch.setenv(meeting.LABEL, "numa1")
    listener, mine = meeting._listen()
    assert listener is not None
    listener.close()
    with pytest.raises(OSError, match="LAZYCAST_HOST is '' there and 'numa1' here"):
        meeting._dial(card, mine, 1)
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        meeting._dial(mine, mine, 1)  # nobody listens there any more

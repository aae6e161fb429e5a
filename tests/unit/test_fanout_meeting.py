"""How ranks of a host meet: nobody but a process of this user that knows the meeting's secret is let in."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazycast.fanout import meeting
from lazycast.fanout.memory import create

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
    sock.settimeout(10.0)
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

    def accept(self) -> Any:
        return self._listener.accept()


def test_a_rank_that_knows_the_secret_is_let_in(listening: tuple[socket.socket, Any]) -> None:
    listener, card = listening
    dialled: list[socket.socket | None] = []
    thread = threading.Thread(target=lambda: dialled.append(meeting._dial(card, 3)))
    thread.start()
    accepted = _accepted(listener, card, {3})
    thread.join()
    assert list(accepted) == [3]
    assert dialled[0] is not None
    assert meeting._answered(dialled[0])
    for sock in (accepted[3], dialled[0]):
        assert not sock.get_inheritable()
        sock.close()


STRANGERS: dict[str, Callable[[Any], socket.socket]] = {
    "another secret": lambda card: _call(card, meeting._HELLO.pack(3, b"x" * 32), card.secret),
    "memory without the secret": lambda card: _call(card, meeting._HELLO.pack(3, card.secret), b"y" * 32),
    "no memory": lambda card: _call(card, meeting._HELLO.pack(3, card.secret), None),
    "another rank": lambda card: _call(card, meeting._HELLO.pack(4, card.secret), card.secret),
    "too short": lambda card: _call(card, b"\3", card.secret),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_turned_away_and_the_rank_is_still_let_in(who: str, listening: tuple[socket.socket, Any]) -> None:
    listener, card = listening
    stranger = STRANGERS[who](card)
    good = _call(card, meeting._HELLO.pack(3, card.secret), card.secret)
    accepted = _accepted(listener, card, {3})
    assert list(accepted) == [3]
    assert meeting._answered(good)
    assert not meeting._answered(stranger)
    for sock in (stranger, good, *accepted.values()):
        sock.close()


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

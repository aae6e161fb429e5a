"""What a leader and a helper say to each other: messages that come in one piece, or in many."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from lazycast.core.helpers.talk import Done, Ended, Memory, Over, Stream, Taken, Talk

DONE = Done(100_000, 10, 1, 0.5, 0.25, None)


@pytest.fixture
def pair() -> Iterator[tuple[Talk, Talk, socket.socket]]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    talks = Talk(mine), Talk(theirs)
    yield (*talks, mine)
    for talk in talks:
        talk.close()


def test_messages_and_bodies_that_come_at_once_are_told_apart(pair: tuple[Talk, Talk, socket.socket]) -> None:
    one, other, _ = pair
    small, large = os.urandom(300), os.urandom(DONE.nbytes)
    sending = threading.Thread(target=lambda: [one.send(Taken(), small), one.send(DONE, large), one.send(Over([7]))])
    sending.start()
    assert other.receive() == (Taken(), [])
    assert bytes(other.body(len(small))) == small
    assert other.receive() == (DONE, [])
    assert bytes(other.body(DONE.nbytes)) == large
    assert other.receive() == (Over([7]), [])
    sending.join()


def test_what_follows_a_message_can_be_left_out(pair: tuple[Talk, Talk, socket.socket]) -> None:
    one, other, _ = pair
    sending = threading.Thread(target=lambda: [one.send(DONE, bytes(DONE.nbytes)), one.send(Stream())])
    sending.start()
    other.receive()
    other.skip(DONE.nbytes)
    assert other.receive() == (Stream(), [])
    sending.join()


def test_a_descriptor_belongs_to_its_message_whatever_came_before(pair: tuple[Talk, Talk, socket.socket]) -> None:
    one, other, _ = pair
    ours = [os.pipe() for _ in range(3)]
    for number, (reads, _writes) in enumerate(ours):
        one.send(Taken())
        one.send(Memory(number, 4096), fd=reads)
        one.send(Stream())
    found = [other.receive() for _ in range(9)]
    assert [message for message, _ in found] == [
        said for number in range(3) for said in (Taken(), Memory(number, 4096), Stream())
    ]
    for at, (message, fds) in enumerate(found):
        assert len(fds) == (at % 3 == 1), message
        for fd in fds:
            assert os.fstat(fd).st_ino == os.fstat(ours[at // 3][0]).st_ino
            os.close(fd)
    for fd in sum(ours, ()):
        os.close(fd)


def test_a_message_in_single_bytes(pair: tuple[Talk, Talk, socket.socket]) -> None:
    ahead, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    Talk(ahead).send(DONE)
    said = theirs.recv(1000)
    _, other, mine = pair

    def dribble() -> None:
        for byte in said:
            mine.setblocking(True)
            mine.send(bytes([byte]))

    sending = threading.Thread(target=dribble)
    sending.start()
    assert other.receive() == (DONE, [])
    sending.join()
    ahead.close()
    theirs.close()


def test_the_end_in_the_middle_of_a_message_or_a_body(pair: tuple[Talk, Talk, socket.socket]) -> None:
    one, other, mine = pair
    one.send(DONE, b"too little")
    mine.send(b"\1")
    one.close()
    other.receive()
    with pytest.raises(Ended):
        other.body(DONE.nbytes)
    with pytest.raises(Ended):
        other.receive()


def test_a_descriptor_that_nobody_took_is_closed() -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one, other = Talk(mine), Talk(theirs)
    reads, writes = os.pipe()
    one.send(Taken())
    one.send(Memory(1, 4096), fd=reads)
    os.close(reads)
    assert other.receive()[0] == Taken()
    one.close()
    other.close()
    with pytest.raises(BrokenPipeError):  # nobody can read from it any more
        os.write(writes, b"x")
    os.close(writes)

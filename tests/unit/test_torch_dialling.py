"""How ranks on different hosts get their connections under torch: ranks as threads, real sockets, no torch."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lazycast import interfaces
from lazycast.backends import _torch_addresses as addresses
from lazycast.backends import _torch_dialling as dialling
from lazycast.backends._torch_dialling import Card, Dialling, Late, Lost
from tests.namespaces import narrow_host, need

WAIT_S = 20.0
SHORT_S = 0.3
MESH = {rank: [peer for peer in range(4) if peer != rank] for rank in range(4)}


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interfaces.VARIABLE, "lo")


@contextlib.contextmanager
def group(neighbours: dict[int, list[int]]) -> Iterator[tuple[list[Dialling], list[Card]]]:
    with contextlib.ExitStack() as stack:
        ranks = [Dialling(rank, neighbours[rank], None) for rank in sorted(neighbours)]
        for rank in ranks:
            stack.callback(rank.close)
        yield ranks, [rank.card for rank in ranks]


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(2 * WAIT_S) for future in [pool.submit(call) for call in calls]]


def connected(ranks: list[Dialling], cards: list[Card]) -> list[dict[int, socket.socket]]:
    """Call, and when all have, finish."""
    assert together([lambda rank=rank: rank.call(cards, in_s(WAIT_S)) for rank in ranks]) == [{}] * len(ranks)
    return together([lambda rank=rank: rank.finish(in_s(WAIT_S)) for rank in ranks])


def check(found: list[dict[int, socket.socket]], neighbours: dict[int, list[int]]) -> None:
    """Each pair has one connection, and it is that pair's."""
    assert [sorted(socks) for socks in found] == [neighbours[rank] for rank in sorted(neighbours)]
    for rank, socks in enumerate(found):
        for peer, sock in socks.items():
            sock.setblocking(True)
            sock.sendall(struct.pack("<II", rank, peer))
    for rank, socks in enumerate(found):
        for peer, sock in socks.items():
            assert struct.unpack("<II", sock.recv(8)) == (peer, rank)
    for socks in found:
        for sock in socks.values():
            sock.close()


@pytest.mark.parametrize("neighbours", [MESH, {0: [1, 2], 1: [0], 2: [0]}, {0: [2], 1: [], 2: [0]}], ids=str)
def test_each_pair_gets_a_connection_and_nothing_else_is_left(neighbours: dict[int, list[int]]) -> None:
    before = os.listdir("/proc/self/fd")
    with group(neighbours) as (ranks, cards):
        found = connected(ranks, cards)
    check(found, neighbours)
    assert os.listdir("/proc/self/fd") == before


def call_up(card: Card) -> socket.socket:
    return socket.create_connection(card.addresses[0], timeout=WAIT_S)


@contextlib.contextmanager
def unanswering() -> Iterator[socket.socket]:
    """Whose queue takes no more, so that the kernel does not answer."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full


def test_strangers_neither_hang_nor_fail_it() -> None:
    with group(MESH) as (ranks, cards), contextlib.ExitStack() as strangers:
        for card in cards[:3]:
            for said in [b"", b"GET / HTTP/1.1\r\n", bytes(32), b"x" * 100_000, b"half a proof"] * 20:
                sock = strangers.enter_context(call_up(card))
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.send(said)
            call_up(card).close()
        check(connected(ranks, cards), MESH)


def test_strangers_that_come_without_end_hold_nobody_up() -> None:
    over = False

    def come(card: Card) -> int:
        came = 0
        while not over:
            with contextlib.suppress(OSError):  # until it listens no more
                call_up(card).close()
                came += 1
        return came

    with ThreadPoolExecutor(3) as pool:
        try:
            with group(MESH) as (ranks, cards):
                coming = [pool.submit(come, card) for card in cards[:3]]
                check(connected(ranks, cards), MESH)
        finally:
            over = True
        assert all(it.result(WAIT_S) for it in coming)


def test_strangers_do_not_displace_a_caller_that_has_not_spoken_yet() -> None:
    """It says who it is before its call is over, which may be after this rank has called."""
    with contextlib.ExitStack() as stack:
        ranks, cards = stack.enter_context(group({0: [1], 1: [0, 2], 2: [1]}))
        cards[0].addresses[:] = [stack.enter_context(unanswering()).getsockname()]
        caller = stack.enter_context(call_up(cards[1]))
        for _ in range(dialling._SILENT + 1):
            stack.enter_context(call_up(cards[1]))
        ranks[1].call(cards, in_s(SHORT_S))
        ranks[2]._cards = cards
        caller.sendall(ranks[2]._proof(b"calls", 2, 1))
        with pytest.raises(Late) as caught:
            ranks[1].finish(in_s(SHORT_S))
        assert caught.value.peers == [0]


def test_nobody_poses_as_a_rank_without_its_secret_nor_as_one_that_is_there() -> None:
    with group({0: [1], 1: [0]}) as (ranks, cards):
        other = Dialling(1, [0], None)
        other._cards = [cards[0], Card([], b"another secret", "")]
        with call_up(cards[0]) as forged, call_up(cards[0]) as again:
            forged.sendall(other._proof(b"calls", 1, 0))
            other.close()
            found = connected(ranks, cards)
            assert forged.recv(1) == b""
            again.sendall(ranks[1]._proof(b"calls", 1, 0))  # what one could have overheard
            check(found, {0: [1], 1: [0]})


def test_a_rank_that_answers_at_none_of_its_addresses_is_named_with_them() -> None:
    with group({0: [1], 1: [0]}) as (ranks, cards):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()
        cards[0].addresses[:] = [nobody, ("::1", nobody[1])]
        (why,) = ranks[1].call(cards, in_s(WAIT_S)).values()
        assert f"127.0.0.1:{nobody[1]} (Connection refused)" in why
        assert f"[::1]:{nobody[1]} (" in why


def test_one_address_that_answers_is_enough() -> None:
    with group({0: [1], 1: [0]}) as (ranks, cards):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()
        cards[0].addresses.insert(0, nobody)
        cards[0].addresses.insert(0, ("192.0.2.1", 9))  # for documentation: no answer, or no way there
        check(connected(ranks, cards), {0: [1], 1: [0]})


def test_an_address_that_does_not_answer_is_given_up() -> None:
    with contextlib.ExitStack() as stack:
        ranks, cards = stack.enter_context(group({0: [1], 1: [0]}))
        full = stack.enter_context(unanswering())
        cards[0].addresses[:] = [full.getsockname()]
        assert ranks[1].call(cards, in_s(SHORT_S)) == {0: f"127.0.0.1:{full.getsockname()[1]} (no answer)"}


def test_the_loopback_address_of_another_machine_is_not_called() -> None:
    with group({0: [1], 1: [0]}) as (ranks, cards):
        cards[0].machine = "another"
        assert "no address that can be reached from another machine" in ranks[1].call(cards, in_s(WAIT_S))[0]
    four, six, far = ("127.0.1.1", 1), ("::1", 2), ("10.0.0.1", 3)
    assert addresses.worth_calling([four, six, far], "there", "here") == [far]
    for there, here in (("here", "here"), ("", "here"), ("there", "")):
        assert addresses.worth_calling([four, six, far], there, here) == [four, six, far]


def test_who_hangs_up_is_lost_and_who_is_somebody_else_too() -> None:
    for answer, why in ((b"", "it hung up"), (bytes(32), "somebody else")):
        with group({0: [1], 1: [0]}) as (ranks, cards), socket.create_server(("127.0.0.1", 0)) as stranger:
            cards[0].addresses[:] = [stranger.getsockname()]
            assert ranks[1].call(cards, in_s(WAIT_S)) == {}
            sock, _ = stranger.accept()
            assert len(sock.recv(100)) == dialling.PROOF_NBYTES
            sock.sendall(answer)
            sock.close()
            with pytest.raises(Lost, match=why) as caught:
                ranks[1].finish(in_s(WAIT_S))
            assert caught.value.peer == 0


def test_who_does_not_come_or_answer_is_late() -> None:
    with group(MESH) as (ranks, cards):
        assert ranks[1].call(cards, in_s(WAIT_S)) == {}
        assert ranks[2].call(cards, in_s(WAIT_S)) == {}
        with pytest.raises(Late) as caught:  # rank 2 has called, rank 3 has not, rank 0 is there and says nothing
            ranks[1].finish(in_s(SHORT_S))
        assert caught.value.peers == [0, 3]


def test_a_caller_that_has_died_is_taken_and_its_connection_tells() -> None:
    with group({0: [1], 1: [0]}) as (ranks, cards):
        assert ranks[1].call(cards, in_s(WAIT_S)) == {}
        ranks[1].close()
        assert ranks[0].call(cards, in_s(WAIT_S)) == {}
        (sock,) = ranks[0].finish(in_s(WAIT_S)).values()
        sock.setblocking(True)
        with sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_a_named_interface_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interfaces.VARIABLE, "no-such0")
    with group({0: [1], 1: [0]}) as (_, cards):
        assert cards[0].problem == "GLOO_SOCKET_IFNAME=no-such0 names no interface that is here and has an address"
        assert cards[1].problem is None, "it listens to nobody"
    monkeypatch.setenv(interfaces.VARIABLE, "no-such0,lo")
    assert "127.0.0.1" in addresses.candidates(None)


def test_a_named_label_of_an_interface_is_its_own_address() -> None:
    """gloo takes such a name too."""
    need()
    with narrow_host() as within:
        for change in (["link", "set", "lo", "up"], ["address", "add", "10.78.0.9/32", "dev", "lo", "label", "lo:9"]):
            subprocess.run([*within, "ip", *change], check=True)
        program = "from lazycast.backends._torch_addresses import candidates; print(*candidates(None))"
        for name, found in (("lo:9", "10.78.0.9"), ("lo:8", ""), ("lo:9,lo", "10.78.0.9 127.0.0.1")):
            env = {**os.environ, interfaces.VARIABLE: name}
            said = subprocess.run([*within, sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, check=True)
            assert said.stdout.decode().split("::1")[0].strip() == found


def test_without_a_name_it_is_the_host_names_address_and_the_way_to_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(interfaces.VARIABLE)
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert addresses.candidates(None) == []
    assert addresses.why_none() == "its host name 'no-such-host.invalid' does not resolve to an address of its own"
    assert addresses.candidates("127.0.0.1") == ["127.0.0.1"]
    assert addresses.candidates("no-such-store.invalid") == []
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    found = addresses.candidates("127.0.0.1")
    assert "127.0.0.1" in found
    assert len(found) == len(set(found)), "each once"


def test_an_address_that_cannot_be_bound_is_a_problem_if_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "candidates", lambda _: ["192.0.2.1"])
    with group({0: [1], 1: [0]}) as (_, cards):
        assert "it cannot listen at 192.0.2.1: " in str(cards[0].problem)
    monkeypatch.setattr(addresses, "candidates", lambda _: ["192.0.2.1", "127.0.0.1"])
    with group({0: [1], 1: [0]}) as (_, cards):
        assert (cards[0].problem, len(cards[0].addresses)) == (None, 1)


def test_addresses_of_version_six(monkeypatch: pytest.MonkeyPatch) -> None:
    if "::1" not in interfaces.six("lo"):
        pytest.skip("there is no IPv6 here")
    monkeypatch.setattr(addresses, "candidates", lambda _: ["::1"])
    with group(MESH) as (ranks, cards):
        assert addresses.text(cards[0].addresses).startswith("[::1]:")
        check(connected(ranks, cards), MESH)

"""The relay on a network that is a list: routes, chunks, pass-through, and messages that make no sense."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lazycast.net import tree, wire
from lazycast.net.backend import Context, Link, Sink
from lazycast.net.relay import Relay, Room
from lazycast.net.topology import Topology, place
from lazycast.net.wire import (
    AnyMessage,
    Cast,
    Chunk,
    Code,
    Failure,
    Gone,
    Need,
    Query,
    Read,
    Relayed,
    Report,
    Status,
    Verdict,
)

LOST = Failure("lost", 3, "h", "gone")


class FakeLink(Link):
    """Remembers what it was given to send; a `Network` moves it on."""

    def __init__(self, max_body_nbytes: int) -> None:
        self.max_body_nbytes = max_body_nbytes
        self.sent: deque[tuple[int, bytes, memoryview]] = deque()
        self.on_send: Callable[[], None] = lambda: None
        self.closed: list[float] = []
        self.closed_after_fork = False

    def send(self, peer: int, header: bytes, body: memoryview | None = None) -> None:
        self.on_send()
        body = memoryview(b"") if body is None else body
        assert body.nbytes <= self.max_body_nbytes
        assert 1 <= len(header) <= wire.MAX_HEADER_NBYTES
        self.sent.append((peer, header, body))

    def close(self, *, timeout_s: float) -> None:
        self.closed.append(timeout_s)

    def close_after_fork(self) -> None:
        self.closed_after_fork = True

    def messages(self) -> list[tuple[int, AnyMessage, bytes]]:
        """Take off what was sent, in readable form."""
        taken = [(peer, wire.decode(header), bytes(body)) for peer, header, body in self.sent]
        self.sent.clear()
        return taken


class FakeContext(Context):
    def __init__(self, link: FakeLink) -> None:
        self.link = link
        self.neighbours: list[int] | None = None
        self.during_connect: Callable[[Sink], None] = lambda _: None

    def exchange(self, blob: bytes, *, timeout_s: float) -> list[bytes]:
        raise NotImplementedError

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        assert isinstance(sink, Sink)
        self.neighbours = list(neighbours)
        self.during_connect(sink)
        return self.link

    def close(self) -> None:
        """It holds nothing."""


class Inbox:
    """A receiver."""

    def __init__(self) -> None:
        self.messages: list[tuple[AnyMessage, memoryview]] = []
        self.gone: list[tuple[int, str | None]] = []

    def on_message(self, message: AnyMessage, body: memoryview) -> None:
        self.messages.append((message, body))

    def on_neighbour_gone(self, peer: int, reason: str | None) -> None:
        self.gone.append((peer, reason))

    def plain(self) -> list[tuple[AnyMessage, bytes]]:
        return [(message, bytes(body)) for message, body in self.messages]


def alone(rank: int, size: int, root: int = 0) -> Topology:
    """Every rank on a host of its own."""
    return place(rank, root, [[r] for r in range(size)])


class Node:
    """One rank with its relay."""

    def __init__(self, rank: int, size: int, root: int = 0, max_body_nbytes: int = 100) -> None:
        self.rank = rank
        self.inbox, self.link = Inbox(), FakeLink(max_body_nbytes)
        self.relay = Relay(alone(rank, size, root), self.inbox, None)
        self.context = FakeContext(self.link)
        self.relay.connect(self.context, timeout_s=30.0, name="test")

    def receive(self, peer: int, message: AnyMessage | bytes, body: bytes | memoryview = b"") -> None:
        """What a link does with one message."""
        header = message if isinstance(message, bytes) else wire.encode(message)
        if len(body):
            where = self.relay.place(peer, header, len(body))
            assert where.nbytes == len(body)
            where[:] = body
        self.relay.deliver(peer, header)


class Network:
    """Links that keep the order of messages between two ranks, and nothing else."""

    def __init__(self, size: int, root: int, seed: int, max_body_nbytes: int = 100) -> None:
        self.nodes = [Node(rank, size, root, max_body_nbytes) for rank in range(size)]
        self._random = np.random.default_rng(seed)

    def settle(self) -> int:
        """Deliver everything, links taking turns at random; return how many messages that were."""
        count = 0
        while busy := [node for node in self.nodes if node.link.sent]:
            node = busy[self._random.integers(len(busy))]
            peer, header, body = node.link.sent.popleft()
            self.nodes[peer].receive(node.rank, header, body)
            count += 1
        return count


def body_of(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def cast(seq: int, nbytes: int) -> Cast:
    return Cast(seq, f"k{seq}", "every", True, None, nbytes)


CASES = [(size, root) for size in (2, 3, 4, 5, 8, 14) for root in {0, 1, size - 1}]


@pytest.mark.parametrize(("size", "root"), CASES)
def test_what_goes_down_reaches_every_other_rank_once_whole_and_in_order(size: int, root: int) -> None:
    network = Network(size, root, seed=size)
    sent: list[tuple[AnyMessage, bytes]] = []
    for seq, nbytes in enumerate((0, 1, 99, 100, 101, 200, 1234)):
        sent.append((cast(seq, nbytes), body_of(seq, nbytes)))
        sent.append((Code(100 + seq, f"i{seq}", nbytes), body_of(seq, nbytes)))
        sent.append((Verdict(seq), b""))
    for message, body in sent:
        network.nodes[root].relay.down(message, Room(memoryview(body)))
    network.settle()
    for node in network.nodes:
        assert node.inbox.plain() == ([] if node.rank == root else sent)


@pytest.mark.parametrize(("size", "root"), CASES)
def test_what_goes_up_reaches_the_root_alone(size: int, root: int) -> None:
    network = Network(size, root, seed=size)
    for node in network.nodes:
        node.relay.up(Report(node.rank, 1, True))
        node.relay.up(Read(node.rank, [1, 2]))
        node.relay.up(Need(node.rank, "i"))
        node.relay.up(Query(node.rank, 1, None, "k", 1.0))
    network.settle()
    for node in network.nodes:
        passed = [m for m, _ in node.inbox.messages if isinstance(m, Relayed)]
        way = alone(node.rank, size, root).way_up()
        assert sorted(m.by for m in passed) == sorted(way[:-1]), "a query leaves a trace at each rank that passes it on"
        assert len(node.inbox.messages) - len(passed) == (4 * size if node.rank == root else 0)
    told = [m for m, _ in network.nodes[root].inbox.messages]
    for rank in range(size):
        assert [type(m) for m in told if m.rank == rank] == [Report, Read, Need, Query]  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "root"), CASES)
def test_a_status_reaches_the_rank_it_names_alone(size: int, root: int) -> None:
    for to in set(range(size)) - {root}:
        network = Network(size, root, seed=to)
        network.nodes[root].relay.one(Status(to, 1, "agreeing", [root]))
        hops = network.settle()
        assert [node.rank for node in network.nodes if node.inbox.messages] == [to]
        assert hops == len(tree.path(to, size=size, root=root)) - 1


def test_news_of_the_gone_go_to_all_neighbours() -> None:
    node = Node(1, 8)  # parent 0, children 4, 5, 6
    node.relay.flood(Gone(3, LOST))
    assert [(peer, message) for peer, message, _ in node.link.messages()] == [(p, Gone(3, LOST)) for p in (0, 4, 5, 6)]
    node.receive(0, Gone(3, LOST))
    assert node.inbox.plain() == [(Gone(3, LOST), b"")]
    assert not node.link.sent, "the engine passes it on, if it is news"


def test_a_relay_connects_to_its_parent_and_children() -> None:
    assert Node(1, 8).context.neighbours == [0, 4, 5, 6]
    assert Node(0, 8).context.neighbours == [1, 2, 3]
    assert Node(7, 8).context.neighbours == [2]


# Chunks


def test_a_large_body_leaves_in_chunks_of_the_links_size() -> None:
    root, body = Node(0, 2), body_of(0, 250)
    root.relay.down(cast(7, 250), Room(memoryview(body)))
    assert root.link.messages() == [
        (1, cast(7, 250), body[:100]),
        (1, Chunk(7, 100, 100), body[100:200]),
        (1, Chunk(7, 200, 50), body[200:]),
    ]


def test_a_relay_passes_each_chunk_on_before_the_next_has_arrived() -> None:
    node, body = Node(1, 5), body_of(0, 250)  # rank 4 is its child
    parts: list[tuple[AnyMessage, bytes]] = [
        (cast(7, 250), body[:100]),
        (Chunk(7, 100, 100), body[100:200]),
        (Chunk(7, 200, 50), body[200:]),
    ]
    for number, (message, part) in enumerate(parts):
        assert node.inbox.messages == [], "not delivered before the last byte is in"
        node.receive(0, message, part)
        assert node.link.messages() == [(4, message, part)], f"part {number} is not passed on at once"
    assert node.inbox.plain() == [(cast(7, 250), body)]


def test_transfers_may_interleave() -> None:
    node = Node(4, 5)
    a, b = body_of(1, 300), body_of(2, 150)
    node.receive(1, cast(1, 300), a[:100])
    node.receive(1, Code(2, "i", 150), b[:100])
    node.receive(1, Chunk(1, 100, 100), a[100:200])
    node.receive(1, Verdict(9))
    node.receive(1, Chunk(2, 100, 50), b[100:])
    node.receive(1, Chunk(1, 200, 100), a[200:])
    assert node.inbox.plain() == [(Verdict(9), b""), (Code(2, "i", 150), b), (cast(1, 300), a)]


def test_messages_of_several_neighbours_may_interleave() -> None:
    node, body = Node(1, 5), body_of(1, 50)
    header = wire.encode(cast(1, 50))
    where = node.relay.place(0, header, 50)
    node.receive(4, Report(4, 1, False))  # while the parent's body is on its way
    where[:] = body
    node.relay.deliver(0, header)
    assert node.inbox.plain() == [(cast(1, 50), body)]
    assert [type(message) for _, message, _ in node.link.messages()] == [Report, Cast]


def test_nothing_overtakes_the_chunks_of_a_body() -> None:
    root, body = Node(0, 2), body_of(0, 50_000)
    about_to, done = threading.Event(), threading.Event()

    def other() -> None:
        about_to.set()
        root.relay.down(Verdict(8))
        done.set()

    thread = threading.Thread(target=other)

    def start_other() -> None:
        if not thread.ident:
            thread.start()
            assert about_to.wait(60)

    root.link.on_send = start_other
    root.relay.down(cast(7, 50_000), Room(memoryview(body)))
    assert done.wait(60)
    thread.join()
    kinds = [type(message) for _, message, _ in root.link.messages()]
    assert kinds == [Cast] + [Chunk] * 499 + [Verdict]


# Who owns the memory


def _memory(body: memoryview) -> Any:
    return np.frombuffer(body, np.uint8)


def test_a_leaf_gets_the_memory_into_which_the_body_was_received() -> None:
    node, header = Node(4, 5), wire.encode(cast(1, 80))
    where = node.relay.place(1, header, 80)
    node.relay.deliver(1, header)
    (_, body), *_ = node.inbox.messages
    assert np.shares_memory(_memory(body), _memory(where))
    assert _memory(body).ctypes.data % 64 == 0


def test_a_rank_with_children_gets_a_copy_since_the_links_still_read_the_original() -> None:
    node, sent = Node(1, 5), body_of(1, 80)
    node.receive(0, cast(1, 80), sent)
    (_, body), *_ = node.inbox.messages
    assert not body.readonly
    body[:] = bytes(80)  # what a user does with the value
    assert [part for _, _, part in node.link.messages()] == [sent]


# Messages that make no sense


BAD: dict[str, list[tuple[AnyMessage | bytes, bytes]]] = {
    "garbage": [(b"\x01garbage", b"")],
    "another version": [(bytes([wire.WIRE_VERSION + 1]) + wire.encode(Verdict(1))[1:], b"")],
    "a body for a message without one": [(Verdict(1), b"x")],
    "a body beyond what was announced": [(cast(1, 10), b"x" * 11)],
    "a body that was not announced": [(cast(1, 0), b"x")],
    "a chunk of nothing": [(Chunk(1, 100, 10), b"x" * 10)],
    "a chunk without a body of nothing": [(Chunk(1, 100, 10), b"")],
    "a chunk beyond the end": [(cast(1, 150), b"x" * 100), (Chunk(1, 100, 51), b"x" * 51)],
    "a chunk after the end": [(cast(1, 150), b"x" * 100), (Chunk(1, 150, 10), b"x" * 10)],
    "a cast whose body is missing": [(cast(1, 10), b"")],
    "a code whose body is missing": [(Code(1, "i", 10), b"")],
    "a chunk before the beginning": [(cast(1, 150), b"x" * 100), (Chunk(1, -50, 30), b"x" * 30)],
    "the same chunk twice": [(cast(1, 150), b"x" * 50), (Chunk(1, 50, 50), b"x" * 50), (Chunk(1, 50, 50), b"x" * 50)],
    "a chunk that leaves a gap": [(cast(1, 150), b"x" * 50), (Chunk(1, 100, 50), b"x" * 50)],
    "a negative size": [(cast(1, -10), b"x" * 10)],
    "a very negative size": [(cast(1, -1000), b"x" * 10)],
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("rank", [1, 4], ids=["with children", "leaf"])
def test_a_message_that_makes_no_sense_is_a_wire_error(name: str, rank: int) -> None:
    node = Node(rank, 5)
    above = tree.parent(rank, size=5, root=0)
    assert above is not None
    *fine, (message, body) = BAD[name]
    for good_message, good_body in fine:
        node.receive(above, good_message, good_body)
    with pytest.raises(wire.WireError):
        node.receive(above, message, body)
    assert node.inbox.messages == []


def test_a_neighbour_that_ends_in_the_middle_of_a_body_is_told_and_nothing_is_delivered() -> None:
    node = Node(4, 5)
    node.receive(1, cast(1, 150), b"x" * 100)
    node.relay.place(1, wire.encode(Chunk(1, 100, 50)), 50)
    node.relay.gone(1, "connection reset")
    assert node.inbox.gone == [(1, "connection reset")]
    assert node.inbox.messages == []


# Around it


def test_bytes_are_counted_with_headers_and_for_every_child() -> None:
    network = Network(5, 0, seed=0)
    network.nodes[0].relay.down(cast(1, 250), Room(memoryview(body_of(1, 250))))
    network.settle()
    headers = sum(len(wire.encode(m)) for m in (cast(1, 250), Chunk(1, 100, 100), Chunk(1, 200, 50)))
    sent = [node.relay.nbytes_sent for node in network.nodes]
    received = [node.relay.nbytes_received for node in network.nodes]
    assert sent == [3 * (headers + 250), headers + 250, 0, 0, 0]
    assert received == [0] + [headers + 250] * 4


def test_a_neighbour_may_send_before_connect_has_returned() -> None:
    inbox, link = Inbox(), FakeLink(100)
    relay, context = Relay(alone(1, 5), inbox, None), FakeContext(link)
    threads: list[threading.Thread] = []

    def deliver_early(sink: Sink) -> None:
        threads.append(threading.Thread(target=sink.deliver, args=(0, wire.encode(Verdict(1)))))
        threads[0].start()

    context.during_connect = deliver_early
    relay.connect(context, timeout_s=30.0, name="test")
    threads[0].join(60)
    assert inbox.plain() == [(Verdict(1), b"")]
    assert [(peer, message) for peer, message, _ in link.messages()] == [(4, Verdict(1))]


def test_closing_closes_the_link_and_is_fine_without_one() -> None:
    node = Node(1, 5)
    node.relay.close(timeout_s=60.0)
    node.relay.close_after_fork()
    assert node.link.closed == [pytest.approx(60.0, abs=30.0)]
    assert node.link.closed_after_fork
    unconnected = Relay(alone(1, 5), Inbox(), None)
    unconnected.close(timeout_s=1.0)
    unconnected.close_after_fork()


def test_a_sign_of_life_is_heard_and_goes_no_further() -> None:
    network = Network(5, 0, seed=1)
    relay = network.nodes[1].relay
    assert relay.away == (0, 4)
    connected_s = relay.heard_s[4]  # when it was constructed it had its say
    network.nodes[4].relay.beat()
    assert network.settle() == 1
    assert relay.heard_s[4] > connected_s
    assert all(not node.inbox.messages for node in network.nodes)


def test_every_part_of_a_body_is_a_sign_of_life() -> None:
    node = Node(1, 5)
    before = dict(node.relay.heard_s)
    node.relay.place(0, wire.encode(cast(1, 150)), 100)
    after = node.relay.heard_s
    assert [peer for peer in after if after[peer] != before[peer]] == [0]


def test_a_link_is_called_by_its_name_and_strangers_have_none() -> None:
    relay = Node(1, 5).relay
    assert (relay.link_to(0), relay.link_to(3)) == ("the backend's link", None)
    assert relay.pid_of(0) is None


def test_on_the_root_what_goes_up_is_received_at_once() -> None:
    root = Node(0, 5)
    root.relay.up(Report(0, 1, True))
    assert root.inbox.plain() == [(Report(0, 1, True), b"")]
    assert not root.link.sent

"""A lane on a link that only takes notes."""

from __future__ import annotations

import dataclasses
import gc
import queue
import signal
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lazycast.codec import pickling
from lazycast.codec.fingerprint import fingerprint
from lazycast.core import neighbours
from lazycast.core.arrival import Arrival
from lazycast.core.follower import FollowerLane
from lazycast.core.future import CastFuture
from lazycast.core.performer import Group, Result
from lazycast.core.root import RootLane
from lazycast.errors import CastTimeoutError, ClosedError, MaterializeError, PeerLostError, RemoteError, WouldBlockError
from lazycast.materialize.cores import Cores
from lazycast.net.backend import Link, Sink
from lazycast.net.relay import Room
from lazycast.net.topology import place
from lazycast.net.wire import (
    AnyMessage,
    Cast,
    Code,
    Drop,
    Failure,
    Gone,
    MaterializerRef,
    Need,
    Pass,
    Query,
    Read,
    Report,
    Silence,
    Status,
    Value,
    Verdict,
)
from lazycast.options import Options
from tests.unit.test_relay import FakeContext, FakeLink

RANK, VICTIM, SIZE = 3, 4, 5


def options() -> Options:
    return Options(
        materialize=None,
        root=0,
        name="default",
        placement="every",
        agree=True,
        values="private",
        trust="pickle",
        max_inflight=64,
        max_inflight_nbytes=1 << 30,
        timeout_s=30.0,
        warn_after_s=30.0,
        executor=None,
        arena_nbytes=1 << 20,
        shared_memory=False,
    )


def follower(link: FakeLink, hosts: list[list[int]] | None = None) -> FollowerLane:
    group = Group(RANK, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    hosts = hosts or [[r] for r in range(SIZE)]
    lane = FollowerLane(group, options(), FakeContext(link), place(RANK, 0, hosts), None)
    lane.start(timeout_s=30.0)
    return lane


def said(link: FakeLink, kind: type[AnyMessage]) -> AnyMessage:
    """Wait for a message that the rank sends."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for _, message, _ in link.messages():
            if isinstance(message, kind):
                return message
        time.sleep(0.001)
    raise AssertionError(f"no {kind.__name__} was sent")


def test_a_rank_reports_on_a_cast_that_fails_before_its_part_begins() -> None:
    """Or the root would keep it on its books for good."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    try:
        code = MaterializerRef("sha256:unknown", "fn")
        lane.on_message(Cast(1, None, "every", True, code, 0, 10), memoryview(b""))
        assert said(link, Need) == Need(RANK, "sha256:unknown")
        lane.on_message(Verdict(1, Failure("materialize", VICTIM, "h", "it failed")), memoryview(b""))
        assert said(link, Report) == Report(RANK, 1, False)
        lane.on_message(Code(2, "sha256:unknown", failure=Failure("encode", 0, "h", "no code")), memoryview(b""))
        with pytest.raises(MaterializeError, match="it failed"):
            lane.call(None, None, None, 30.0).result(30)
    finally:
        lane.engine.close(0.0)


def test_reads_that_one_message_does_not_hold_are_told_in_several() -> None:
    link = FakeLink(1 << 20)
    lane = follower(link)
    try:
        for seq in range(4500):
            lane._reads.add(seq, 1)
        lane.work()
        told = [message.seqs for _, message, _ in link.messages() if isinstance(message, Read)]
        assert [len(seqs) for seqs in told] == [2000, 2000, 500]
        assert [seq for seqs in told for seq in seqs] == list(range(4500))
    finally:
        lane.engine.close(0.0)


def test_a_rank_that_closes_after_a_loss_passes_the_loss_on_before_its_farewell() -> None:
    """Or others, who have not noticed the loss yet, would blame the one that closed."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    lane.on_neighbour_gone(VICTIM, "it ended without a farewell")  # on a host: no neighbour of ours in the tree
    assert link.messages() == []
    lane.engine.close(0.0)
    told = [message for _, message, _ in link.messages()]
    assert [(m.rank, m.failure.kind) for m in told if isinstance(m, Gone)] == [(VICTIM, "lost"), (RANK, "closed")]


def test_a_loss_that_another_lane_had_heard_of_is_passed_on_when_it_comes() -> None:
    """Or who said so, and closes next, is all that those further on hear of."""
    link = FakeLink(1 << 20)
    lane = follower(link, [[0], [1], [RANK], [VICTIM]])
    try:
        failure = Failure("lost", VICTIM, "h", "it ended without a farewell")
        lane.engine.lost[VICTIM] = Gone(VICTIM, failure)
        lane.hear_losses()
        assert link.messages() == []
        for _ in range(3):
            lane.on_message(Gone(VICTIM, failure), memoryview(b""))
        told = [message for _, message, _ in link.messages()]
        assert [(m.rank, m.failure.kind) for m in told if isinstance(m, Gone)] == [(VICTIM, "lost")]
    finally:
        lane.engine.close(0.0)


def test_a_rank_that_is_alone_on_its_host_waits_for_no_owner_and_keeps_nothing_of_a_cast() -> None:
    lane = follower(FakeLink(1 << 20))
    try:
        encoded = pickling.encode([3, 1, 2])
        body = bytearray(encoded.nbytes)
        encoded.write_into(memoryview(body))
        layout = encoded.layout
        fn = MaterializerRef("builtins:sorted", "sorted", ("builtins", "sorted"))
        cast = Cast(1, None, "shard", False, fn, encoded.nbytes, layout.stream_nbytes, layout.frames)
        lane.on_message(cast, memoryview(body))
        assert lane.call(None, None, None, 30.0).result(30) == [1, 2, 3]
        gc.collect()
        # Not isinstance: that asks every object for its class, and deprecated ones of torch answer with a warning.
        assert [thing for thing in gc.get_objects() if type(thing) is Arrival] == []
    finally:
        lane.engine.close(0.0)


@pytest.mark.parametrize("agree", [True, False])
def test_a_cast_fails_whose_owner_had_gone_when_it_came(agree: bool) -> None:
    """The root may not have known yet; nobody else would say that its value never comes."""
    link = FakeLink(1 << 20)
    lane = follower(link, [[0], [1], [2, RANK, VICTIM]])
    try:
        lane.on_neighbour_gone(VICTIM, None)
        cast = Cast(1, None, "shard", agree, MaterializerRef("builtins:len", "len", ("builtins", "len")), turn=2)
        lane.on_message(cast, memoryview(b""))
        future = lane.call(None, None, None, 30.0)
        if agree:
            report = said(link, Report)
            assert isinstance(report, Report)
            assert report.failure is not None
            assert (report.failure.kind, report.failure.rank) == ("closed", VICTIM)
            lane.on_message(Verdict(1, report.failure), memoryview(b""))
        with pytest.raises(ClosedError, match=f"rank {VICTIM} .h. has closed"):
            future.result(30)
    finally:
        lane.engine.close(0.0)


def test_an_owner_keeps_the_cause_of_its_failure_though_the_verdict_is_there_before_its_report() -> None:
    """Its peers learn of the failure first, and may be quicker to report it."""
    lane = follower(FakeLink(1 << 20), [[0], [1], [2, RANK, VICTIM]])

    def share(message: Value | Pass, room: Room | None = None) -> None:
        assert isinstance(message, Value)
        lane.on_message(Verdict(1, message.failure), memoryview(b""))

    lane.near.relay.share = share  # type: ignore[method-assign]
    try:
        encoded = pickling.encode("no number")
        body = bytearray(encoded.nbytes)
        encoded.write_into(memoryview(body))
        layout = encoded.layout
        fn = MaterializerRef("builtins:int", "int", ("builtins", "int"))
        cast = Cast(1, None, "shard", True, fn, encoded.nbytes, layout.stream_nbytes, layout.frames, turn=1)
        future = lane.call(None, None, None, 30.0)
        lane.on_message(cast, memoryview(body))
        exc = future.exception(60)
        assert isinstance(exc, MaterializeError)
        assert exc.rank == RANK
        assert isinstance(exc.__cause__, ValueError)
    finally:
        lane.engine.close(0.0)


@pytest.mark.parametrize(("closing", "kind"), [(True, "closed"), (False, "timeout")])
def test_a_call_that_is_given_up_before_its_turn_is_told_with_the_reason(closing: bool, kind: str) -> None:
    link = FakeLink(1 << 20)
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = RootLane(group, options(), FakeContext(link), place(0, 0, [[rank] for rank in range(SIZE)]), None)
    lane.start(timeout_s=30.0)
    lane.engine.thread.stop()  # the test does its work
    try:
        future = lane.call("payload", None, None, 30.0)
        ask = lane.asks.waits.waiting()[0]
        lane.engine.closing = closing
        lane.asks.settle_error(ask, ClosedError("given up here"))
        lane.work()
        cast = said(link, Cast)
        assert isinstance(cast, Cast)
        assert cast.failure is not None
        assert (cast.failure.kind, cast.failure.rank) == (kind, 0)
        assert future.done()
    finally:
        lane.engine.close(0.0)


def root_lane(link: FakeLink, hosts: list[list[int]] | None = None, **limits: Any) -> RootLane:
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    hosts = hosts or [[rank] for rank in range(SIZE)]
    lane = RootLane(group, dataclasses.replace(options(), **limits), FakeContext(link), place(0, 0, hosts), None)
    lane.start(timeout_s=30.0)
    return lane


def until_sent(link: FakeLink, seq: int) -> None:
    deadline_s = time.monotonic() + 60
    while not any(isinstance(message, Cast) and message.seq == seq for _, message, _ in link.messages()):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.mark.parametrize("agree", [True, False])
@pytest.mark.parametrize("limit", [{"max_inflight": 2}, {"max_inflight_nbytes": 1001}])
def test_the_root_has_room_until_a_limit_is_reached_and_again_when_the_slowest_rank_has_read(
    limit: dict[str, int], agree: bool
) -> None:
    link = FakeLink(1 << 20)
    lane = root_lane(link, agree=agree, **limit)
    try:
        for seq in (1, 2):
            assert lane.has_room()
            lane.call(bytes(600), None, None, 30.0, block=False)
            until_sent(link, seq)
        assert not lane.has_room()
        with pytest.raises(WouldBlockError):
            lane.call(bytes(600), None, None, 30.0, block=False)
        for rank in range(1, SIZE):
            assert not lane.has_room()
            lane.on_message(Read(rank, [1]), memoryview(b""))
        assert lane.has_room()
    finally:
        lane.engine.close(0.0)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_failure_that_overtakes_its_cast_is_what_its_call_gets(keyed: bool) -> None:
    """Nobody tells it again, so a cast that knows nothing of it would wait for a verdict that never comes."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    key = "k" if keyed else None
    try:
        future = lane.call(None, None, key, 30.0)
        lane.on_message(Verdict(1, Failure("lost", VICTIM, "h", "was lost")), memoryview(b""))
        unknown = MaterializerRef("sha256:unknown", "fn")
        lane.on_message(Cast(1, key, "every", True, unknown, 0, 10), memoryview(b""))
        assert future.done()
        error = future.exception(0)
        assert isinstance(error, PeerLostError)
        assert error.rank == VICTIM
        assert said(link, Report) == Report(RANK, 1, True)  # the root awaits it all the same
    finally:
        lane.engine.close(0.0)


def test_calls_that_wait_for_room_fail_as_soon_as_a_rank_has_closed() -> None:
    link = FakeLink(1 << 20)
    lane = root_lane(link, agree=False, max_inflight_nbytes=1000)
    lane.engine.thread.stop()  # the test does its work
    try:
        first, *waiting = [lane.call(bytes(1200), None, None, 30.0, block=False) for _ in range(3)]
        lane.work()
        assert first.result(30) == bytes(1200)
        assert [future.done() for future in waiting] == [False, False]
        lane.on_message(Gone(VICTIM, Failure("closed", VICTIM, "h", "has closed")), memoryview(b""))
        lane.work()
        for future in waiting:
            assert future.done()
            assert isinstance(future.exception(0), ClosedError)
    finally:
        lane.engine.close(0.0)


def test_nobody_waits_for_ranks_that_the_one_that_has_closed_passed_casts_on_to() -> None:
    link = FakeLink(1 << 20)
    lane = root_lane(link, [[0], list(range(1, SIZE))], agree=False, max_inflight=1)
    try:
        lane.call("unread", None, None, 30.0)
        until_sent(link, 1)
        assert not lane.has_room()
        lane.on_message(Gone(1, Failure("closed", 1, "h", "has closed")), memoryview(b""))
        assert lane.has_room()
        assert len(lane.admission.ledger.entries) == 0
    finally:
        lane.engine.close(0.0)


def test_an_owner_that_does_not_want_a_cast_passes_it_on_to_the_next_rank_of_its_host() -> None:
    """It has no payload to make it from."""
    lane = follower(FakeLink(1 << 20), [[0], [1], [2, RANK, VICTIM]])
    shared: queue.SimpleQueue[Value | Pass] = queue.SimpleQueue()
    lane.near.relay.share = lambda message, room=None: shared.put(message)  # type: ignore[method-assign]
    try:
        fn = MaterializerRef("builtins:len", "len", ("builtins", "len"))
        cast = Cast(7, "k", "shard", False, fn, fingerprint=fingerprint([1, 2]), turn=1)
        lane.on_message(cast, memoryview(b""))
        lane.discard("k")
        message = shared.get(timeout=60)
        assert isinstance(message, Pass)
        assert (message.rank, message.seq, message.to) == (RANK, 7, VICTIM)
    finally:
        lane.engine.close(0.0)


def test_closing_waits_for_calls_that_are_pending() -> None:
    lane = follower(FakeLink(1 << 20))
    future = lane.call(None, None, None, 60.0)
    closing = threading.Thread(target=lane.engine.close, args=(60.0,), daemon=True)
    closing.start()
    closing.join(0.3)
    assert closing.is_alive()
    refused = Cast(1, None, "every", False, None, failure=Failure("refused", 0, "h", "what it waited for"))
    lane.on_message(refused, memoryview(b""))
    with pytest.raises(RemoteError, match="what it waited for"):
        future.result(60)
    closing.join(60)
    assert not closing.is_alive()


def test_casts_that_wait_for_code_are_taken_under_the_lock() -> None:
    """Else one that begins to wait at that moment could be put where nobody looks any more."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    making = lane.casts.making
    begun = threading.Event()
    unknown = MaterializerRef("sha256:unknown", "fn")
    try:
        lane.on_message(Cast(1, None, "every", True, unknown, 0, 10), memoryview(b""))
        said(link, Need)
        code = Code(2, "sha256:unknown", failure=Failure("encode", 0, "h", "no code"))

        def learn() -> None:
            begun.set()
            lane.on_message(code, memoryview(b""))

        learning = threading.Thread(target=learn, daemon=True)
        with lane.engine.lock:
            learning.start()
            assert begun.wait(60)
            learning.join(0.2)
            assert list(making._parked) == ["sha256:unknown"]
        learning.join(60)
        assert not making._parked
        lane.on_message(Verdict(1, code.failure), memoryview(b""))
        with pytest.raises(RemoteError, match="no code"):
            lane.call(None, None, None, 30.0).result(30)
    finally:
        lane.engine.close(0.0)


class Unreachable(FakeContext):
    """Some rank does not connect."""

    def connect(self, neighbours: Sequence[int], sink: Sink, *, timeout_s: float) -> Link:
        raise CastTimeoutError("not connected in time", rank=1)


def unconnected(rank: int) -> RootLane | FollowerLane:
    kind = RootLane if rank == 0 else FollowerLane
    group = Group(rank, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    hosts = [[r] for r in range(SIZE)]
    return kind(group, options(), Unreachable(FakeLink(1 << 20)), place(rank, 0, hosts), None)


@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("rank", [0, RANK])
def test_a_lane_that_could_not_connect_closes_at_once(rank: int, starts: bool) -> None:
    lane = unconnected(rank)
    if starts:
        with pytest.raises(CastTimeoutError, match="not connected in time"):
            lane.start(timeout_s=0.1)
    closing = threading.Thread(target=lane.engine.close, args=(0.0,), daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert lane.engine.closed.is_set()


def test_what_was_dropped_is_told_before_the_root_closes() -> None:
    link = FakeLink(1 << 20)
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = RootLane(group, options(), FakeContext(link), place(0, 0, [[r] for r in range(SIZE)]), None)
    lane.start(timeout_s=30.0)
    lane.engine.thread.stop()  # nobody else tells of it
    lane.admission.dropped.append(7)
    lane.engine.close(1.0)
    assert said(link, Drop) == Drop(7)


def test_an_interrupt_while_a_call_is_made_that_has_to_wait_for_room_leaves_its_cast_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts, so it is sent, if only as a failure: else the ranks would be out of step, and later calls stuck."""
    link = FakeLink(1 << 20)
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = RootLane(group, options(), FakeContext(link), place(0, 0, [[r] for r in range(SIZE)]), None)
    lane.start(timeout_s=30.0)
    has_room = lane.admission.window.has_room

    def interrupted() -> bool:
        monkeypatch.setattr(lane.admission.window, "has_room", has_room)
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(lane.admission.window, "has_room", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            lane.call(1, None, None, 30.0)
        cast = said(link, Cast)
        assert isinstance(cast, Cast)
        assert cast.failure is not None
        assert cast.failure.kind == "refused"
        assert cast.seq == 1
        assert lane.engine.looks.stats().pending == 0
    finally:
        lane.engine.close(0.0)


def test_an_answer_to_a_query_fits_into_a_header_though_thousands_are_silent() -> None:
    size = 4000
    link = FakeLink(1 << 20)  # which takes no header that is too large
    group = Group(0, size, 0, ["h"] * size, [Cores([0])] * size)
    lane = RootLane(group, options(), FakeContext(link), place(0, 0, [[0], list(range(1, size))]), None)
    lane.start(timeout_s=30.0)
    try:
        lane.on_message(Query(1, 7, 1, None, 0.1), memoryview(b""))
        statuses: list[Status] = []
        deadline_s = time.monotonic() + 60
        while len(statuses) < 2:
            statuses += [message for _, message, _ in link.messages() if isinstance(message, Status)]
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert [silence.rank for silence in statuses[1].silent][:2] == [1, 2]
    finally:
        lane.engine.close(0.0)


def test_a_neighbour_that_ends_while_others_connect_is_not_called_silent_later() -> None:
    def ends(sink: Sink) -> None:
        listener = threading.Thread(target=sink.gone, args=(0, None), daemon=True)
        listener.start()
        listener.join(0.2)  # it waits for the others to be connected before it passes this on

    context = FakeContext(FakeLink(1 << 20))
    context.during_connect = ends
    group = Group(RANK, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = FollowerLane(group, options(), context, place(RANK, 0, [[r] for r in range(SIZE)]), None)
    lane.start(timeout_s=30.0)
    try:
        heartbeat = lane.near._heartbeat
        assert heartbeat is not None
        turns = [heartbeat.turn(time.monotonic() + later_s, {}) for later_s in range(6, 60, 6)]
        assert [silent for turn in turns for silent in turn.silent] == []
    finally:
        lane.engine.close(0.0)


def test_a_call_made_after_a_loss_names_it_though_somebody_closes_at_that_moment() -> None:
    lane = follower(FakeLink(1 << 20))
    try:
        lane.on_message(Gone(VICTIM, Failure("lost", VICTIM, "h", "was lost")), memoryview(b""))
        with lane.engine.lock:  # as far as a call had come when the news of the root's end arrived
            ask = lane.asks.make_call("later", 30.0, time.monotonic(), "broadcast")
        lane.on_message(Gone(0, Failure("closed", 0, "h", "has closed")), memoryview(b""))
        error = ask.exception(60)
        assert isinstance(error, PeerLostError)
        assert error.rank == VICTIM
    finally:
        lane.engine.close(0.0)


def test_a_cast_that_comes_after_a_loss_meets_no_later_call() -> None:
    """The call it was meant for has failed, and is forgotten: the next one would get another request's ending."""
    lane = follower(FakeLink(1 << 20))
    try:
        lane.on_message(Gone(VICTIM, Failure("lost", VICTIM, "h", "was lost")), memoryview(b""))
        first = lane.call(None, None, None, 30.0)
        refused = Cast(1, None, "every", False, None, failure=Failure("refused", 0, "h", "meant for the first"))
        lane.on_message(refused, memoryview(b""))
        second = lane.call(None, None, None, 30.0)
        for future in (first, second):
            with pytest.raises(PeerLostError):
                future.result(30)
        assert lane.engine.looks.stats().unasked == 0
    finally:
        lane.engine.close(0.0)


def test_an_interrupt_when_a_follower_asks_for_what_has_come_leaves_neither_its_part_nor_its_report_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part of a replicated cast begins in the thread of whoever asks: without it the root waits for ever."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    admitted = lane.matching._join

    def interrupted(ask: CastFuture[Any], arrival: Arrival) -> None:
        admitted(ask, arrival)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lane.matching, "_join", interrupted)
    try:
        mark = fingerprint([1, 2])
        lane.on_message(Cast(1, None, "every", True, None, fingerprint=mark), memoryview(b""))
        with pytest.raises(KeyboardInterrupt):
            lane.call([1, 2], None, None, 30.0)
        report = said(link, Report)
        assert isinstance(report, Report)
        assert (report.seq, report.read) == (1, True)
    finally:
        lane.engine.close(0.0)


def test_an_interrupt_when_a_follower_discards_a_cast_leaves_no_report_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink(1 << 20)
    lane = follower(link)
    local_done = lane.casts.done

    def interrupted(arrival: Arrival, result: Result) -> None:
        signal.raise_signal(signal.SIGINT)
        local_done(arrival, result)

    monkeypatch.setattr(lane.casts, "done", interrupted)
    try:
        lane.on_message(Cast(1, "k", "every", True, None, fingerprint=fingerprint([1, 2])), memoryview(b""))
        with pytest.raises(KeyboardInterrupt):
            lane.discard("k")
        assert said(link, Report) == Report(RANK, 1, True)
    finally:
        lane.engine.close(0.0)


def test_a_call_of_a_follower_that_is_interrupted_counts_once_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half made, it would have its number but no place in line: the rank would be out of step from then on."""
    link = FakeLink(1 << 20)
    lane = follower(link)
    add = lane.asks.waits.add

    def interrupted(ask: CastFuture[Any]) -> bool:
        monkeypatch.setattr(lane.asks.waits, "add", add)
        signal.raise_signal(signal.SIGINT)
        return add(ask)

    monkeypatch.setattr(lane.asks.waits, "add", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            lane.call(None, None, None, 30.0)
        second = lane.call(None, None, None, 30.0)
        for seq in (1, 2):
            failure = Failure("refused", 0, "h", f"the failure of cast {seq}")
            lane.on_message(Cast(seq, None, "every", False, None, failure=failure), memoryview(b""))
        with pytest.raises(RemoteError, match="the failure of cast 2"):
            second.result(30)
    finally:
        lane.engine.close(0.0)


@pytest.mark.parametrize("rank", [0, RANK])
def test_why_a_rank_is_silent_is_asked_of_the_kernel_without_the_lock(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading /proc of a process that is out of memory can take long, and every cast passes by the lock."""
    kind = RootLane if rank == 0 else FollowerLane
    group = Group(rank, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    link = FakeLink(1 << 20)
    lane = kind(group, options(), FakeContext(link), place(rank, 0, [[r] for r in range(SIZE)]), None)
    lane.start(timeout_s=30.0)
    lane.engine.thread.stop()  # nobody else takes the lock
    locked: list[bool] = []

    def asked(pid: int | None) -> str:
        locked.append(lane.engine.lock._is_owned())
        return "known to the kernel"

    monkeypatch.setattr(neighbours, "word", asked)
    monkeypatch.setattr(lane.near, "silences", lambda ask: (Silence(VICTIM, 1.0),))
    try:
        lane.call(1, None, "waits", 60.0)
        assert "known to the kernel" in lane.asks.situation(lane.asks.waits.waiting()[0]).text()
        assert "known to the kernel" in lane.engine.looks.dump()
        if isinstance(lane, RootLane):
            monkeypatch.setattr(lane.admission.window, "has_room", lambda: False)
            with pytest.raises(CastTimeoutError, match="known to the kernel"):
                lane.call(1, None, "held back", 0.01)
        assert locked
        assert not any(locked)
    finally:
        lane.engine.close(0.0)


def test_what_comes_of_a_cast_after_a_loss_is_not_kept() -> None:
    """Its cast is not taken any more, so nothing would come for it."""
    lane = follower(FakeLink(1 << 20))
    try:
        failure = Failure("lost", VICTIM, "h", "was lost")
        lane.on_message(Verdict(1, failure), memoryview(b""))
        lane.on_message(Gone(VICTIM, failure), memoryview(b""))
        lane.on_message(Verdict(2, failure), memoryview(b""))
        assert lane._early_verdicts == {}
    finally:
        lane.engine.close(0.0)


def test_the_root_materializes_nothing_for_a_call_that_was_given_up_before_its_turn() -> None:
    link = FakeLink(1 << 20)
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    where = place(0, 0, [[rank] for rank in range(SIZE)])
    lane = RootLane(group, dataclasses.replace(options(), placement="root"), FakeContext(link), where, None)
    lane.start(timeout_s=30.0)
    lane.engine.thread.stop()  # the test does its work
    made: list[str] = []
    try:
        lane.call("given up", made.append, None, 30.0)
        lane.asks.settle_error(lane.asks.waits.waiting()[0], CastTimeoutError("too late"))
        lane.call("wanted", made.append, None, 30.0)
        lane.work()
        cast = said(link, Cast)
        assert isinstance(cast, Cast)
        assert cast.failure is not None
        assert (cast.seq, cast.failure.kind) == (1, "timeout")
        deadline_s = time.monotonic() + 60
        while not made:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        assert made == ["wanted"]
    finally:
        lane.engine.close(0.0)


def test_an_interrupt_while_a_call_is_cancelled_leaves_no_future_that_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = follower(FakeLink(1 << 20))
    take = lane.asks.take

    def interrupted(ask: CastFuture[Any], *, cancelled: bool) -> bool:
        taken = take(ask, cancelled=cancelled)
        signal.raise_signal(signal.SIGINT)
        return taken

    monkeypatch.setattr(lane.asks, "take", interrupted)
    try:
        future = lane.call(None, None, None, 30.0)
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
        assert future.cancelled()
    finally:
        monkeypatch.undo()
        lane.engine.close(0.0)


def test_a_trace_says_how_a_call_ends_that_is_cancelled_or_fails() -> None:
    lane = follower(FakeLink(1 << 20))
    traced: list[tuple[str, int]] = []
    tracer: Any = SimpleNamespace(
        took=lambda what, *_, call=0, **__: traced.append((what, call)),
        happened=lambda what, *_, call=0, **__: traced.append((what, call)),
        stop=lambda: None,
    )
    lane.engine.tracer = tracer
    try:
        assert lane.call(None, None, None, 30.0).cancel()
        assert traced == [("total", 1)]
        lane.call(None, None, None, 30.0)
        lane.asks.settle_error(lane.asks.waits.waiting()[0], ClosedError("given up here"))
        assert traced[1:] == [("total", 2), ("failed", 2)]
    finally:
        lane.engine.close(0.0)


def test_the_root_keeps_nothing_that_is_said_of_a_cast_that_it_has_not_sent() -> None:
    group = Group(0, SIZE, 0, ["h"] * SIZE, [Cores([0])] * SIZE)
    lane = RootLane(group, options(), FakeContext(FakeLink(1 << 20)), place(0, 0, [list(range(SIZE))]), None)
    lane.start(timeout_s=30.0)
    try:
        lane.on_message(Value(1, 99), memoryview(b""))
        assert len(lane.casts.making.awaited) == 0
    finally:
        lane.engine.close(0.0)

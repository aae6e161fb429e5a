"""A rank's part of a cast, on a relay that only takes notes: stages, sharing, what is passed in and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import astuple

from lazycast.codec import pickling
from lazycast.codec.fingerprint import fingerprint
from lazycast.codec.pickling import Layout, allocate
from lazycast.codec.trust import EVERYTHING
from lazycast.core.arrival import Arrival, Material, Own
from lazycast.core.own_part import OwnPart, Stages
from lazycast.core.performer import Group, Performer, Result
from lazycast.materialize.cores import Cores
from lazycast.materialize.materializers import Shipper
from lazycast.missing import MISSING
from lazycast.net.relay import Relay, Room
from lazycast.net.wire import Cast, Cost, Failure, Pass, Value

RANK = 1
LOST = Failure("materialize", 2, "b", "materializer 'x' raised on rank 2")


class FakeRelay:
    """Remembers what was shared; has as much memory as it is told."""

    def __init__(self) -> None:
        self.shared: list[tuple[Value, memoryview]] = []
        self.has_room = True

    def room(self, nbytes: int, *, host: bool = False) -> Room:
        assert host, "a value is for this host"
        if not self.has_room:
            raise MemoryError("the arena is full")
        return Room(allocate(nbytes))

    def share(self, message: Value | Pass, room: Room | None = None) -> None:
        assert isinstance(message, Value)
        self.shared.append((message, room.view if room is not None else memoryview(b"")))


class Subject:
    """What rank 1 does of casts, with what they have said."""

    def __init__(self, *, readonly: bool = False) -> None:
        group = Group(RANK, 3, 0, ["h"] * 3, [Cores([0])] * 3)
        self.relay = FakeRelay()
        self.performer = Performer(object(), group, None, "unit-own-part")
        self.took: list[str] = []
        self.own_part = OwnPart(
            RANK,
            self.performer,
            cast(Relay, self.relay),
            EVERYTHING,
            readonly=readonly,
            took=lambda what, since_s, of: self.took.append(what),
        )

    def run(self, material: Material, stages: Stages, *, owner: bool = False, **message: Any) -> tuple[Result, Cost]:
        return self.own_part.run(cast_of(**message), material, stages, Value(RANK, 7, 2) if owner else None)

    def only(self) -> tuple[Value, memoryview]:
        (shared,) = self.relay.shared
        return shared


@pytest.fixture
def subject() -> Iterator[Subject]:
    one = Subject()
    yield one
    one.performer.stop()


def cast_of(payload: Any = MISSING, **more: Any) -> Cast:
    if payload is MISSING:
        return Cast(7, None, "shard", True, None, **more)
    encoded = pickling.encode(payload)
    layout = encoded.layout
    return Cast(7, None, "shard", True, None, encoded.nbytes, layout.stream_nbytes, layout.frames, **more)


def body_of(obj: Any) -> memoryview:
    encoded = pickling.encode(obj)
    body = allocate(encoded.nbytes)
    encoded.write_into(body)
    return body


def material(
    payload: Any = MISSING, own: Own | None = None, shared: tuple[Value, memoryview] | None = None
) -> Material:
    return Material(None if payload is MISSING else body_of(payload), own, shared)


def value_with(obj: Any) -> tuple[Value, memoryview]:
    encoded = pickling.encode(obj)
    return Value(2, 7, 0, encoded.nbytes, encoded.layout.stream_nbytes, encoded.layout.frames), body_of(obj)


def decoded(shared: tuple[Value, memoryview]) -> Any:
    message, body = shared
    return pickling.decode(body, Layout(message.stream_nbytes, message.frames))


class Counted:
    """A stage that counts its runs."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn, self.runs = fn, 0

    def __call__(self, *args: Any) -> Any:
        self.runs += 1
        return self.fn(*args)


def double(payload: Any) -> Any:
    return payload * 2


def with_hint(payload: Any, hint: Any) -> Any:
    return payload, hint


def raises(*args: Any) -> Any:
    raise ValueError("bad payload")


def locked(payload: Any) -> Any:
    return payload, threading.Lock()


class NotRebuilt:
    def __reduce__(self) -> Any:
        return raises, ()


# The owner


def test_an_owner_shares_once_before_it_has_its_value(subject: Subject) -> None:
    array = np.arange(1000)
    result, cost = subject.run(material(array), Stages(double, None), owner=True, payload=array)
    message, body = subject.only()
    assert (message.rank, message.seq, message.passes, message.failure, message.unshared) == (RANK, 7, 2, None, None)
    assert message.nbytes == body.nbytes == cost.shared_nbytes
    assert np.array_equal(decoded(subject.only()), array * 2)
    result.value[:] = 0  # what it does to its own is its own
    assert np.array_equal(decoded(subject.only()), array * 2)
    assert subject.took == ["decode", "materialize", "share"]
    assert cost.materialize_s >= 0
    assert cost.unshared is None


def test_another_rank_shares_nothing(subject: Subject) -> None:
    result, cost = subject.run(material(3), Stages(double, None), payload=3)
    assert (result.value, subject.relay.shared, cost.shared_nbytes) == (6, [], 0)


def test_an_owner_of_two_stages_shares_the_hint_alone(subject: Subject) -> None:
    result, _ = subject.run(material(3), Stages(double, with_hint), owner=True, payload=3)
    assert result.value == (3, 6)
    assert decoded(subject.only()) == 6


def test_a_value_that_does_not_pickle_is_the_owners_all_the_same(subject: Subject) -> None:
    result, cost = subject.run(material(3), Stages(locked, None), owner=True, payload=3)
    assert result.failure is None
    assert result.value[0] == 3
    message, body = subject.only()
    assert (message.failure, body.nbytes) == (None, 0)
    assert message.unshared is not None
    assert "rank 1 could not share its value: CannotEncode" in message.unshared
    assert cost.unshared == message.unshared
    assert "share" not in subject.took


def test_a_value_that_does_not_fit_is_not_shared(subject: Subject) -> None:
    subject.relay.has_room = False
    result, cost = subject.run(material(20_000), Stages(bytes, None), owner=True, payload=20_000)
    assert result.value == bytes(20_000)
    assert (
        cost.unshared
        == subject.only()[0].unshared
        == ("rank 1 could not share its value: MemoryError: the arena is full")
    )


FAILING = {
    "the materializer": (3, Stages(raises, None), "materialize"),
    "the first stage": (3, Stages(raises, with_hint), "materialize"),
    "decoding": (NotRebuilt(), Stages(double, None), "decode"),
}


@pytest.mark.parametrize(("payload", "stages", "kind"), FAILING.values(), ids=FAILING)
def test_an_owner_that_fails_tells_its_host_once(subject: Subject, payload: Any, stages: Stages, kind: str) -> None:
    result, cost = subject.run(material(payload), stages, owner=True, payload=payload)
    assert result.failure is not None
    assert (result.failure.kind, result.failure.rank) == (kind, RANK)
    assert isinstance(result.cause, ValueError)
    message, _ = subject.only()
    assert (message.failure, message.unshared) == (result.failure, None)
    assert cost.unshared is None


def test_an_owner_whose_second_stage_fails_has_shared_the_hint(subject: Subject) -> None:
    result, _ = subject.run(material(3), Stages(double, raises), owner=True, payload=3)
    assert result.failure is not None
    assert subject.only()[0].failure is None
    assert decoded(subject.only()) == 6


def test_an_owner_of_a_cast_that_has_failed_already_tells_its_host_all_the_same(subject: Subject) -> None:
    result, cost = subject.run(material(), Stages(double, None), owner=True, payload=3)
    assert result == Result()
    assert subject.only()[0].unshared == "the cast had failed already"
    assert cost.unshared is None, "this is no value that could not be shared"


# Its peers


def test_a_peer_takes_the_owners_value_and_runs_nothing(subject: Subject) -> None:
    stage = Counted(double)
    result, cost = subject.run(material(3, shared=value_with(6)), Stages(stage, None), payload=3)
    assert (result.value, stage.runs, cost.materialize_s) == (6, 0, 0.0)


def test_a_peer_takes_the_hint_and_finishes_on_its_own_payload(subject: Subject) -> None:
    stage = Counted(double)
    result, _ = subject.run(material([3], shared=value_with("hint")), Stages(stage, with_hint), payload=[3])
    assert (result.value, stage.runs) == (([3], "hint"), 0)


@pytest.mark.parametrize("finish", [None, with_hint], ids=["one stage", "two"])
def test_a_peer_makes_its_own_if_the_owner_could_not_share(subject: Subject, finish: Any) -> None:
    shared = Value(2, 7, unshared="a lock"), memoryview(b"")
    result, cost = subject.run(material(3, shared=shared), Stages(double, finish), payload=3)
    assert result.value == (6 if finish is None else (3, 6))
    assert cost.unshared is None, "that is the owner's to say"
    assert subject.relay.shared == []


def test_a_peer_makes_its_own_if_it_cannot_rebuild_what_was_shared(subject: Subject) -> None:
    result, cost = subject.run(material(3, shared=value_with(NotRebuilt())), Stages(double, None), payload=3)
    assert result.value == 6
    assert cost.unshared is not None
    assert "could not be decoded" in cost.unshared


def test_a_peer_fails_as_its_owner_did(subject: Subject) -> None:
    stage = Counted(double)
    shared = Value(2, 7, failure=LOST), memoryview(b"")
    result, _ = subject.run(material(3, shared=shared), Stages(stage, None), payload=3)
    assert (result.failure, stage.runs) == (LOST, 0)


def test_readonly_values_refuse_to_be_written_to() -> None:
    subject = Subject(readonly=True)
    array = np.arange(1000)
    result, _ = subject.run(material(0, shared=value_with(array)), Stages(double, None), payload=0)
    with pytest.raises(ValueError, match="read-only"):
        result.value[0] = 1
    subject.performer.stop()


# Payloads of this rank's own


def test_a_replicated_payload_is_used_as_it_is(subject: Subject) -> None:
    payload = {"x": np.ones(10)}
    result, _ = subject.run(
        material(own=Own(payload)), Stages(len, with_hint), owner=True, fingerprint=fingerprint(payload)
    )
    assert result.value[0] is payload
    assert decoded(subject.only()) == 1


@pytest.mark.parametrize(
    ("payload", "text"), [("another", "not the root's"), (MISSING, "has passed no payload")], ids=["another", "none"]
)
@pytest.mark.parametrize("owner", [True, False], ids=["owner", "peer"])
def test_a_payload_that_is_not_the_roots_fails_before_anything_runs(
    subject: Subject, payload: Any, text: str, owner: bool
) -> None:
    stage = Counted(double)
    shared = None if owner else value_with("value")
    result, _ = subject.run(
        material(own=Own(payload), shared=shared), Stages(stage, None), owner=owner, fingerprint=fingerprint("the one")
    )
    assert result.failure is not None
    assert (result.failure.kind, result.failure.rank, stage.runs) == ("mismatch", RANK, 0)
    assert text in result.failure.message
    assert [message.failure for message, _ in subject.relay.shared] == [result.failure] * owner


def test_a_payload_that_cannot_be_looked_at_is_a_mismatch(subject: Subject) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no attributes today")

        __dict__ = property(raises)  # type: ignore[assignment]

    result, _ = subject.run(material(own=Own(Broken())), Stages(double, None), fingerprint=b"f" * 16)
    assert result.failure is not None
    assert result.failure.kind == "mismatch"


def test_what_the_root_has_prepared_is_finished_on_the_own_payload(subject: Subject) -> None:
    payload = [1]
    own, sent = Own(payload), {"fingerprint": fingerprint(payload)}
    result, _ = subject.run(material("hint", own=own), Stages(None, with_hint), payload="hint", **sent)
    assert result.value == ([1], "hint")
    assert result.value[0] is payload


def test_payload_and_hint_that_travel_together_stay_together(subject: Subject) -> None:
    array = np.ones(100)
    result, _ = subject.run(material(({"x": array}, array)), Stages(None, with_hint), payload=({"x": array}, array))
    payload, hint = result.value
    assert payload["x"] is hint


def test_the_root_needs_nothing_from_the_wire(subject: Subject) -> None:
    payload, stage = [1], Counted(len)
    own = Own(payload, of_root=True, prepare=stage, finish=with_hint)
    arrival = Arrival(cast_of(payload), body_of("never looked at"), own=own)
    stages = subject.own_part.stages(arrival)
    assert stages == Stages(stage, with_hint)
    result, _ = subject.own_part.run(arrival.message, arrival.take(), stages, None)
    assert result.value[0] is payload
    own = Own(payload, of_root=True, finish=with_hint, hint="hint")
    result, _ = subject.run(material(own=own), Stages(None, with_hint), payload=payload)
    assert result.value == ([1], "hint")
    assert stage.runs == 1
    assert "decode" not in subject.took


def test_other_ranks_load_the_stages_that_the_cast_names(subject: Subject) -> None:
    ref, finish, _ = astuple(Shipper().ship(raises))
    assert finish is None
    assert subject.own_part.stages(Arrival(Cast(7, None, "shard", True, ref), None)) == Stages(raises, None)
    assert subject.own_part.stages(Arrival(Cast(7, None, "root", True, None, finish=ref), None)) == Stages(None, raises)
    assert subject.own_part.stages(Arrival(cast_of(3), None, own=Own(3))) == Stages(None, None)


def test_taking_a_part_leaves_nothing_on_the_arrival() -> None:
    arrival = Arrival(cast_of(3), body_of(3), own=Own(3), shared=value_with(3))
    taken = arrival.take()
    assert taken.body is not None
    assert (arrival.body, arrival.own, arrival.shared) == (None, None, None)


def test_without_a_materializer_the_value_is_the_payload(subject: Subject) -> None:
    assert subject.run(material([3]), Stages(None, None), payload=[3])[0].value == [3]
    result, _ = subject.run(material(), Stages(None, None), payload=[3])
    assert result == Result(), "the verdict was a failure, and its memory is gone"

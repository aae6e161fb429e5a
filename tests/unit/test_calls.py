"""The root's queue of calls against a naive model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lazycast.core.calls import Call, CallPhase, Calls
from lazycast.core.future import CastFuture
from lazycast.net.wire import Failure, Key

FAILED = Failure("refused", 0, "h", "no")


def _call(seq: int, key: Key | None, failure: Failure | None = None) -> Call:
    asks: Any = SimpleNamespace(root=0)
    return Call(seq, key, CastFuture(asks, key, number=seq), failure=failure)


def _send(calls: Calls, *, has_room: bool = True) -> int | None:
    call = calls.next_to_send(has_room=has_room)
    if call is None:
        return None
    calls.sent(call)
    return call.seq


def test_calls_begin_in_the_order_they_were_made() -> None:
    calls = Calls()
    for seq, key in enumerate(("a", None, "a", "b")):
        calls.enter(_call(seq, key))
    assert [call.seq for call in calls.new] == [0, 1, 2, 3]
    assert calls.entered == 4


def test_a_call_that_is_held_has_its_place_and_does_not_begin() -> None:
    calls = Calls()
    held, later = _call(1, "a"), _call(2, "a")
    calls.hold(held)
    calls.enter(later)
    calls.make_ready(later)
    assert list(calls.new) == [later]
    assert calls.first("a") is held
    assert _send(calls) is None
    calls.enter(held)
    calls.make_ready(held)
    assert [_send(calls), _send(calls)] == [1, 2]


def test_a_slow_call_holds_up_its_own_key_only() -> None:
    calls = Calls()
    slow, same_key, other = _call(1, "a"), _call(2, "a"), _call(3, "b")
    for call in (slow, same_key, other):
        calls.enter(call)
    calls.make_ready(same_key)
    assert _send(calls) is None
    calls.make_ready(other)
    assert _send(calls) == 3
    calls.make_ready(slow)
    assert [_send(calls), _send(calls), _send(calls)] == [1, 2, None]
    assert calls.entered == 0


def test_without_room_only_failures_are_sent() -> None:
    calls = Calls()
    value, failed = _call(1, "a"), _call(2, "b", FAILED)
    for call in (failed, value):
        calls.enter(call)
        calls.make_ready(call)
    assert _send(calls, has_room=False) == 2
    assert _send(calls, has_room=False) is None
    assert calls.sendable
    assert _send(calls) == 1
    assert not calls.sendable


def test_the_call_of_an_ask_and_the_first_of_a_key_are_found_until_sent() -> None:
    calls = Calls()
    a, b = _call(1, "a"), _call(2, "a")
    calls.enter(a)
    calls.enter(b)
    assert calls.of(a.ask) is a
    assert calls.first("a") is a
    assert calls.first("nothing") is None
    calls.make_ready(a)
    assert calls.next_to_send(has_room=True) is a
    assert a.phase is CallPhase.SENDING
    assert calls.of(a.ask) is a, "until it is said to be sent"
    calls.sent(a)
    assert calls.of(a.ask) is None
    assert calls.first("a") is b


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from([None, "a", "b"])),
            st.tuples(st.just("ready"), st.integers(0, 20)),
            st.tuples(st.just("send"), st.none()),
        ),
        max_size=60,
    )
)
def test_per_key_in_order_and_everything_is_sent_in_the_end(steps: list[tuple[str, Any]]) -> None:
    calls, added, sent = Calls(), [], []  # type: ignore[var-annotated]
    for what, arg in steps:
        if what == "add":
            added.append(_call(len(added), arg))
            calls.enter(added[-1])
        elif what == "ready":
            waiting = [call for call in added if call.phase < CallPhase.READY]
            if waiting:
                calls.make_ready(waiting[arg % len(waiting)])
        else:
            seq = _send(calls)
            unsent = [call for call in added if call.seq not in sent]
            heads = [next(c for c in unsent if c.key == key) for key in {c.key for c in unsent}]
            sendable = {call.seq for call in heads if call.phase >= CallPhase.READY}
            assert seq in sendable if sendable else seq is None
            if seq is not None:
                sent.append(seq)
        assert calls.entered == len(added) - len(sent)
    for call in added:
        if call.phase < CallPhase.READY:
            calls.make_ready(call)
    while (seq := _send(calls)) is not None:
        sent.append(seq)
    assert sorted(sent) == [call.seq for call in added]
    assert [calls.new.popleft() for _ in added] == added
    assert not any(value for value in vars(calls).values()), "nothing is left behind"

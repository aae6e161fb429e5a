"""What a call is given may do anything when it is looked at: it is that call's failure, and no other's."""

from __future__ import annotations

import concurrent.futures
import enum
import sys
from typing import Any

import numpy as np
import pytest

from lazycast import EncodeError, LazyBroadcast, RemoteError, register_materializer
from lazycast.arguments import limit, usable_key
from lazycast.core import asks
from lazycast.options import exact
from tests.unit.test_interrupted_calls import WAIT_S, Lazy, two_ranks


class Kind(enum.IntEnum):
    IMAGE = 7


class Loud(str):
    """Whose methods are its own."""

    def __str__(self) -> str:
        raise ArithmeticError("no text")

    __repr__ = __str__

    def encode(self, *_: Any) -> bytes:
        raise ArithmeticError("no bytes")


class Bytes(bytes):
    pass


KEYS = {
    "numpy.str_": (np.str_("r1"), "r1"),
    "IntEnum": (Kind.IMAGE, 7),
    "numpy.bytes_": (np.bytes_(b"b"), b"b"),
    "bytes": (Bytes(b"c"), b"c"),
    "a str that is loud": (Loud("d"), "d"),
}


@pytest.mark.parametrize(("given", "plain"), KEYS.values(), ids=list(KEYS))
@pytest.mark.parametrize("root", [0, 1], ids=["root", "follower"])
def test_a_key_of_a_subclass_is_the_plain_one(given: Any, plain: Any, root: int) -> None:
    with two_ranks(root) as (lazy, other, thread):
        theirs = thread.submit(other.broadcast, 1, key=plain)
        assert lazy.broadcast(1, key=given) == theirs.result(WAIT_S) == 1
        theirs = thread.submit(other.broadcast, 2, key=given)
        assert lazy.broadcast(2, key=plain) == theirs.result(WAIT_S) == 2
        if root == 1:  # a call that waits asks the root
            waits = lazy.broadcast_async(key=given, timeout_s=0.3)
            assert isinstance(waits.exception(WAIT_S), TimeoutError)
            lazy.discard(given)
            for value in (3, 4):
                thread.submit(ended, other, value, plain).result(WAIT_S)
        theirs = thread.submit(other.broadcast, 5)
        assert lazy.broadcast(5) == theirs.result(WAIT_S) == 5


def ended(lazy: Lazy, value: object, key: object) -> object:
    try:
        return lazy.broadcast(value, key=key)  # type: ignore[arg-type]
    except TimeoutError as exc:
        return exc


@pytest.mark.parametrize("bad", [True, 1.5, np.int64(3), np.True_, ("a",), "\ud800", "x" * 1025, 1 << 64, b"x" * 1025])
def test_a_key_that_cannot_travel_is_refused_before_it_counts(bad: Any) -> None:
    with two_ranks(0) as (lazy, other, thread):
        for rank in (lazy, other):
            with pytest.raises((TypeError, ValueError), match="key"):
                rank.broadcast(0, key=bad)
            with pytest.raises((TypeError, ValueError), match="key"):
                rank.broadcast_async(0, key=bad)
            with pytest.raises((TypeError, ValueError), match="key"):
                rank.discard(bad)
        theirs = thread.submit(other.broadcast)
        assert lazy.broadcast(1) == theirs.result(WAIT_S) == 1


def test_what_headers_hold_is_plain() -> None:
    for given, plain in [*KEYS.values(), (np.float64(0.5), 0.5), (True, True), (None, None), ([1], [1])]:
        assert type(exact(given)) is type(plain)
        assert exact(given) == plain
    assert usable_key(Kind.IMAGE) == (7, None)
    for given in (np.float64(2), np.float32(2), np.int16(2), 2, True and 2.0):
        seconds, refusal = limit(given, 1.0, 0)  # type: ignore[arg-type]
        assert (type(seconds), seconds, refusal) == (float, 2.0, None)


def test_options_of_subclasses_work() -> None:
    with two_ranks(
        Kind(7) - 7,
        name=np.str_("numbers"),
        placement=np.str_("every"),
        warn_after_s=np.float64(0.1),
        trust=np.str_("data"),
    ) as (lazy, other, thread):
        assert type(lazy._options.placement) is str
        theirs = thread.submit(other.broadcast, timeout_s=np.float64(WAIT_S))
        assert lazy.broadcast(1, timeout_s=np.float32(WAIT_S)) == theirs.result(WAIT_S) == 1


class Touchy:
    """A materializer whose attributes are a trap."""

    def __init__(self, kind: type[BaseException]) -> None:
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        kind = object.__getattribute__(self, "__dict__").get("_kind", AttributeError)
        raise AttributeError(name) if name.startswith("__reduce") else kind(name)

    def __call__(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize("kind", [KeyError, RecursionError, MemoryError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("placement", ["auto", "every", "root", "shard"])
def test_a_callable_whose_attributes_raise_is_one_calls_failure(placement: str, kind: type[BaseException]) -> None:
    with two_ranks(0, placement=placement) as (lazy, other, thread):
        theirs = thread.submit(both_ways, other, None, None)
        mine = both_ways(lazy, 1, Touchy(kind))
        assert (mine == 1) == (theirs.result(WAIT_S) == 1)
        assert mine == 1 or isinstance(mine, (EncodeError, kind))
        theirs = thread.submit(other.broadcast)
        assert lazy.broadcast(2) == theirs.result(WAIT_S) == 2


def both_ways(lazy: Lazy, payload: object, fn: Any) -> object:
    try:
        return lazy.broadcast(payload, materialize=fn)
    except BaseException as exc:
        return exc


def shouted(text: str) -> str:
    return text.upper()


def test_names_with_half_a_surrogate_pair_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(text: str) -> str:
        return text + "!"

    named.__qualname__ = "half\ud800"
    with pytest.raises(ValueError, match="materializer's name"):
        register_materializer("half\ud800", named)
    with pytest.raises(ValueError, match="name must be"):
        LazyBroadcast(name="half\ud800", backend="local")
    with two_ranks(0) as (lazy, other, thread):
        theirs = thread.submit(other.broadcast)
        assert lazy.broadcast("a", materialize=named) == theirs.result(WAIT_S) == "a!"
        monkeypatch.setattr(sys.modules[__name__], "odd\udc00", shouted, raising=False)
        monkeypatch.setattr(shouted, "__qualname__", "odd\udc00")
        theirs = thread.submit(other.broadcast)
        assert lazy.broadcast("a", materialize=shouted) == theirs.result(WAIT_S) == "A"


@pytest.mark.parametrize("where", ["encode", "begin", "header"])
def test_whatever_is_raised_while_a_call_is_begun_or_encoded_is_its_failure(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_ranks(0) as (lazy, other, thread):
        lane: Any = lazy._lane

        def fails(*_: object, **__: object) -> None:
            monkeypatch.undo()
            raise MemoryError("no memory")

        if where == "encode":
            monkeypatch.setattr(lane.sending.encoder, "encode", fails)
        elif where == "begin":
            monkeypatch.setattr(lane.admission.calls, "make_ready", fails)
        else:
            monkeypatch.setattr("lazycast.net.wire.encode", fails)
        theirs = thread.submit(other.broadcast_async)
        with pytest.raises(EncodeError, match="no memory"):
            lazy.broadcast(1)
        assert isinstance(theirs.result(WAIT_S).exception(WAIT_S), RemoteError)
        theirs = thread.submit(other.broadcast)
        assert lazy.broadcast(2) == theirs.result(WAIT_S) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_before_a_call_has_its_place_counts(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recursion that has no room left, say, or memory that is not there."""
    with two_ranks(rank) as (lazy, other, thread):

        def fails(*_: object, **__: object) -> None:
            monkeypatch.undo()
            raise RecursionError("too deep")

        for holder, name in ((lazy._lane.asks, "make_call"), (asks, "CastFuture")):
            monkeypatch.setattr(holder, name, fails)
            theirs = thread.submit(other.broadcast_async, 1)
            with pytest.raises(RecursionError, match="too deep"):
                lazy.broadcast(1)
            assert isinstance(theirs.result(WAIT_S), concurrent.futures.Future)
            theirs = thread.submit(other.broadcast, 2)
            assert lazy.broadcast(2) == theirs.result(WAIT_S) == 2


@pytest.mark.parametrize("call", ["set_result", "set_exception", "set_running_or_notify_cancel"])
@pytest.mark.parametrize("root", [0, 1], ids=["root", "follower"])
def test_a_future_is_settled_by_its_cast_alone(call: str, root: int) -> None:
    with two_ranks(root) as (lazy, other, thread):
        future = lazy.broadcast_async(1)
        arguments = {"set_result": (5,), "set_exception": (ValueError(),)}.get(call, ())
        with pytest.raises(RuntimeError, match=rf"{call}\(\) is for executors"):
            getattr(future, call)(*arguments)
        theirs = thread.submit(other.broadcast, 1)
        assert future.result(WAIT_S) == theirs.result(WAIT_S) == 1
        with pytest.raises(RuntimeError, match=rf"{call}\(\) is for executors"):
            getattr(future, call)(*arguments)
        theirs = thread.submit(other.broadcast, 2)
        assert lazy.broadcast(2) == theirs.result(WAIT_S) == 2

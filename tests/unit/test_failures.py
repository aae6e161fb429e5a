"""Failures as data: what exceptions become, and what each rank raises for them."""

from __future__ import annotations

import pytest

from lazycast.core import failures
from lazycast.errors import (
    CastTimeoutError,
    ClosedError,
    DecodeError,
    DivergenceError,
    EncodeError,
    LazycastError,
    MaterializeError,
    PayloadMismatchError,
    PeerLostError,
    RemoteError,
    TrustError,
)
from lazycast.net import wire
from lazycast.net.wire import Failure, FailureKind


class NoText(Exception):
    def __str__(self) -> str:
        raise ArithmeticError("no text either")


class NotAString(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


def _raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:
        return caught


def _failure(exc: BaseException, kind: FailureKind = "materialize") -> Failure:
    return failures.from_exception(kind, "materializer 'f' raised", _raised(exc), rank=3, host="node7")


def test_the_message_says_what_where_and_why() -> None:
    failure = _failure(ValueError("bad pixel"))
    assert failure.message == "materializer 'f' raised on rank 3 (node7): ValueError: bad pixel"
    assert (failure.kind, failure.rank, failure.host) == ("materialize", 3, "node7")
    assert failure.traceback is not None
    assert failure.traceback.startswith("Traceback (most recent call last):")
    assert "in _raised" in failure.traceback
    assert failure.traceback.rstrip().endswith("ValueError: bad pixel")


def test_an_exception_without_a_text_shows_its_type_alone() -> None:
    assert _failure(KeyboardInterrupt()).message.endswith("(node7): KeyboardInterrupt")


@pytest.mark.parametrize(("exc", "why"), [(NoText(), "ArithmeticError"), (NotAString(), "TypeError")])
def test_an_exception_whose_text_cannot_be_had_still_travels(exc: Exception, why: str) -> None:
    failure = _failure(exc)
    assert failure.message.endswith(f"{type(exc).__name__}: <its text cannot be had: {why}>")
    assert type(exc).__name__ in (failure.traceback or "")
    assert wire.decode(wire.encode(wire.Verdict(1, failure))) == wire.Verdict(1, failure)


def test_lone_surrogates_are_replaced_so_that_the_text_can_be_sent() -> None:
    failure = _failure(ValueError("a\ud800b"))
    assert failure.message.endswith("ValueError: a?b")
    assert wire.decode(wire.encode(wire.Verdict(1, failure))) == wire.Verdict(1, failure)


def test_a_huge_message_is_clipped_in_the_middle() -> None:
    failure = _failure(ValueError("begin" + "x" * 1_000_000 + "end"))
    assert failure.message.startswith("materializer 'f' raised on rank 3 (node7): ValueError: begin")
    assert failure.message.endswith("end")
    assert "bytes left out" in failure.message
    assert len(failure.message) < 3000
    assert failure.traceback is not None
    assert len(failure.traceback) < 20_000
    assert failure.traceback.startswith("Traceback")


def test_a_deep_recursion_has_a_bounded_traceback() -> None:
    def recurse(depth: int) -> None:
        recurse(depth + 1)

    with pytest.raises(RecursionError) as caught:
        recurse(0)
    failure = failures.from_exception("materialize", "x", caught.value, rank=0, host="h")
    assert len(wire.encode(wire.Gone(0, failure))) <= wire.MAX_HEADER_NBYTES


def test_chained_exceptions_are_in_the_traceback() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as inner:
            raise ValueError("second") from inner
    except ValueError as exc:
        failure = failures.from_exception("decode", "x", exc, rank=0, host="h")
    assert failure.traceback is not None
    assert "KeyError: 'first'" in failure.traceback
    assert "direct cause" in failure.traceback


# What each kind is raised as: on the rank where it happened, and on the others.
CLASSES: dict[str, tuple[type[LazycastError], type[LazycastError]]] = {
    "encode": (EncodeError, RemoteError),
    "decode": (DecodeError, DecodeError),
    "materialize": (MaterializeError, MaterializeError),
    "mismatch": (PayloadMismatchError, PayloadMismatchError),
    "diverged": (DivergenceError, DivergenceError),
    "refused": (RemoteError, RemoteError),
    "withdrawn": (RemoteError, RemoteError),
    "timeout": (CastTimeoutError, CastTimeoutError),
    "lost": (PeerLostError, PeerLostError),
    "closed": (ClosedError, ClosedError),
    "untrusted": (TrustError, TrustError),
}


def test_the_table_knows_every_kind() -> None:
    assert set(CLASSES) == set(FailureKind.__args__)


@pytest.mark.parametrize("kind", CLASSES)
def test_at_home_the_cause_is_the_original_and_no_traceback_is_repeated(kind: FailureKind) -> None:
    original = ValueError("bad pixel")
    failure = _failure(original, kind)
    exc = failures.to_exception(failure, label="cast #3", rank=3, cause=original)
    assert type(exc) is CLASSES[kind][0]
    assert exc.__cause__ is original
    assert (exc.rank, exc.host, exc.remote_traceback) == (3, "node7", None)
    assert str(exc) == f"cast #3: {failure.message}"


@pytest.mark.parametrize("kind", CLASSES)
def test_abroad_there_is_no_cause_but_the_traceback_as_text(kind: FailureKind) -> None:
    failure = _failure(ValueError("bad pixel"), kind)
    exc = failures.to_exception(failure, label="cast #3", rank=0)
    assert type(exc) is CLASSES[kind][1]
    assert exc.__cause__ is None
    assert (exc.rank, exc.host, exc.remote_traceback) == (3, "node7", failure.traceback)
    assert str(exc).startswith(f"cast #3: {failure.message}\n\nTraceback of rank 3 on node7:\nTraceback")
    assert str(exc).endswith("ValueError: bad pixel")


def test_a_foreign_cause_is_not_taken_for_the_original() -> None:
    exc = failures.to_exception(_failure(ValueError("theirs")), label="x", rank=0, cause=KeyError("mine"))
    assert exc.__cause__ is None


def test_a_failure_without_a_traceback_has_a_plain_text() -> None:
    exc = failures.to_exception(Failure("lost", 2, "h", "rank 2 (h) was lost: EOF"), label="cast", rank=0)
    assert str(exc) == "cast: rank 2 (h) was lost: EOF"


def test_a_loss_brings_who_noticed_it_where_why_and_when_it_was_last_heard() -> None:
    loss = wire.Loss(1, "tcp", "it ended without a farewell", 0.25)
    failure = Failure("lost", 3, "node7", "rank 3 (node7) was lost", loss=loss)
    assert wire.decode(wire.encode(wire.Gone(3, failure))) == wire.Gone(3, failure)
    exc = failures.to_exception(failure, label="broadcast #3", rank=0, more="; this call had waited 1.0 s")
    assert isinstance(exc, PeerLostError)
    assert (exc.link, exc.reason, exc.noticed_by, exc.last_heard_s) == ("tcp", loss.reason, 1, 0.25)
    assert exc.message == "broadcast #3: rank 3 (node7) was lost; this call had waited 1.0 s"

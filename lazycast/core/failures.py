"""Failures as data: from an exception to what travels, and back to the exception each rank raises."""

from __future__ import annotations

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
from lazycast.net.wire import Failure, FailureKind
from lazycast.tracebacks import describe, formatted

_MAX_MESSAGE = 2 << 10
_MAX_TRACEBACK = 16 << 10
_MAX_CLASS = 200

# What a failure is raised as on the rank where it happened, and on the others.
_AT_HOME: dict[FailureKind, type[LazycastError]] = {
    "encode": EncodeError,
    "decode": DecodeError,
    "materialize": MaterializeError,
    "mismatch": PayloadMismatchError,
    "lost": PeerLostError,
    "closed": ClosedError,
    "untrusted": TrustError,
    "diverged": DivergenceError,
    "timeout": CastTimeoutError,
}
_ABROAD: dict[FailureKind, type[LazycastError]] = {
    "decode": DecodeError,
    "materialize": MaterializeError,
    "mismatch": PayloadMismatchError,
    "lost": PeerLostError,
    "closed": ClosedError,
    "untrusted": TrustError,
    "diverged": DivergenceError,
    "timeout": CastTimeoutError,
}


def clip(text: str, limit: int) -> str:
    """Shorten from the middle to `limit` bytes, and make the text encodable: it may hold lone surrogates."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    half = limit // 2
    start, end = encoded[:half].decode(errors="ignore"), encoded[-half:].decode(errors="ignore")
    return f"{start}\n[... {len(encoded) - 2 * half} bytes left out ...]\n{end}"


def from_exception(kind: FailureKind, what: str, exc: BaseException, *, rank: int, host: str) -> Failure:
    """Put an exception into a form that can travel. `what` opens the message, as in "materializer 'f' raised"."""
    message = f"{what} on rank {rank} ({host}): {describe(exc)}"
    traceback = clip(formatted(exc), _MAX_TRACEBACK)
    return Failure(kind, rank, host, clip(message, _MAX_MESSAGE), traceback, raised=_class_of(exc))


def _class_of(exc: BaseException) -> str:
    kind = type(exc)
    try:
        return clip(f"{kind.__module__}.{kind.__qualname__}", _MAX_CLASS)
    except Exception:  # whatever a metaclass does
        return "builtins.Exception"


def to_exception(
    failure: Failure, *, label: str, rank: int, cause: BaseException | None = None, more: str = ""
) -> LazycastError:
    """Make the exception that `rank` raises for a failure.

    Args:
        label: what names the cast in a message, as in "cast #3 key 'a' (root 0)".
        more: ends the message.
        cause: the original exception, where it happened on this rank.
    """
    at_home = failure.rank == rank
    kind = (_AT_HOME if at_home else _ABROAD).get(failure.kind, RemoteError)
    exc = kind(
        f"{label}: {failure.message}{more}",
        rank=failure.rank,
        host=failure.host,
        remote_traceback=None if at_home else failure.traceback,
    )
    exc.remote_type = failure.raised
    loss = failure.loss
    if loss is not None and isinstance(exc, PeerLostError):
        exc.link, exc.reason, exc.noticed_by, exc.last_heard_s = loss.link, loss.reason, loss.by, loss.heard_s
    if at_home:
        exc.__cause__ = cause
    return exc

"""The errors users see: one root, children that also are the stdlib class they specialise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


class LazycastError(Exception):
    """Everything that lazycast raises by itself.

    Attributes:
        message: the error without the remote traceback that `str()` adds.
        rank: the rank the error is about (where a materializer raised, who died, who closed), or `None`.
        host: that rank's host, or `None`.
        remote_traceback: the traceback as text where the error happened on another rank, else `None`.
        remote_type: the class of the exception that a materializer, a payload or a decoder raised, as "module.qualname"
            ("PIL.UnidentifiedImageError"), the same on every rank; `None` where none was raised.

    Of a timeout and of a lost or closed rank also, as far as it is known:

    - `operation`: the call that failed: "broadcast", "broadcast_async" or "construct".
    - `key`: of that call.
    - `seq`: the number of its cast, once it has one here.
    - `phase`: how far it had come.
    - `missing`: the ranks that it waited for.
    - `answered`: those that had done their part.
    - `silent`: the ranks that did not answer when they were asked whether they are there.
    - `nbytes`: how large the payload is, encoded.
    - `age_s`: how long the call had waited (seconds).
    """

    operation: str | None = None
    key: str | int | bytes | None = None
    seq: int | None = None
    phase: str | None = None
    missing: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    nbytes: int | None = None
    age_s: float | None = None
    remote_type: str | None = None

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        host: str | None = None,
        remote_traceback: str | None = None,
        missing: Collection[int] = (),
    ) -> None:
        super().__init__(message)
        if missing:
            self.missing = tuple(sorted(missing))
        self.message = message
        self.rank = rank
        self.host = host
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        message = Exception.__str__(self)  # not super(): KeyError shows the repr
        if self.remote_traceback:
            return f"{message}\n\nTraceback of rank {self.rank} on {self.host}:\n{self.remote_traceback.rstrip()}"
        return message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0],), dict(self.__dict__)


class EncodeError(LazycastError):
    """The root could not encode a payload, a value or a materializer. The others see `RemoteError`."""


class DecodeError(LazycastError):
    """A rank could not rebuild what arrived, for instance because it lacks a module."""


class RemoteError(LazycastError):
    """The root's call failed before anything could be cast; carries the root's traceback."""


class MaterializeError(LazycastError):
    """The materializer raised. On the rank where it happened, `__cause__` is the original exception."""


class PayloadMismatchError(LazycastError, ValueError):
    """With `replicated=True`: a rank's own payload is another one than the root's, or it has none."""


class PeerLostError(LazycastError, ConnectionError):
    """A rank died. Nothing can be cast in this group any more; build a new one without it.

    Attributes, beside those of `LazycastError`:

    - `link`: the kind of connection that ended: "unix socket", "tcp", "MPI".
    - `reason`: what was noticed.
    - `noticed_by`: the rank that did.
    - `last_heard_s`: how long before that the last message had come from it (seconds); `None` if none ever had.
    """

    link: str | None = None
    reason: str | None = None
    noticed_by: int | None = None
    last_heard_s: float | None = None


class ClosedError(LazycastError):
    """This object, or that of the rank named, was closed."""


class CastTimeoutError(LazycastError, TimeoutError):
    """Waiting took longer than `timeout_s`. Names the operation, the phase, who is missing and who does not answer.

    The same as attributes: see `LazycastError`.
    """


class DivergenceError(LazycastError, RuntimeError):
    """This rank's calls are out of step with the root's; found with `LAZYCAST_DEBUG=1` only.

    Attributes, beside those of `LazycastError`: `root_site` and `site`, where the root made the call, and where this
    rank, `rank`, made the one that met it.
    """

    root_site: str | None = None
    site: str | None = None


class WouldBlockError(LazycastError, BlockingIOError):
    """A call on the root would have to wait: the ranks named have too much that they have not asked for.

    Nothing has happened, and the call does not count: make it again later, or let `await lazy.cast(...)` wait.
    """


class KeyInUseError(LazycastError, KeyError):
    """A cast (on the root) or an ask (elsewhere) with this key is still pending."""

    __str__ = LazycastError.__str__


class ConfigMismatchError(LazycastError, ValueError):
    """Ranks built an object with different options, or in a different order. Carries a table of who said what."""


class BackendError(LazycastError, RuntimeError):
    """The engine that connects the ranks failed; the native error is the `__cause__`."""


class BackendUnavailableError(BackendError):
    """A backend cannot be used here; the message says what to install or to call."""


class LaunchError(LazycastError, RuntimeError):
    """A rank that `launch` started raised or died; names it and carries its traceback."""


class ReentrantCallError(LazycastError, RuntimeError):
    """A blocking call on an object from one of its own callbacks or materializers, which would wait for itself."""


class TrustError(LazycastError, PermissionError):
    """A callable or type from the wire is not allowed here."""

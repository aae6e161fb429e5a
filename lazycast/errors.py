"""The errors users see: one root, children that also are the stdlib class they specialise."""

from __future__ import annotations


class LazycastError(Exception):
    """Everything that lazycast raises by itself.

    Attributes:
        message: the error without the remote traceback that `str()` adds.
        rank: the rank the error is about (where a materializer raised, who died, who closed), or `None`.
        host: that rank's host, or `None`.
        remote_traceback: the traceback as text where the error happened on another rank, else `None`.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        host: str | None = None,
        remote_traceback: str | None = None,
    ) -> None:
        super().__init__(message)
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
        state = {"rank": self.rank, "host": self.host, "remote_traceback": self.remote_traceback}
        return type(self), (self.args[0],), state


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
    """A rank died. Nothing can be cast in this group any more; build a new one without it."""


class ClosedError(LazycastError):
    """This object, or that of the rank named, was closed."""


class CastTimeoutError(LazycastError, TimeoutError):
    """Waiting took longer than `timeout_s`. Names the operation, the phase and who is missing."""


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

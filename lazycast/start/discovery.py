"""Finds the backend a user named, by entry point, so that third parties can bring their own.

Order of `"auto"`: a backend that `using` or `use` has set; torch.distributed if its default group is
initialised; MPI if this process was started by an MPI launcher; else the local backend.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib.metadata import entry_points
from pathlib import Path

from lazycast.errors import BackendError, BackendUnavailableError
from lazycast.net.backend import Backend

ENTRY_POINTS = "lazycast.backends"

_current: ContextVar[Backend | None] = ContextVar("lazycast_backend", default=None)

#: What launchers of Open MPI, MPICH, Intel MPI and Slurm's PMI leave in the environment of a rank.
MPI_MARKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")


_of_process: Backend | None = None
_scopes = 0  # how many threads of this process are ranks
_scopes_lock = threading.Lock()


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Make `backend` what `backend="auto"` finds in this thread (and context): this thread is a rank."""
    global _scopes
    token = _current.set(backend)
    with _scopes_lock:
        _scopes += 1
    try:
        yield
    finally:
        with _scopes_lock:
            _scopes -= 1
        _current.reset(token)


def use(backend: Backend) -> None:
    """Make `backend` what `backend="auto"` finds in this process, whatever launchers have left in its environment."""
    global _of_process
    _of_process = backend


def names() -> list[str]:
    """Return the names of all installed backends."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def by_name(name: str) -> type[Backend]:
    """Import the backend called `name`.

    Raises: ValueError for an unknown name; BackendUnavailableError if its library is missing.
    """
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = point.load()
        except BackendError:
            raise
        except (ImportError, AttributeError) as exc:
            remedy = _remedy_for_checkout(exc)
            raise BackendUnavailableError(
                f"backend {name!r} ({point.value}) cannot be imported: {exc}{remedy}"
            ) from exc
        if not (isinstance(found, type) and issubclass(found, Backend)):
            raise BackendUnavailableError(f"backend {name!r} ({point.value}) is not a lazycast.net.backend.Backend")
        return found
    raise ValueError(f"unknown backend {name!r}; installed are: 'auto', {', '.join(map(repr, names()))}")


def _remedy_for_checkout(exc: Exception) -> str:
    """Say what to do when a checkout's `lazycast` folder, which has no backends in it, hides the installed package."""
    if not isinstance(exc, ModuleNotFoundError) or exc.name != "lazycast.backends":
        return ""
    here = Path(__file__).resolve().parents[1]
    return (
        f"; lazycast was imported from {here}, which is not a whole installation: if that is a checkout, "
        f"run `pip install -e {shlex.quote(str(here.parent))}`, or start in another folder"
    )


def _torch_is_initialised() -> bool:
    # Only asked if somebody has imported it: a group can exist only then.
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and bool(dist.is_initialized())


def _automatic() -> Backend:
    current = _current.get()
    if current is not None:
        return current
    if _scopes:
        raise BackendUnavailableError(
            "ranks are threads of this process, and this thread is none of them: it was started by one; "
            "construct the object in the rank's own thread, or pass a Backend instance"
        )
    if _of_process is not None:
        return _of_process
    if _torch_is_initialised():
        return by_name("torch").from_environment()
    if any(mark in os.environ for mark in MPI_MARKS):
        return by_name("mpi").from_environment()
    if "LAZYCAST_RANK" not in os.environ and (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise BackendUnavailableError(
            f"this process is one of WORLD_SIZE={os.environ['WORLD_SIZE']} (torchrun?), but torch.distributed is not "
            "initialised: call torch.distributed.init_process_group('gloo') before, or name the backend"
        )
    return by_name("local").from_environment()


def _named(kind: type) -> tuple[str, str]:
    return kind.__module__.partition(".")[0], kind.__name__


#: What libraries call their groups of ranks, by package and class, and whose constructor takes one.
_NATIVE = {("torch", "ProcessGroup"): "torch", ("mpi4py", "Comm"): "mpi"}


def resolve(backend: object) -> Backend:
    """Return the backend for the `backend` argument of `LazyBroadcast`.

    Raises: TypeError, ValueError for what is no backend; BackendUnavailableError with the remedy.
    """
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        native = next((_NATIVE[of] for base in type(backend).__mro__ if (of := _named(base)) in _NATIVE), None)
        if native is None:
            raise TypeError(
                f"backend must be a name, a Backend instance, a process group of torch or a communicator of mpi4py, "
                f"got {type(backend).__name__}"
            )
        of_group: Callable[[object], Backend] = by_name(native)
        return of_group(backend)
    return _automatic() if backend == "auto" else by_name(backend).from_environment()

"""Features that reach a scheduler in shared memory: opened by the threads that make the inputs, not in its loop.

SGLang's receiver lets all ranks meet twice for each such request, before and after each has mapped its features. Here
the ranks' agreement on the request's cast takes the place of both: who could not open its features fails that cast.

Guarantees:

* Features are what SGLang makes of them: private to the rank, writable, and not copied.
* A segment's name is taken away by whoever no longer needs it, when all ranks have their inputs, or when the request
  has ended everywhere: one that comes later has nothing left to open, and no use for it.
* How many bytes there are is known without opening them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("lazycast")

_KINDS = "sglang.srt.managers.mm_utils"
_RECEIVER = "request_receiver"
_FINALIZE = "_finalize_shm_features"
_FIELDS = ("feature", "precomputed_embeddings")
_USED = ("_shm_handle", "_materialization_error")  # of what stands for a tensor


def is_pointer(value: object) -> bool:
    """Whether a value stands for a tensor in shared memory that is not opened."""
    kind = getattr(sys.modules.get(_KINDS), "ShmPointerMMData", None)
    return kind is not None and isinstance(value, kind)


def nbytes_of(pointer: Any) -> int:
    """Return how large its tensor is."""
    return int(math.prod(pointer.shape) * pointer.dtype.itemsize)


class Unopened:
    """Stands for a tensor while its request is aside. Its attributes are what ranks compare."""

    def __init__(self, pointer: Any) -> None:
        self.name = pointer.shm_name
        self.shape, self.dtype = tuple(pointer.shape), str(pointer.dtype)
        # A function counts by its name alone: descriptors are each rank's own.
        self.pointer: Callable[[], Any] = lambda: pointer

    def open(self) -> Any:
        """Map the tensor as SGLang's `materialize` does, and leave the segment's name: others may not have opened it.

        Raises: RuntimeError if this rank could not open it.
        """
        pointer: Any = self.pointer()
        handle = pointer._shm_handle
        if handle is None:
            raise RuntimeError(
                f"features in shared memory {self.name!r} could not be opened: {pointer._materialization_error}"
            )
        mapped = mmap.mmap(handle._fd, nbytes_of(pointer), access=mmap.ACCESS_COPY)
        torch: Any = sys.modules["torch"]
        return torch.frombuffer(mapped, dtype=pointer.dtype).reshape(self.shape)

    def release(self) -> None:
        """Take the segment's name away. What is mapped stays, and another thread may be about to map it."""
        pointer: Any = self.pointer()
        if pointer._shm_handle is None:  # others may have opened it
            pointer.close_and_unlink()
            return
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            pointer._shm_handle.unlink()


def leave(items: list[Any]) -> list[Unopened]:
    """Put an `Unopened` in the place of each pointer of these items, and return them."""
    left: list[Unopened] = []

    def stand_in(value: Any) -> Any:
        if not is_pointer(value):
            return value
        left.append(Unopened(value))
        return left[-1]

    _replace(items, stand_in)
    return left


def open_all(items: list[Any]) -> None:
    """Put the tensors in the place of what `leave` has put there. Raises: as `Unopened.open`."""
    _replace(items, lambda value: value.open() if isinstance(value, Unopened) else value)


def can_leave(receiver: Any) -> bool:
    """Whether this release's receiver, and what stands for tensors, are as they are known."""
    method = getattr(type(receiver), _FINALIZE, None)
    pointer: Any = getattr(sys.modules.get(_KINDS), "ShmPointerMMData", None)
    return (
        dataclasses.is_dataclass(receiver)
        and callable(method)
        and len(inspect.signature(method).parameters) == 2
        and callable(getattr(pointer, "close_and_unlink", None))
        and set(_USED) <= set(vars(pointer)["__init__"].__code__.co_names)
    )


def leave_unopened(scheduler: Any, is_left: Callable[[Any], bool]) -> None:
    """Let a scheduler's receiver open no features of requests for which `is_left` is true, on all ranks alike."""
    receiver = getattr(scheduler, _RECEIVER, None)
    if not can_leave(receiver):
        logger.warning("lazycast: this SGLang's receiver opens features in a way of its own, before they are put aside")
        return
    kind: Any = type(receiver)

    class Receiver(kind):  # type: ignore[misc]
        __slots__ = ()

        def _finalize_shm_features(self, received: list[Any] | None) -> None:
            super()._finalize_shm_features(received and [one for one in received if not is_left(one)])

    leaving = object.__new__(Receiver)
    for field in dataclasses.fields(receiver):  # type: ignore[arg-type]
        object.__setattr__(leaving, field.name, getattr(receiver, field.name))
    setattr(scheduler, _RECEIVER, leaving)


def _replace(items: list[Any], other: Callable[[Any], Any]) -> None:
    """Put `other` of each value in its place. What has nothing to replace stays the object that it is."""
    for item in items:
        for name in _FIELDS:
            value = getattr(item, name, None)
            parts = value if isinstance(value, (list, tuple)) else [value]
            replaced = [other(part) for part in parts]
            if any(new is not old for new, old in zip(replaced, parts, strict=True)):
                setattr(item, name, replaced[0] if parts is not value else type(value)(replaced))

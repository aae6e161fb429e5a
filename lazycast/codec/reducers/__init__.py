"""Reducers: how objects that pickle badly are taken apart, so that their bytes travel beside the pickle stream.

A reducer belongs to a type and to the library that the type comes from. It is used only if that library is already
imported: an object of it can exist only then, so nothing is imported on behalf of a payload that needs nothing.

Guarantees:

* `Reduction` is the state of one encoding and is used by one thread. Nothing in it outlives that encoding, and none of
  it is shared between encodings, so any number of them may run at a time.
* `register_reducer` may be called from any thread; encodings that begin later see the reducer.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Mapping
from types import FunctionType, MappingProxyType, NoneType
from typing import Any, TypeVar

T = TypeVar("T")
Reduced = str | tuple[Any, ...]
Reduce = Callable[[Any], Reduced]

# The module that must already be imported -> the module here whose `install(reduction)` adds the reducers.
_LIBRARIES = {
    "builtins": "lazycast.codec.reducers.builtin_bytes",
    "numpy": "lazycast.codec.reducers.numpy_arrays",
    "torch": "lazycast.codec.reducers.torch_tensors",
    "PIL.Image": "lazycast.codec.reducers.pil_images",
}
_installers: dict[tuple[str, ...], tuple[Callable[[Reduction], None], ...]] = {}
_registered: dict[type, Reduce] = {}

# What pickle does by itself, before it asks anybody.
_NEVER_ASKED = frozenset(
    {NoneType, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, type, FunctionType}
)
_as_pickle_would = operator.methodcaller("__reduce_ex__", 5)


class Reduction(dict[type, Reduce]):
    """The reducers of one encoding, as the `dispatch_table` of its pickler. Filled when the first type is asked for.

    `base`: what the pickler would use without it. `unused`: whether no type has been asked for yet.
    """

    base: Mapping[type, Reduce] = MappingProxyType({})
    unused = True

    def _fill(self, base: Mapping[type, Reduce]) -> None:
        self.families: list[tuple[type, Reduce]] = []  # for all subclasses of a type that have no reducer of their own
        self.plans: list[Callable[[], bool]] = []  # asked after the first pass whether they need a second one
        self.cuts: list[Callable[[], bool]] = []  # asked at the end whether something has stayed behind
        self.update(base)
        for install in _installed():
            install(self)
        self.update(_registered)

    def __missing__(self, type_: type) -> Reduce:
        """Choose for a type without a reducer, once per encoding.

        For most types that is what the pickler would do by itself. Saying so by a KeyError would cost 1 µs for each
        object, half as much as pickling a small one does.
        """
        if self.unused:
            self.unused = False
            self._fill(self.base)
            return self[type_]
        if issubclass(type_, type):  # classes travel by name: that the pickler does only if it finds nothing here
            raise KeyError(type_)
        reduce = next((reduce for family, reduce in self.families if issubclass(type_, family)), _as_pickle_would)
        self[type_] = reduce
        return reduce

    def cut(self) -> bool:
        """At the end: whether what arrives is less than what is sent. Of a tensor, its history stays behind."""
        return not self.unused and any(ask() for ask in self.cuts)

    def again(self) -> bool:
        """After a pass: whether another is needed, now that all of the payload has been seen. At most once."""
        if self.unused:
            return False
        plans, self.plans = self.plans, []
        answers = [plan() for plan in plans]  # each of them is asked
        return any(answers)


def _installed() -> tuple[Callable[[Reduction], None], ...]:
    """Return what adds the reducers of all libraries that are imported by now."""
    imported = tuple(name for name in _LIBRARIES if sys.modules.get(name) is not None)
    found = _installers.get(imported)
    if found is None:
        found = tuple(importlib.import_module(_LIBRARIES[name]).install for name in imported)
        _installers[imported] = found
    return found


def register_reducer(type_: type[T], reduce: Callable[[T], Reduced]) -> None:
    """Say how payload objects of one type are pickled; later registrations replace earlier ones, and built-in ones too.

    Args:
        type_: the exact type, as with `copyreg`: subclasses are not included, register them one by one. Not one of the
            types that pickle never asks about (`bytes`, `str`, `int`, `list`, `dict` and the like).
        reduce: given an object, returns what its `__reduce_ex__(5)` could return, commonly `(rebuild, arguments)`.
            A `pickle.PickleBuffer` among the arguments travels out of band, uncopied; `rebuild` gets a memoryview of
            the received message in its place, aligned to 64 bytes, read-only if the buffer was. An object on top of
            that memory needs no copy, if it keeps the memoryview alive. `reduce` may be called twice for one object,
            and on another thread than the one that made the cast.
    Raises:
        TypeError: `type_` is no type, or one that pickle never asks about, or `reduce` is not callable.
    Example:
        `register_reducer(Frame, lambda frame: (Frame.from_buffer, (pickle.PickleBuffer(frame.pixels), frame.size)))`

    Needed only where objects are sent from, the root; the others must be able to import `rebuild`.
    """
    if not isinstance(type_, type):
        raise TypeError(f"register_reducer needs a type, got {type_!r}")
    if type_ in _NEVER_ASKED:
        raise TypeError(f"pickle handles {type_.__name__} by itself and asks no reducer: register a type of your own")
    if not callable(reduce):
        raise TypeError(f"the reducer of {type_.__name__} must be callable, got {reduce!r}")
    _registered[type_] = reduce


_has_devices: bool | None = None  # whether torch was built for devices; None: it is not imported, or not wholly


def note_devices() -> None:
    """Remember which devices are current in the calling thread, if torch is in use: a user's thread knows, ours do not.

    Cheap, above all where torch was built for none. Creates no context and imports nothing that is not imported.
    """
    global _has_devices
    if _has_devices is False or "torch" not in sys.modules:
        return
    from lazycast.codec.reducers.torch_tensors import is_built_for_devices, remember_device

    if _has_devices is None:
        _has_devices = is_built_for_devices()
    if _has_devices:
        remember_device()

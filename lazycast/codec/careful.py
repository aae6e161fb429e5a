"""Unpickles streams that name listed classes or functions, in Python, and looks at each thing that a stream does.

Guarantees:

* What is called is a class or function that the stream has named, itself: not what a call has returned, nor a method.
* A class that is always allowed is called with plain arguments only, a number type of NumPy with nothing but numbers:
  NumPy asks any other object where its memory is.
* State is set of instances of listed classes and of `OrderedDict`, and holds no attribute that Python or a library
  looks up by itself, such as `__array_interface__`, which says where memory is. Nor is such a name a key of a dict.
* Items are put into lists, sets and dicts, and listed classes derived from those, and into nothing else.
"""

from __future__ import annotations

import collections
import datetime
import io
import pickle
from collections.abc import Callable, Collection, Mapping
from types import NoneType
from typing import Any, Final

from lazycast.codec.doors import is_array_class, not_allowed
from lazycast.errors import TrustError

_OF_MEMORY: tuple[str, ...] = (
    *("array", "array_interface", "array_struct", "cuda_array_interface", "sycl_usm_array_interface"),
    *("dlpack", "dlpack_device", "buffer", "release_buffer"),
)
#: What says where memory is, as an attribute: to NumPy, torch, Numba and CuPy, DLPack, the buffer protocol, ctypes.
MEMORY_NAMES: Final = frozenset({f"__{name}__" for name in _OF_MEMORY} | {"_as_parameter_"})
_NUMBERS = frozenset({NoneType, bool, int, float, complex})
_PLAIN = _NUMBERS | {str, bytes}
_HOLDERS = frozenset({list, tuple, set, frozenset, dict})
_TIMES = (datetime.timedelta, datetime.tzinfo)


class _Opcodes(dict[int, Any]):
    """What to do for each opcode. Of one that there is not, pickle's Python raises KeyError, its C what this does."""

    def __missing__(self, opcode: int) -> Any:
        raise pickle.UnpicklingError(f"invalid load key, {bytes([opcode])!r}")


class _Stream(io.BytesIO):
    """Does what pickle's C does where a stream ends too early. Its Python takes what there is, or raises another."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise pickle.UnpicklingError("pickle data was truncated")
        return data

    def readline(self, size: int | None = -1) -> bytes:
        data = super().readline(size)
        if data[-1:] != b"\n":
            raise pickle.UnpicklingError("pickle data was truncated")
        return data


def check_attributes(attributes: Mapping[Any, Any]) -> None:
    """Raise TrustError for attributes that a stream may not give an object: names that are looked up by others."""
    for name in attributes:
        if type(name) is not str or (name[:2] == "__" == name[-2:]) or name in MEMORY_NAMES:
            raise TrustError(
                f"what arrived sets the attribute {name!r:.60}, which Python or a library looks up by itself: no "
                "stream may set it"
            )


def _check_key(key: object) -> None:
    if isinstance(key, str) and key in MEMORY_NAMES:
        raise TrustError(
            f"what arrived has a key {key!r:.60}, which could become an attribute that says where memory is"
        )


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(argument: object) -> bool:
    """Whether an argument is plain itself, or holds nothing else, one level deep."""
    kind = type(argument)
    return kind in _PLAIN or (kind in _HOLDERS and _PLAIN.issuperset(map(type, argument)))  # type: ignore[call-overload]


def _good_arguments(kind: Any, module: str, arguments: Collection[Any]) -> bool:
    """Whether an honest stream can call a class that is always allowed like this."""
    if module == "numpy":
        return len(arguments) <= 1 and _NUMBERS.issuperset(map(type, arguments))
    if kind is collections.OrderedDict:
        return not arguments
    if kind is collections.defaultdict:
        return len(arguments) <= 1  # what makes its items: named, and called by nobody here
    if kind is slice:
        return True
    if kind is str:
        return len(arguments) <= 1 and _PLAIN.issuperset(map(type, arguments))  # two would look for a codec
    if kind is dict:
        return not arguments  # items come one by one, where their keys are looked at
    if kind in _HOLDERS:
        return len(arguments) <= 1 and _HOLDERS.issuperset(map(type, arguments))
    return all(_is_plain(argument) or isinstance(argument, _TIMES) for argument in arguments)


class CarefulUnpickler(pickle._Unpickler):
    """See the module's text.

    Args:
        find: finds what is named, or raises; says by which rule: "listed", "function" for ours, else the module of a
            class that is always allowed.
        listed: the names that the user has allowed.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch = _Opcodes(pickle._Unpickler.dispatch)

    def __init__(
        self, stream: bytes, frames: Any, find: Callable[..., tuple[Any, str]], listed: frozenset[str]
    ) -> None:
        super().__init__(_Stream(stream), fix_imports=False, buffers=frames)
        self._find, self._listed = find, listed
        self._found: dict[int, tuple[Any, str]] = {}  # by id; kept alive, so that no other object gets it

    def find_class(self, module: str, qualname: str) -> Any:
        found, rule = self._find(super().find_class, module, qualname)
        self._found[id(found)] = found, rule
        return found

    # Calling

    def _check_call(self, called: Any, arguments: Any, keywords: Any = None) -> None:
        _, rule = self._found.get(id(called), (None, None))
        if rule is None:
            raise TrustError(
                f"what arrived calls a {_named(type(called))!r}, which is not allowed: only what a stream names is "
                "called, and not what that returns, nor its methods"
            )
        if rule in ("listed", "function"):
            return
        if rule == "named":
            raise TrustError(
                f"what arrived calls {_named(called)}, a class of arrays, which is not allowed: it takes any bytes for "
                "pointers. Arrays are looked at as one, by lazycast.codec.reducers.numpy_arrays.view_as"
            )
        if type(arguments) is not tuple or keywords or not _good_arguments(called, rule, arguments):
            raise TrustError(
                f"what arrived calls {_named(called) if isinstance(called, type) else called!r} with what no honest "
                "stream does, which is not allowed: it takes plain data only"
            )

    def load_reduce(self) -> None:
        self._check_call(self.stack[-2], self.stack[-1])
        super().load_reduce()  # type: ignore[misc]

    def load_newobj(self) -> None:
        self._check_call(self.stack[-2], self.stack[-1])
        super().load_newobj()  # type: ignore[misc]

    def load_newobj_ex(self) -> None:
        self._check_call(self.stack[-3], self.stack[-2], self.stack[-1])
        super().load_newobj_ex()  # type: ignore[misc]

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._check_call(klass, tuple(args))
        super()._instantiate(klass, args)  # type: ignore[misc]

    # Setting state

    def load_build(self) -> None:
        made, state = self.stack[-2], self.stack[-1]
        kind = type(made)
        if is_array_class(kind) or (_named(kind) not in self._listed and kind is not collections.OrderedDict):
            raise TrustError(f"what arrived sets the state of a {_named(kind)!r}, which {not_allowed(_named(kind))}")
        own = hasattr(kind, "__setstate__")
        if not own:
            parts = state if type(state) is tuple and len(state) == 2 else (state,)
            for part in parts:
                if type(part) is not dict and part is not None:
                    raise TrustError(
                        f"what arrived sets the state of a {_named(kind)!r} to what is no dict of attributes"
                    )
                check_attributes(part or {})
        super().load_build()  # type: ignore[misc]
        attributes = getattr(made, "__dict__", None)
        if own and isinstance(attributes, dict):
            check_attributes(attributes)

    # Putting items in

    def _check_holder(self, holder: Any, *kinds: type) -> None:
        kind = type(holder)
        if kind in kinds or kind in (collections.OrderedDict, collections.defaultdict, collections.deque):
            return
        if not isinstance(holder, (*kinds, collections.deque)) or _named(kind) not in self._listed:
            raise TrustError(
                f"what arrived puts items into a {_named(kind)!r}, which is not allowed: only into lists, sets and "
                "dicts, and listed classes derived from those"
            )

    def load_append(self) -> None:
        self._check_holder(self.stack[-2], list)
        super().load_append()  # type: ignore[misc]

    def load_appends(self) -> None:
        self._check_holder(self.metastack[-1][-1], list)
        super().load_appends()  # type: ignore[misc]

    def load_additems(self) -> None:
        self._check_holder(self.metastack[-1][-1], set)
        super().load_additems()  # type: ignore[misc]

    def load_setitem(self) -> None:
        self._check_holder(self.stack[-3], dict)
        _check_key(self.stack[-2])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._check_holder(self.metastack[-1][-1], dict)
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_dict()  # type: ignore[misc]

    for _opcode, _load in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.BUILD, load_build),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.ADDITEMS, load_additems),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
    ):
        dispatch[_opcode[0]] = _load

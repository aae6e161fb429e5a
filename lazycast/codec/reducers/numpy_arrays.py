"""NumPy arrays out of band wherever their bytes mean something, and read-only where they were.

Subclasses (`memmap`, `recarray`, `matrix`, `MaskedArray`, users' own) too: as a plain array, the class that looks at
it, and the attributes, where NumPy would copy the items into the stream and drop byte order, read-only flag and
attributes. A class that says itself how it pickles is left to that, and keeps byte order and read-only flag.
"""

from __future__ import annotations

import copyreg
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lazycast.codec.reducers import Reduced, Reduction

Array = np.ndarray[Any, Any]
Attributes = dict[str, Any]

_WAYS = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")  # in which a class can say how it pickles
_HANDLE = "_mmap"  # of a memmap: what it is a map of is this process's own


def install(reduction: Reduction) -> None:
    reduction[np.ndarray] = reduce_array
    reduction.families.append((np.ndarray, reduce_subclass))


def reduce_array(array: Array) -> Reduced:
    """Let NumPy take an array apart, once it is one that NumPy sends out of band and read-only, if that can be."""
    writeable = array.flags.writeable
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)  # strided ones would go in band
        array.flags.writeable = writeable
    if array.dtype.kind in "mM":  # dates and durations have no buffer protocol, the integers in them do
        return as_dtype, (array.view(np.int64), array.dtype)
    reduced = array.__reduce_ex__(5)
    assert isinstance(reduced, tuple)
    in_band = len(reduced) == 3  # the rest: objects, and structures with objects or dates in them
    return (*reduced, None, None, set_state_read_only) if in_band and not writeable else reduced


def reduce_subclass(array: Array) -> Reduced:
    if not _pickles_as_numpy_does(type(array)):
        return _in_its_own_way(array)
    plain = np.ndarray.view(array, np.ndarray)
    attributes = {name: getattr(array, name) for name in _slots(type(array)) if hasattr(array, name)}
    attributes.update(getattr(array, "__dict__", {}))
    if isinstance(array, np.memmap):
        attributes[_HANDLE] = None
    if not attributes:
        return view_as, (type(array), plain)
    return view_as, (type(array), plain), attributes, None, None, set_attributes


def _pickles_as_numpy_does(kind: type) -> bool:
    masked = sys.modules.get("numpy.ma")
    known: list[type] = [np.ndarray] if masked is None else [np.ndarray, masked.MaskedArray]
    return any(all(getattr(kind, way, None) is getattr(one, way, None) for way in _WAYS) for one in known)


def _slots(kind: type) -> list[str]:
    names: list[str] = copyreg._slotnames(kind)  # type: ignore[attr-defined]  # as pickle itself finds them
    return names


def _in_its_own_way(array: Array) -> Reduced:
    reduced = array.__reduce_ex__(5)
    dtype = None if array.dtype.isnative else array.dtype
    if isinstance(reduced, str) or len(reduced) < 3 or len(reduced) > 5 or (dtype is None and array.flags.writeable):
        return reduced
    make, arguments, state, *items = reduced
    items += [None] * (2 - len(items))
    return make, arguments, (state, dtype, array.flags.writeable), *items, set_state_as_it_was


def view_as(kind: type[Array], plain: Array) -> Array:
    """Look at an array as one of another class."""
    if not isinstance(kind, type) or not issubclass(kind, np.ndarray) or not isinstance(plain, np.ndarray):
        raise TypeError(f"{kind!r:.100} is no class of arrays")
    return np.ndarray.view(plain, kind)


def set_attributes(array: Array, attributes: Attributes) -> None:
    """Give an array of a subclass the attributes that it had. Not by its class's own setters, which change more."""
    if not isinstance(array, np.ndarray) or type(array) is np.ndarray:
        raise TypeError(f"attributes for a {type(array).__name__}, which is no subclass of ndarray")
    slots = {name: attributes[name] for name in _slots(type(array)) if name in attributes}
    for name, value in slots.items():
        setattr(array, name, value)
    if len(slots) < len(attributes):
        array.__dict__.update({name: value for name, value in attributes.items() if name not in slots})


def set_state_as_it_was(array: Array, what: tuple[Any, np.dtype[Any] | None, bool]) -> None:
    """Let a class set its state, and then undo what NumPy changes: to this machine's byte order, and to writable."""
    state, dtype, writeable = what
    array.__setstate__(state)
    if dtype is not None and array.dtype != dtype and array.dtype == dtype.newbyteorder("="):
        array.byteswap(inplace=True)
        array.dtype = dtype  # type: ignore[misc]  # which NumPy's types do not know
    if not writeable:
        array.flags.writeable = False


def as_dtype(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.view(dtype)


def set_state_read_only(array: Array, state: Any) -> None:
    array.__setstate__(state)
    array.flags.writeable = False

"""NumPy arrays out of band wherever their bytes mean something, and read-only where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lazycast.reducers import Reduced, Reduction

Array = np.ndarray[Any, Any]


def install(reduction: Reduction) -> None:
    reduction[np.ndarray] = reduce_array


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


def as_dtype(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.view(dtype)


def set_state_read_only(array: Array, state: Any) -> None:
    array.__setstate__(state)
    array.flags.writeable = False

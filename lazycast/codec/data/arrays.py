"""NumPy arrays and scalars as bytes and descriptions, taken apart and put together without NumPy's own pickling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lazycast.codec.data import dtypes

Array = np.ndarray[Any, Any]


def raw(array: Array) -> memoryview:
    """Return the bytes of an array without objects, in the order of its memory if it has no gaps, else of its items."""
    if not array.nbytes:
        return memoryview(bytearray())
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    return array.ravel(order="K").view(np.uint8).data


def is_fortran(array: Array) -> bool:
    """Whether `raw` returns columns first."""
    return array.flags.f_contiguous and not array.flags.c_contiguous


def rebuild(frame: memoryview, description: object, shape: object, writable: object, fortran: object) -> Array:
    """Look at the bytes of a frame as the sender's array did. Raises ValueError unless they fit."""
    dtype, dims = dtypes.read(description), dtypes.sizes(shape)
    if type(writable) is not bool or type(fortran) is not bool or math.prod(dims) * dtype.itemsize != frame.nbytes:
        raise ValueError(f"an array of shape {dims!r:.100} and dtype {dtype} in {frame.nbytes} bytes")
    array: Array = np.ndarray(dims, dtype, frame, order="F" if fortran else "C")
    if not writable:
        array.flags.writeable = False
    return array


def rebuild_scalar(description: object, data: object) -> Any:
    """Make a NumPy scalar of its bytes. Raises ValueError unless they fit."""
    dtype = dtypes.read(description)
    if type(data) is not bytes or len(data) != dtype.itemsize or dtype.subdtype is not None:
        raise ValueError(f"no scalar of dtype {dtype}")
    try:
        return np.array(np.ndarray((), dtype, data))[()]
    except SystemError as exc:  # NumPy 2.4, of text with a character that there is not
        raise ValueError(f"no scalar of dtype {dtype}: {exc}") from exc

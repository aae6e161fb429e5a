"""NumPy's objects for the codec of `allow=`: by description, so that nothing of NumPy's own pickling is needed.

That trusts what it is given: a forged dtype makes numbers into pointers, and `numpy.ndarray` itself makes them of any
buffer. What is here checks instead, see `lazycast.data`.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from lazycast.data import arrays, dtypes

if TYPE_CHECKING:
    import torch

    from lazycast.reducers import Reduced, Reduction


def install(reduction: Reduction) -> None:
    reduction[np.ndarray] = reduce_array
    reduction.families += [(np.dtype, reduce_dtype), (np.generic, reduce_scalar)]


def reduce_array(array: arrays.Array) -> Reduced:
    if array.dtype == np.dtype(object):
        return array_of_objects, (list(array.shape), array.ravel().tolist(), bool(array.flags.writeable))
    how = (dtypes.describe(array.dtype), list(array.shape), array.flags.writeable, arrays.is_fortran(array))
    return array_of, (pickle.PickleBuffer(arrays.raw(array)), *how)


def reduce_dtype(dtype: np.dtype[Any]) -> Reduced:
    return dtypes.read, (dtypes.describe(dtype),)


def reduce_scalar(scalar: np.generic) -> Reduced:
    if type(scalar) is not scalar.dtype.type:
        raise ValueError(f"{type(scalar).__name__} is a subclass of a NumPy scalar: send {scalar.dtype.type.__name__}")
    return arrays.rebuild_scalar, (dtypes.describe(scalar.dtype), scalar.tobytes())


# On the receiver


def array_of(buffer: Any, description: object, shape: object, writable: object, fortran: object) -> arrays.Array:
    frame = memoryview(buffer).cast("B")
    return arrays.rebuild(frame, description, shape, writable is True and not frame.readonly, fortran)


def array_of_objects(shape: object, items: object, writable: object) -> arrays.Array:
    """Raises ValueError unless the items fill the shape."""
    dims = dtypes.sizes(shape)
    if type(items) is not list:
        raise ValueError("the items of an array are a list")
    flat = np.empty(len(items), object)
    flat[:] = items
    array = flat.reshape(dims)
    array.flags.writeable = writable is True
    return array


def tensor_of(
    flat: torch.Tensor | None, dtype: Any, offset: int, size: Any, stride: Any, requires_grad: bool, kind: str
) -> torch.Tensor:
    """As `torch_tensors.rebuild`, checked."""
    from lazycast.data import tensors

    name = str(dtype).partition(".")[2]
    made: torch.Tensor = tensors.rebuild(flat, name, offset, list(size), list(stride), requires_grad, kind)
    return made

"""A tensor's memory as an array, and nothing else of the tensor touched. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np


class _Items:
    """Says where a tensor's items are, and keeps its storage."""

    __slots__ = ("__array_interface__", "storage")

    def __init__(self, tensor: Any) -> None:
        dtype = np.dtype(str(tensor.dtype).partition(".")[2])
        nbytes = dtype.itemsize
        self.storage = tensor.untyped_storage()
        self.__array_interface__ = {
            "version": 3,
            "typestr": dtype.str,
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * nbytes for stride in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


def items_of(tensor: Any) -> np.ndarray[Any, Any]:
    """Look at a dense tensor on the host, of a type that NumPy has, as an array. It must have items.

    `Tensor.numpy()` makes the storage one that cannot be resized, for good: the tensor is the user's.
    """
    return np.asarray(_Items(tensor))

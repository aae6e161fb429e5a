"""Views of memory, which pickle refuses.

`bytes` and `bytearray` need nothing here: a pickler asks nobody about them, but hands large ones (64 KiB and more) to
its file as the objects they are, and the codec keeps them uncopied (see `codec.encode`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lazycast.codec.reducers import Reduced, Reduction


def install(reduction: Reduction) -> None:
    reduction[memoryview] = reduce_view


def reduce_view(view: memoryview) -> Reduced:
    """Send what a memoryview shows; it arrives as a memoryview of the received bytes, of the same format and shape.

    By way of an array, whose reducer copes with strides, read-only memory and all shapes: `memoryview.cast` cannot
    make those with a zero in them.
    """
    return data_of, (np.asarray(view),)


def data_of(array: np.ndarray[Any, Any]) -> memoryview:
    return array.data

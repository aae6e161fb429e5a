"""torch tensors as data: taken apart and put together by `lazycast.codec.reducers.torch_tensors`, checked in between.

That module is loaded with the first tensor, as for all that need no torch.
"""

from __future__ import annotations

import math
import pickle
import sys
from typing import TYPE_CHECKING, Any

from lazycast.codec.data.dtypes import sizes

if TYPE_CHECKING:
    from lazycast.codec.reducers.torch_tensors import Stretch

_DTYPES = {"bool", "bfloat16", "float16", "float32", "float64", "complex32", "complex64", "complex128"}
_DTYPES |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DTYPES |= {f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")}
_DEVICES = ("cpu", "cuda", "xpu")
#: Tensors that show bytes more than once (`expand`) show at most so many times as many, or so many at all. They cost
#: nothing until somebody copies them, and then everything.
_MAX_EXPANSION, _MAX_EXPANDED_NBYTES = 256, 64 << 20


def expands_too_much(shown_nbytes: int, nbytes: int) -> bool:
    """Whether a tensor shows far more than it has: no rank takes it."""
    return shown_nbytes > max(_MAX_EXPANSION * nbytes, _MAX_EXPANDED_NBYTES)


def check_expansion(tensor: Any) -> None:
    """Raise ValueError for a tensor that no rank would take."""
    if tensor.is_contiguous() or not tensor.numel():
        return
    items = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    shown, nbytes = tensor.numel() * tensor.itemsize, items * tensor.itemsize
    if expands_too_much(shown, nbytes):
        raise ValueError(
            f"a tensor of {shown} bytes expanded from {nbytes}: send what it was before expand(), or a copy"
        )


class Tensors:
    """Takes the tensors of one payload apart."""

    def __init__(self) -> None:
        from lazycast.codec.reducers import torch_tensors

        self._rebuild, self._reducer = torch_tensors.rebuild, torch_tensors.TensorReducer()
        self._planned = False

    @property
    def cut(self) -> bool:
        """Whether some had a history, which stays behind."""
        return self._reducer.cut

    def again(self) -> bool:
        """After a pass: whether another is needed, since some share memory. At most once."""
        planned, self._planned = self._planned, True
        return not planned and self._reducer.plan()

    def take_apart(self, tensor: Any) -> tuple[Stretch | None, tuple[object, ...]]:
        """Return the bytes a tensor shows, and how it looks at them. Raises ValueError for an unusual one."""
        reduced: Any = self._reducer.reduce(tensor)
        name = str(tensor.dtype).partition(".")[2]
        if reduced[0] is not self._rebuild or name not in _DTYPES:
            raise ValueError(
                f"a tensor that is not bytes and strides ({tensor.layout}, {tensor.dtype}): send its parts"
            )
        if len(reduced) > 2:
            raise ValueError("a tensor with Python attributes: send them beside it")
        check_expansion(tensor)
        stretch, _, offset, size, stride, requires_grad, kind = reduced[1]
        return stretch, (name, offset, size, stride, requires_grad, kind)

    def raw(self, stretch: Stretch) -> memoryview:
        """Return the bytes of a stretch, on the host."""
        buffer: pickle.PickleBuffer = stretch.__reduce__()[1][0]
        return buffer.raw()


def receive(frame: memoryview, kind: object) -> Any:
    """Make the flat tensor of bytes that tensors look at. Raises ValueError."""
    if kind not in _DEVICES or not frame.nbytes:
        raise ValueError(f"a tensor of {frame.nbytes} bytes for device {kind!r:.40}")
    _torch()
    from lazycast.codec.reducers import torch_tensors

    return torch_tensors.receive(frame, str(kind))


def rebuild(
    flat: Any, name: object, offset: object, size: object, stride: object, requires_grad: object, kind: object
) -> Any:
    """Look at bytes as the sender's tensor did. Raises ValueError for what lies outside of them; torch RuntimeError."""
    torch = _torch()
    if name not in _DTYPES or kind not in _DEVICES or type(requires_grad) is not bool:
        raise ValueError(f"no tensor: {name!r:.40}, {kind!r:.40}")
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch {torch.__version__} has no dtype {name}")
    shape, steps, (start,) = sizes(size), sizes(stride), sizes([offset])
    if len(shape) != len(steps):
        raise ValueError(f"{len(shape)} sizes and {len(steps)} strides")
    if flat is not None and (type(flat) is not torch.Tensor or flat.dtype is not torch.uint8 or flat.dim() != 1):
        raise ValueError("a tensor looks at something else than bytes")
    empty = 0 in shape
    stop = 0 if empty else start + 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if empty != (flat is None) or (flat is not None and stop * dtype.itemsize > flat.numel()):
        raise ValueError(f"a tensor of size {shape} and stride {steps} looks beyond its bytes")
    if not empty and expands_too_much(math.prod(shape) * dtype.itemsize, flat.numel()):
        raise ValueError(f"a tensor of size {shape} in {flat.numel()} bytes, each shown too often")
    from lazycast.codec.reducers import torch_tensors

    return torch_tensors.rebuild(flat, dtype, start, shape, steps, requires_grad, str(kind))


def _torch() -> Any:
    torch = sys.modules.get("torch")
    if torch is None:  # whatever arrives imports nothing
        raise ValueError("a tensor arrived, and this process has not imported torch")
    return torch

"""NumPy's objects, and images, for the codec of `trust=names`: by description, so their own pickling is not needed.

That trusts what it is given: a forged dtype makes numbers into pointers, `numpy.ndarray` itself makes them of any
buffer, and the classes of images open the file whose name they are given. What is here checks instead, see
`lazycast.codec.data`.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from lazycast.codec.careful import check_attributes
from lazycast.codec.data import arrays, dtypes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from lazycast.codec.reducers import Reduce, Reduced, Reduction


#: The classes of images that are rebuilt: their module, by their name.
_IMAGES = {
    "Image": "PIL.Image",
    "JpegImageFile": "PIL.JpegImagePlugin",
    "PngImageFile": "PIL.PngImagePlugin",
    "WebPImageFile": "PIL.WebPImagePlugin",
}


def install(reduction: Reduction) -> None:
    reduction[np.ndarray] = reduce_array
    if "PIL.Image" in sys.modules:
        reduction.families.insert(0, (sys.modules["PIL.Image"].Image, reduce_image))
    if "torch" in sys.modules:
        kind = sys.modules["torch"].Tensor
        reduction[kind] = functools.partial(_reduce_tensor, reduction[kind])
    reduction.families += [(np.dtype, reduce_dtype), (np.generic, reduce_scalar)]


def _reduce_tensor(reduce: Reduce, tensor: Any) -> Reduced:
    from lazycast.codec.data import tensors

    if tensor.layout is sys.modules["torch"].strided:
        tensors.check_expansion(tensor)
    return reduce(tensor)


def reduce_array(array: arrays.Array) -> Reduced:
    if array.dtype == np.dtype(object):
        return array_of_objects, (list(array.shape), array.ravel().tolist(), bool(array.flags.writeable))
    how = (dtypes.describe(array.dtype), list(array.shape), array.flags.writeable, arrays.is_fortran(array))
    return array_of, (pickle.PickleBuffer(arrays.raw(array)), *how)


def reduce_dtype(dtype: np.dtype[Any]) -> Reduced:
    return dtypes.read, (dtypes.describe(dtype),)


def reduce_scalar(scalar: np.generic) -> Reduced:
    if type(scalar) is not scalar.dtype.type:
        raise ValueError(
            f"{type(scalar).__name__} is a subclass of a NumPy scalar: send numpy.array(it)[()], and beside it what "
            "its class adds"
        )
    return arrays.rebuild_scalar, (dtypes.describe(scalar.dtype), scalar.tobytes())


def reduce_image(image: Image) -> Reduced:
    from lazycast.codec.reducers import pil_images

    frames = vars(image).get("n_frames", 1)
    if isinstance(frames, int) and frames > 1:
        raise ValueError(
            f"an image of {frames} frames: with names in trust= only one travels. Send the bytes of its file, or "
            "it.copy() for the one frame"
        )
    image = pil_images.to_load(image)
    reduced = pil_images.reduce_pixels(image)
    kind = type(image)
    known = _IMAGES.get(kind.__qualname__) == kind.__module__
    if not known or isinstance(reduced, str) or reduced[-1] is not pil_images.set_state:
        return reduced  # then its class must be allowed
    text = {str(key): str.__str__(value) for key, value in (getattr(image, "_text", None) or {}).items()}
    return image_of, (kind.__qualname__, reduced[2], text)


# On the receiver


def array_of(buffer: Any, description: object, shape: object, writable: object, fortran: object) -> arrays.Array:
    frame = memoryview(_own_bytes(buffer)).cast("B")
    return arrays.rebuild(frame, description, shape, writable is True and not frame.readonly, fortran)


def _own_bytes(buffer: Any) -> Any:
    """Refuse what only says that it is a buffer."""
    if type(buffer) not in (bytes, bytearray, memoryview, pickle.PickleBuffer):
        raise ValueError(f"a {type(buffer).__name__} where bytes should be")
    return buffer


def view_of(array: object) -> memoryview:
    """As `builtin_bytes.data_of`, of arrays alone."""
    if type(array) is not np.ndarray:
        raise ValueError(f"a view of a {type(array).__name__}")
    return array.data


def bytes_of_tensor(buffer: Any, kind: object) -> torch.Tensor:
    """As `torch_tensors.receive`, of bytes alone."""
    from lazycast.codec.data import tensors

    made: torch.Tensor = tensors.receive(memoryview(_own_bytes(buffer)).cast("B"), kind)
    return made


def parameter_of(tensor: Any, requires_grad: object, hooks: object) -> Any:
    """As torch's own `_rebuild_parameter`, of tensors, and without hooks, which would be called later."""
    torch = sys.modules.get("torch")
    if torch is None or type(tensor) is not torch.Tensor or type(requires_grad) is not bool or hooks:
        raise ValueError(f"no parameter of a {type(tensor).__name__}, or one with hooks")
    return torch.nn.Parameter(tensor, requires_grad)


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
    from lazycast.codec.data import tensors

    name = str(dtype).partition(".")[2]
    made: torch.Tensor = tensors.rebuild(flat, name, offset, list(size), list(stride), requires_grad, kind)
    return made


def set_attributes_of_tensor(tensor: Any, attributes: Any) -> None:
    """As `torch_tensors.set_attributes`, of tensors alone."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(tensor, torch.Tensor) or type(attributes) is not dict:
        raise ValueError(f"attributes for a {type(tensor).__name__}, which is no tensor")
    check_attributes(attributes)
    tensor.__dict__.update(attributes)


def set_attributes_of_array(array: Any, attributes: Any) -> None:
    """As `numpy_arrays.set_attributes`, of attributes that nobody else looks up."""
    from lazycast.codec.reducers import numpy_arrays

    check_attributes(attributes)
    numpy_arrays.set_attributes(array, attributes)


def image_of(name: object, state: object, text: object = None) -> Image:
    """Make an image of one of the classes above. Raises ValueError unless its pixels are there.

    Args:
        text: of a PNG.
    """
    if type(name) is not str or name not in _IMAGES or type(text) not in (dict, NoneType):
        raise ValueError(f"no image: {name!r:.40}")
    kind = getattr(importlib.import_module(_IMAGES[name]), name)
    image: Image = kind.__new__(kind)
    set_state_of_image(image, state)
    if name == "PngImageFile":
        vars(image)["_text"] = text or {}
    return image


def set_state_of_image(image: object, state: Any) -> None:
    """As `pil_images.set_state`, of images alone. Raises ValueError unless the pixels fill the size."""
    from lazycast.codec.reducers import pil_images

    module = sys.modules.get("PIL.Image")
    if module is None or not isinstance(image, module.Image):
        raise ValueError(f"the state of an image for a {type(image).__name__}")
    own, _ = state
    _, mode, size, _, pixels, *_ = own
    width, height = dtypes.sizes(list(size))
    if type(mode) is not str or width * height > 8 * memoryview(pixels).nbytes:
        raise ValueError(f"an image of {width} times {height} in {memoryview(pixels).nbytes} bytes")
    pil_images.set_state(image, state)

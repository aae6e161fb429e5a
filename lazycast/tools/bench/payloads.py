"""What is sent: one source for each kind of payload.

A source makes the same object for the same number on every rank, so that receivers know what they should get. Two
numbers in a row differ all over, so that what is left of the last broadcast is never taken for this one.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

_SEED = 20240229
_PAGE_NBYTES = 4096
_IMAGE_NBYTES = 128 << 10  # a photo of a megapixel or so


class Source(ABC):
    """Payloads of one kind and size.

    Args:
        nbytes: the size of the payloads, of what they hold where it is one buffer or many images, else pickled.
    """

    kind: ClassVar[str]
    #: Whether a payload is one contiguous buffer, which raw broadcasts can take.
    is_buffer: ClassVar[bool] = False
    #: Larger payloads of this kind are left out: nobody has them.
    largest_nbytes: ClassVar[int] = 1 << 62
    #: The library it needs.
    needs: ClassVar[str | None] = None

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    @classmethod
    def available(cls) -> bool:
        return cls.needs is None or find_spec(cls.needs) is not None

    @abstractmethod
    def at(self, number: int) -> Any:
        """Return the payload with this number, undamaged whatever was done to earlier ones.

        It may be the object of earlier calls, filled anew.
        """


class ArraySource(Source):
    """A NumPy array of bytes without a pattern."""

    kind = "array"
    is_buffer = True

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._pristine = np.random.default_rng(_SEED).integers(0, 256, nbytes, np.uint8)
        self._array = self._pristine.copy()

    def at(self, number: int) -> Any:
        np.copyto(self._array, self._pristine)
        self._array[::_PAGE_NBYTES] = number % 251  # a mark on every page tells a stale one
        return self._array


class TensorSource(ArraySource):
    """A torch tensor of bytes."""

    kind = "tensor"
    needs = "torch"

    def at(self, number: int) -> Any:
        import torch

        return torch.from_numpy(super().at(number))


class ImagesSource(Source):
    """A dict of JPEG files as `bytes`: random ones behind JPEG's first bytes, since no way to send looks inside."""

    kind = "images"

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._count = max(1, nbytes // _IMAGE_NBYTES)
        rng, start = np.random.default_rng(_SEED), b"\xff\xd8\xff\xe0"
        image_nbytes = max(len(start), nbytes // self._count)
        self._pool = [start + rng.bytes(image_nbytes - len(start)) for _ in range(self._count + 7)]

    def at(self, number: int) -> Any:
        pool = self._pool
        return {f"image-{i}.jpg": pool[(i + number) % len(pool)] for i in range(self._count)}


class NestedSource(Source):
    """A dict of requests: nested containers of short text, numbers and small arrays."""

    kind = "nested"
    largest_nbytes = 1 << 20

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        sample = pickle.dumps({i: self._request(i, 0) for i in range(1000)}, protocol=5)
        self._count = max(1, nbytes * 1000 // len(sample))

    def at(self, number: int) -> Any:
        return {f"request-{i}": self._request(i, number) for i in range(self._count)}

    @staticmethod
    def _request(i: int, number: int) -> dict[str, Any]:
        return {
            "id": f"{i:08x}-{number:08x}",
            "prompt": f"{number} times over: " + "what is to be seen in this picture, and where? " * 4,
            "tokens": list(range(1000 * number % 32000, 1000 * number % 32000 + 16)),
            "positions": np.arange(number, number + 4),
            "sampling": {"temperature": 0.7 + number, "top_k": 40 + number, "stop": ["</s>", f"#{number}"]},
            "hash": number.to_bytes(16, "big"),
        }


SOURCES: dict[str, type[Source]] = {s.kind: s for s in (ArraySource, TensorSource, ImagesSource, NestedSource)}

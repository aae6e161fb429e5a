"""Random payloads of a size, each from its seed, and whether two values are the same.

Every rank makes each payload by itself: what the root casts can then be compared with what arrives, without a word
between the ranks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_DTYPES = ("u1", "i2", "i4", "i8", "f4", "f8", "c8", "?")


def same(got: Any, expected: Any) -> str | None:
    """Return how two values differ, or None."""
    if type(got) is not type(expected):
        return f"{type(got).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, np.ndarray):
        if (got.dtype, got.shape) != (expected.dtype, expected.shape):
            return f"{got.dtype}{got.shape} instead of {expected.dtype}{expected.shape}"
        return (
            None
            if np.array_equal(got, expected)
            else f"other contents in {got.dtype}{got.shape}: {_where(got, expected)}"
        )
    if isinstance(expected, dict):
        if list(got) != list(expected):
            return f"keys {list(got)} instead of {list(expected)}"
        return next((f"[{key!r}]: {why}" for key in expected if (why := same(got[key], expected[key]))), None)
    if isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            return f"{len(got)} items instead of {len(expected)}"
        return next((f"[{i}]: {why}" for i, x in enumerate(expected) if (why := same(got[i], x))), None)
    return _same_foreign(got, expected)


def _same_foreign(got: Any, expected: Any) -> str | None:
    if _is_tensor(expected):
        if (got.dtype, got.shape) != (expected.dtype, expected.shape):
            return f"{got.dtype}{tuple(got.shape)} instead of {expected.dtype}{tuple(expected.shape)}"
        return None if bool((got == expected).all()) else "other contents in a tensor"
    if _is_image(expected):
        if (got.mode, got.size) != (expected.mode, expected.size):
            return f"an image {got.mode}{got.size} instead of {expected.mode}{expected.size}"
        return None if got.tobytes() == expected.tobytes() else "another image"
    if got == expected:
        return None
    texts = [repr(x) if len(repr(x)) < 80 else f"{repr(x)[:80]}..." for x in (got, expected)]
    return f"{texts[0]} instead of {texts[1]}"


def _where(got: np.ndarray, expected: np.ndarray) -> str:
    other = np.flatnonzero(got.reshape(-1) != expected.reshape(-1))
    return f"{other.size} of {expected.size} differ, the first at {other[0]}" if other.size else "NaN"


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_image(value: Any) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def arrays(value: Any) -> Iterator[np.ndarray]:
    """The arrays of a value, as deep as payloads have them."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from arrays(part)


def digest(value: Any) -> str:
    """Return a checksum of a value: types, shapes and contents."""
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    state.update(type(value).__name__.encode())
    if isinstance(value, (dict, list, tuple)):
        state.update(len(value).to_bytes(8, "little"))
        for part in value.items() if isinstance(value, dict) else value:
            _feed(state, part)
    elif isinstance(value, np.ndarray):
        state.update(f"{value.dtype}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, (bytes, bytearray)):
        state.update(value)
    elif _is_tensor(value):
        state.update(f"{value.dtype}{tuple(value.shape)}".encode())
        # NumPy has no bfloat16.
        state.update(value.contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy())
    elif _is_image(value):
        state.update(f"{value.mode}{value.size}".encode() + value.tobytes())
    else:
        state.update(repr(value).encode())


# Kinds. Each makes a payload of about `nbytes` from a generator.


def _array(rng: np.random.Generator, nbytes: int) -> np.ndarray:
    dtype = np.dtype(_DTYPES[int(rng.integers(len(_DTYPES)))])
    items = nbytes // dtype.itemsize
    raw = np.frombuffer(rng.bytes(items), np.uint8)
    array = raw.astype(dtype)
    if items % 6 == 0 and items:
        array = array.reshape(2, 3, items // 6)
    return array


def _bytes(rng: np.random.Generator, nbytes: int) -> bytes:
    return rng.bytes(nbytes)


def _text(rng: np.random.Generator, nbytes: int) -> str:
    return rng.bytes(nbytes // 2).hex()


def _odd_array(rng: np.random.Generator, nbytes: int) -> np.ndarray:
    """Strided, Fortran-ordered, read-only, 0-d."""
    array = _array(rng, nbytes)
    how = int(rng.integers(4))
    if how == 0:
        return array.reshape(-1)[::2]
    if how == 1:
        return np.asfortranarray(array)
    if how == 2:
        array.flags.writeable = False
        return array
    return np.array(array.reshape(-1)[0]) if array.size else array


def _numbers(rng: np.random.Generator, nbytes: int) -> dict[str, Any]:
    count = min(nbytes // 16, 200)
    return {"ints": [int(n) for n in rng.integers(-(2**62), 2**62, count)], "floats": rng.random(count).tolist()}


def _mixed(rng: np.random.Generator, nbytes: int) -> dict[str, Any]:
    third = nbytes // 3
    return {
        "id": int(rng.integers(2**31)),
        "pixels": _array(rng, third),
        "parts": [_odd_array(rng, third // 2), _bytes(rng, third // 2), None, True],
        "file": _bytes(rng, third),
        "pair": (1.5, "two"),
    }


def _tensor(rng: np.random.Generator, nbytes: int) -> Any:
    import torch

    items = nbytes // 4
    tensor = torch.frombuffer(bytearray(rng.bytes(4 * items)), dtype=torch.int32) if items else torch.zeros(0)
    return {"tensor": tensor, "view": tensor[: items // 8], "half": tensor[:100].to(torch.bfloat16)}


def _image(rng: np.random.Generator, nbytes: int) -> Any:
    from PIL import Image

    side = max(1, int((nbytes // 3) ** 0.5))
    return Image.frombytes("RGB", (side, side), rng.bytes(3 * side * side))


_KINDS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "bytes": _bytes,
    "text": _text,
    "array": _array,
    "odd array": _odd_array,
    "numbers": _numbers,
    "mixed": _mixed,
    "tensor": _tensor,
    "image": _image,
}


def kinds(backend: str, trust: str) -> list[str]:
    """Return the kinds of payload that the ranks of a job can make: the same on all of them."""
    left_out = set() if backend == "torch" else {"tensor"}  # its processes have imported torch
    if trust == "data" or importlib.util.find_spec("PIL") is None:
        left_out.add("image")
    return [kind for kind in _KINDS if kind not in left_out]


def make(kind: str, nbytes: int, seed: int) -> Any:
    """Make a payload: the same for the same arguments, and an object of its own each time."""
    return _KINDS[kind](np.random.default_rng(seed), nbytes)


def size(rng: random.Random, most_nbytes: int) -> int:
    """Draw a size: mostly small, sometimes none, now and then as large as allowed; odd ones too."""
    draw = rng.random()
    if draw < 0.05:
        return 0
    limit = 4096 if draw < 0.55 else 256 << 10 if draw < 0.85 else 4 << 20 if draw < 0.98 else 48 << 20
    limit = min(limit, most_nbytes)
    return int(2 ** rng.uniform(0, np.log2(limit)))

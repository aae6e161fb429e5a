"""What is asked for: payloads, and what is to be made of them.

A workload has a small pool of payloads, the same on every rank, which requests take in turn. Two of a pool differ in
every value that is made of them, so that a value left over from another request is never taken for the right one.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazycast.tools.bench.plan import MIB
from lazycast.tools.bench.qps import materializers
from lazycast.tools.bench.qps.materializers import PHOTO_SIZE, THUMBNAIL_SIZE, Array

_SEED = 20240229
_FRAMES, _SIDE = 64, 448
_OUTSTANDING_NBYTES = 256 * MIB  # of one rank: several of them share a machine


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        pool: makes the payloads.
        materialize: a payload into its value.
        nbytes: of a payload or a value, whichever is larger.
        prepare, finish: the two stages, where every rank has the payload already and only what `prepare` makes of it
            has to reach the others; None where the payload is at the root.
    """

    name: str
    about: str
    pool: Callable[[], list[Any]]
    materialize: Callable[[Any], Any]
    nbytes: int
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any, Any], Any] | None = None

    @property
    def replicated(self) -> bool:
        """Whether every rank has the payloads before anybody asks."""
        return self.prepare is not None

    def window(self, wanted: int) -> int:
        """Return how many requests may be outstanding: as many as wanted, unless they fill the memory."""
        return max(1, min(wanted, _OUTSTANDING_NBYTES // self.nbytes))


def _photos(size: tuple[int, int]) -> list[bytes]:
    """Photos of this size as JPEG, each also mirrored."""
    from PIL import Image, ImageOps

    from lazycast.tools.cli.photos import sample_photos  # not above: lazycast.cli imports the benchmarks

    found = []
    for jpeg in sample_photos().values():
        with Image.open(io.BytesIO(jpeg)) as image:
            fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)
        for version in (fitted, ImageOps.mirror(fitted)):
            file = io.BytesIO()
            version.save(file, "JPEG", quality=90)
            found.append(file.getvalue())
    return found


def _videos() -> list[Array]:
    """Two pans over photos, the second one mirrored."""
    from PIL import Image

    with Image.open(io.BytesIO(_photos((_SIDE + 4 * _FRAMES, _SIDE))[0])) as image:
        wide = np.asarray(image.convert("RGB"))
    pan = np.stack([wide[:, 4 * at : 4 * at + _SIDE] for at in range(_FRAMES)])
    return [pan, np.ascontiguousarray(pan[:, :, ::-1])]


def _arrays(nbytes: int, count: int) -> list[Array]:
    return [np.random.default_rng((_SEED, number)).integers(0, 256, nbytes, np.uint8) for number in range(count)]


def _replicas() -> list[list[Array]]:
    """Lists of arrays such as a request with a few images is on every rank: 15 MB each."""
    return [
        [array.view(np.float32).reshape(3, 500, 625) for array in np.split(whole, 4)]
        for whole in _arrays(4 * 3 * 500 * 625 * 4, 4)
    ]


_VIDEO_NBYTES = 2 * 3 * _SIDE * _SIDE * _FRAMES

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "photo",
            "JPEG of 1120x700 -> float32 pixels -> SHA-256",
            lambda: _photos(PHOTO_SIZE),
            materializers.photo,
            4 * 3 * PHOTO_SIZE[0] * PHOTO_SIZE[1],
        ),
        Workload(
            "thumbnail",
            "JPEG of 224x224 -> float32 pixels -> SHA-256",
            lambda: _photos(THUMBNAIL_SIZE),
            materializers.thumbnail,
            4 * 3 * THUMBNAIL_SIZE[0] * THUMBNAIL_SIZE[1],
        ),
        Workload(
            "video",
            "64 frames of 448x448 uint8 -> float16 pixels -> SHA-256",
            _videos,
            materializers.video,
            _VIDEO_NBYTES,
        ),
        Workload("cheap", "16 MiB -> a view in a dict", lambda: _arrays(16 * MIB, 4), materializers.cheap, 16 * MIB),
        Workload("reduce", "64 MiB -> sixteen sums", lambda: _arrays(64 * MIB, 2), materializers.reduce, 64 * MIB),
        Workload(
            "replicated",
            "15 MB of arrays that every rank has -> SHA-256 -> both",
            _replicas,
            materializers.hash_and_attach,
            4 * 4 * 3 * 500 * 625,
            materializers.hash_arrays,
            materializers.attach,
        ),
    )
}


def fingerprint(value: Any) -> bytes:
    """Return a digest of everything in a value: types, shapes, bytes, order.

    Raises: TypeError for what no workload makes.
    """
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.digest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        sha.update(f"array {value.dtype} {value.shape};".encode())
        sha.update(np.ascontiguousarray(value))
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _feed(sha, key)
            _feed(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            _feed(sha, item)
    elif isinstance(value, (str, int)):
        sha.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"cannot take the fingerprint of a {type(value).__name__}")

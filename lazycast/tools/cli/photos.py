"""Photos to cast, and a materializer such as vision models have.

JPEG -> RGB -> fixed size -> normalised float32 pixels, channels first -> SHA-256.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: Width and height that vision models want, and the mean and deviation per channel that CLIP was trained with.
SIZE = (448, 448)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# Packages that carry photographs, and where in them.
_ALBUMS = {"sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}


def sample_photos() -> dict[str, bytes]:
    """Return the JPEG files, as they are on disk, that scikit-learn and, if installed, matplotlib carry, by name."""
    found = {}
    for package, folder in _ALBUMS.items():
        spec = find_spec(package)  # not importlib.resources.files, which imports the package: seconds for scikit-learn
        for root in (spec and spec.submodule_search_locations) or ():
            for path in sorted((Path(root) / folder).glob("*.jpg")):
                found[path.name] = path.read_bytes()
    if not found:
        raise FileNotFoundError("scikit-learn is installed without its sample photos (sklearn/datasets/images/*.jpg)")
    return found


@dataclass(frozen=True)
class Photo:
    """What a vision model gets: float32 pixels of shape (3, height, width), and their SHA-256 for its cache."""

    pixels: npt.NDArray[np.float32]
    sha256: str


def digest(pixels: npt.NDArray[np.float32]) -> str:
    """Return the SHA-256 of the pixels' bytes, in hex."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def develop(jpegs: dict[str, bytes]) -> dict[str, Photo]:
    """Make photos from JPEG files: the materializer."""
    return {name: develop_one(jpeg, SIZE) for name, jpeg in jpegs.items()}


def develop_one(jpeg: bytes, size: tuple[int, int]) -> Photo:
    """Make a photo of this width and height."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        rgb = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    normal = (rgb / np.float32(255) - MEAN) / STD
    pixels = np.ascontiguousarray(normal.transpose(2, 0, 1))
    return Photo(pixels, digest(pixels))

"""The materializer: what a vision model wants from JPEG files. And files to try it with."""

from __future__ import annotations

import io
import random

import numpy as np
import numpy.typing as npt
from PIL import Image

from lazycast.tools.cli.photos import sample_photos

from .requests import Payload

Pixels = npt.NDArray[np.float32]

SIZE = (448, 448)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def develop(payload: Payload) -> Pixels:
    """Make float32 pixels of shape (photos, 3, height, width) from JPEG files.

    Raises: ValueError, with a text for the client: it says which photo, and is the same wherever this runs.
    """
    developed = []
    for number, jpeg in enumerate(payload["jpegs"], start=1):
        try:
            with Image.open(io.BytesIO(jpeg)) as image:
                rgb = np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC), np.float32)
        except (OSError, Image.DecompressionBombError) as exc:
            raise ValueError(f"photo {number} of {len(payload['jpegs'])} cannot be read") from exc
        developed.append(((rgb / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))
    return np.stack(developed)


def album(count: int, seed: int) -> list[bytes]:
    """Cut `count` JPEG files of different sizes from the sample photos."""
    dice = random.Random(seed)
    originals = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in sample_photos().values()]
    cut = []
    for number in range(count):
        image = originals[number % len(originals)]
        share = dice.uniform(0.6, 1.0)
        width, height = (int(side * share) for side in image.size)
        left, top = dice.randrange(image.width - width + 1), dice.randrange(image.height - height + 1)
        file = io.BytesIO()
        image.crop((left, top, left + width, top + height)).resize((1120, 700)).save(file, "JPEG", quality=85)
        cut.append(file.getvalue())
    return cut

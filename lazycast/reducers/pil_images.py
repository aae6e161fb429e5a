"""Pillow images, pickled as Pillow does it, but with the pixels out of band: one copy less for every receiver.

The class is kept (a JPEG opened from a file arrives as a `JpegImageFile`, with its `format`), pixels are decoded before
they travel, `info` travels whole. What arrives owns its pixels and is writable, as Pillow copies them in.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from lazycast.reducers import Reduced, Reduction

_PIXELS = 4  # their place in the list that `Image.__getstate__` returns


def install(reduction: Reduction) -> None:
    # Each file format has a class of its own, and plugins come late: hence all subclasses, whatever there is by then.
    reduction.families.append((sys.modules["PIL.Image"].Image, reduce_image))


def reduce_image(image: Image) -> Reduced:
    reduced = image.__reduce_ex__(5)
    if isinstance(reduced, str) or len(reduced) < 3 or not isinstance(reduced[2], list):
        return reduced  # a class that pickles in its own way
    state = list(reduced[2])
    if len(state) <= _PIXELS or not isinstance(state[_PIXELS], bytes):
        return reduced
    state[_PIXELS] = pickle.PickleBuffer(state[_PIXELS])
    return (*reduced[:2], (state, _palette_with_alpha(image)), None, None, set_state)


def _palette_with_alpha(image: Image) -> tuple[str, bytes] | None:
    """Return the palette if it is not plain RGB: Pillow's own state (13.0) drops the alpha of one that has it."""
    if image.mode not in ("P", "PA"):
        return None
    mode = image.im.getpalettemode()
    return None if mode == "RGB" else (mode, bytes(image.im.getpalette(mode, mode)))


def set_state(image: Image, state: tuple[list[Any], tuple[str, bytes] | None]) -> None:
    own, palette = state
    image.__setstate__(own)
    if palette is not None:
        mode, colours = palette
        image.putpalette(colours, mode)

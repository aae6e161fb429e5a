"""Pillow images, as what they are: on another rank they have the same frames, text, tags and pixels as on the root.

* An image whose file is open travels as the bytes of that file. It is opened from them, with the same frame current,
  and decoded when somebody looks, as on the root; nothing is decoded here, and the root's image stays as it is. If it
  has been loaded, its pixels travel too, since they may have been changed.
* Any other image (made, copied, converted, or loaded, upon which Pillow closes the file of a single frame) travels as
  its pixels, out of band: its class, `info` and palette, as Pillow pickles it, and the plain data among its other
  attributes, such as the text of a PNG, which Pillow leaves out.
* A WebP or AVIF of several frames that has been loaded is refused: Pillow has let go of its file, and its other frames
  are in a decoder that cannot be sent.

What arrives owns its pixels and is writable, as Pillow copies them in.
"""

from __future__ import annotations

import io
import pickle
import sys
from fractions import Fraction
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from lazycast.codec.reducers import Reduced, Reduction

_PIXELS = 4  # their place in the list that `Image.__getstate__` returns
_ELSEWHERE = frozenset(
    {"_im", "_mode", "_size", "_readonly", "_exif", "_exclusive_fp", "info", "palette", "tile", "map"}
)
_UNREAD = ("_mode", "_size", "tile", "decoderconfig", "_reduce")  # what `draft` and the like change, of one not loaded
_DATA = frozenset({NoneType, bool, int, float, str, bytes, Fraction})
_PILLOWS_DATA = frozenset({"IFDRational", "ImageFileDirectory_v1", "ImageFileDirectory_v2", "iTXt", "ImagePalette"})

Pixels = tuple[list[Any], tuple[str, bytes] | None]
Tags = dict[int, Any]


class Read(NamedTuple):
    """How an image that is opened again differs from one that was opened just now."""

    filename: Any
    frame: int
    info: dict[Any, Any]
    unread: dict[str, Any]
    loaded: Pixels | None
    tags: Tags | None


class Rest(NamedTuple):
    """What there is of an image beside its pixels."""

    attributes: dict[str, Any]
    closed: list[str]  # attributes: the file, and what reads it
    tags: Tags | None


def install(reduction: Reduction) -> None:
    # Each file format has a class of its own, and plugins come late: hence all subclasses, whatever there is by then.
    reduction.families.append((sys.modules["PIL.Image"].Image, reduce_image))


def reduce_image(image: Image) -> Reduced:
    file = _file_of(image)
    if file is not None:
        return open_again, (type(image), pickle.PickleBuffer(_content(file)), _read(image))
    _refuse_lost_frames(image)
    reduced = reduce_pixels(image)
    if isinstance(reduced, str) or reduced[-1] is not set_state:
        return reduced
    return (*reduced[:2], (reduced[2], _rest(image)), None, None, set_all)


def to_load(image: Image) -> Image:
    """Return an image that shows the same and may be loaded: another one, if this one has not been."""
    file = None if _is_loaded(image) else _file_of(image)
    return image if file is None else open_again(type(image), _content(file), _read(image))  # type: ignore[arg-type]


def reduce_pixels(image: Image) -> Reduced:
    """Take apart what an image shows now, and nothing else of it."""
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


def _file_of(image: Image) -> Any:
    """Return the file that an image can be opened from again, if it is open."""
    pillow = sys.modules["PIL.Image"]
    own = type(image).__module__.startswith("PIL.")
    if not (own or pillow.OPEN.get(image.format, (None,))[0] is type(image)):
        return None  # a user's class, with a constructor of its own
    for file in (getattr(image, "fp", None), getattr(image, "_fp", None)):
        if file is not None and not _is_closed(file) and hasattr(file, "seek") and hasattr(file, "read"):
            return file
    return None


def _is_closed(file: Any) -> bool:
    # What Pillow has in place of a file that it has closed raises whatever it is asked.
    return type(file).__name__ == "DeferredError" or bool(getattr(file, "closed", False))


def _content(file: Any) -> bytes:
    position = file.tell()
    try:
        file.seek(0)
        content: bytes = file.read()
    finally:
        file.seek(position)
    return content


def _is_loaded(image: Image) -> bool:
    return getattr(image, "_im", None) is not None and not getattr(image, "tile", None)


def _read(image: Image) -> Read:
    loaded: Pixels | None = None
    unread: dict[str, Any] = {}
    if _is_loaded(image):
        shown: list[Any] = [{}, image.mode, image.size, image.getpalette(), pickle.PickleBuffer(image.tobytes())]
        loaded = shown, _palette_with_alpha(image)
    else:
        unread = {name: value for name, value in vars(image).items() if name in _UNREAD and _is_data(value)}
    return Read(getattr(image, "filename", ""), image.tell(), image.info, unread, loaded, _tags(image))


def _rest(image: Image) -> Rest:
    others = {name: value for name, value in vars(image).items() if name not in _ELSEWHERE}
    attributes = {name: value for name, value in others.items() if _is_data(value)}
    closed = [name for name in others if name not in attributes] if others.get("_fp") is not None else []
    return Rest(attributes, closed, _tags(image))


def _tags(image: Image) -> Tags | None:
    """Return the tags of EXIF, if they have been looked at, and so may have been changed."""
    exif = getattr(image, "_exif", None)
    if exif is None or not exif._loaded:
        return None
    return {tag: value for tag, value in exif.items() if _is_data(value)}


def _is_data(value: object) -> bool:
    kind = type(value)
    if kind is dict:
        return all(_is_data(part) for item in value.items() for part in item)  # type: ignore[attr-defined]
    if isinstance(value, (tuple, list)):
        return all(_is_data(part) for part in value)
    return kind in _DATA or (kind.__name__ in _PILLOWS_DATA and kind.__module__.startswith("PIL."))


def _refuse_lost_frames(image: Image) -> None:
    frames = vars(image).get("n_frames", 1)
    if isinstance(frames, int) and frames > 1 and getattr(image, "_fp", None) is None:
        raise ValueError(
            f"an image of {frames} frames whose file Pillow has let go of, as it does when one is loaded: send the "
            "bytes of its file, or cast it before it is loaded, or send it.copy() for the one frame"
        )


# On the receiver


def open_again(kind: type[ImageFile], content: Any, read: Read) -> ImageFile:
    """Open an image from the bytes of its file, and bring it to where the root's was."""
    image = kind(io.BytesIO(content))
    image._exclusive_fp = True  # this file is nobody else's: Pillow may close it when it has read it
    image.filename = read.filename
    if image.tell() != read.frame:
        image.seek(read.frame)
    for name, value in read.unread.items():
        setattr(image, name, value)
    if read.loaded is not None:
        image.load()  # for frames that are made from those before them
        _replace_pixels(image, read.loaded)
    if image.info != read.info:
        image.info.clear()  # in place: what is read later is added to this one
        image.info.update(read.info)
    if read.tags is not None:
        _set_tags(image.getexif(), read.tags)
    return image


def _replace_pixels(image: Image, pixels: Pixels) -> None:
    shown = sys.modules["PIL.Image"].Image()
    set_state(shown, pixels)
    image.im, image._mode, image._size, image.palette = shown.im, shown.mode, shown.size, shown.palette


def set_state(image: Image, state: Pixels) -> None:
    own, palette = state
    image.__setstate__(own)
    if palette is not None:
        mode, colours = palette
        image.putpalette(colours, mode)


def set_all(image: Image, state: tuple[Pixels, Rest]) -> None:
    """Set what an image shows, and what else there is of it."""
    pixels, rest = state
    set_state(image, pixels)
    vars(image).update(rest.attributes)
    vars(image).update({name: _closed() for name in rest.closed})
    if rest.tags is not None:
        if hasattr(image, "tag_v2"):  # else they would be read from a file, of which there is none
            image._exif = sys.modules["PIL.Image"].Exif()
            image._exif._loaded = True
        _set_tags(image.getexif(), rest.tags)


def _closed() -> Any:
    """Return what Pillow has in place of a file that it has closed."""
    from PIL._util import DeferredError

    return DeferredError(ValueError("Operation on closed image"))


def _set_tags(exif: Any, tags: Tags) -> None:
    if dict(exif) == tags:
        return
    for tag in set(exif) - set(tags):
        del exif[tag]
    exif.update(tags)

"""Images come back pixel by pixel in every mode, with their class, palette and info."""

from __future__ import annotations

import io
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, JpegImagePlugin

from lazycast.codec import pickling
from tests.unit.test_codec import encode, round_trip

MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]


def make_image(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An image of random pixels, with a palette where the mode has one."""
    image = Image.new(mode, size)
    rng = random.Random(seed)
    if mode in ("P", "PA"):
        image.putpalette(rng.randbytes(768))
    nbytes = len(image.tobytes())
    if nbytes:
        image.frombytes(np.float32(rng.random()).tobytes() * (nbytes // 4) if mode == "F" else rng.randbytes(nbytes))
    return image


def assert_same(back: Image.Image, image: Image.Image) -> None:
    assert type(back) is type(image)
    assert (back.mode, back.size, back.info) == (image.mode, image.size, image.info)
    assert back.tobytes() == image.tobytes()
    assert back.getpalette(None) == image.getpalette(None)
    assert back.getpalette("RGBA") == image.getpalette("RGBA")


@given(st.sampled_from(MODES), st.integers(0, 40), st.integers(0, 40), st.integers(0, 1000))
def test_every_mode_comes_back_exactly(mode: str, width: int, height: int, seed: int) -> None:
    image = make_image(mode, (width, height), seed)
    image.info = {"dpi": (72, 72), "icc_profile": b"\0\1", "comment": "text"}
    body, layout = encode([image])
    assert layout.frames == 1
    assert_same(pickling.decode(body, layout)[0], image)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_travel_beside_the_stream(mode: str) -> None:
    image = make_image(mode, (200, 100))
    encoded = pickling.encode({"image": image})
    assert [frame.nbytes for frame in encoded.frames] == [len(image.tobytes())]
    assert len(encoded.stream) < 2500  # with a palette, as a list of numbers


@pytest.mark.parametrize("mode", MODES)
def test_what_arrives_owns_its_pixels_and_is_writable(mode: str) -> None:
    image = make_image(mode, (20, 10))
    body, layout = encode(image)
    back = pickling.decode(body, layout)
    body[:] = bytes(len(body))
    assert_same(back, image)
    assert not back.readonly
    back.putpixel((0, 0), image.getpixel((19, 9)))
    assert back.getpixel((0, 0)) == image.getpixel((19, 9))


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_the_alpha_of_a_palette_is_kept(mode: str) -> None:
    image = make_image(mode, (16, 16))
    image.putpalette(random.Random(1).randbytes(256 * 4), "RGBA")
    assert len(image.getpalette(None) or []) == 1024
    assert pickle.loads(pickle.dumps(image)).getpalette("RGBA") != image.getpalette("RGBA"), "Pillow keeps it by itself"
    back = round_trip(image)
    assert_same(back, image)
    assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_a_transparent_palette_image_looks_the_same() -> None:
    image = make_image("P", (16, 16))
    image.info["transparency"] = bytes(range(256))
    back = round_trip(image)
    assert_same(back, image)
    assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("GIF", "P"), ("TIFF", "L"), ("BMP", "RGB")]
)
def test_an_image_opened_from_a_file_keeps_its_class_and_format(kind: str, mode: str) -> None:
    file = io.BytesIO()
    make_image(mode, (64, 48)).save(file, kind)
    with Image.open(file) as image:
        assert isinstance(image, ImageFile.ImageFile)
        body, layout = encode([image, image])
        assert layout.frames == 1
        a, b = pickling.decode(body, layout)
        assert a is b
        assert a.format == kind
        assert_same(a, image)


def test_beside_a_lambda_pixels_travel_out_of_band_too() -> None:
    assert pickling.encode([make_image("RGB", (64, 64)), lambda: 0]).layout.frames == 1


class Labelled(Image.Image):
    """A subclass that pickles in its own way."""

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return str, ("labelled",)


def test_a_subclass_may_pickle_in_its_own_way() -> None:
    assert round_trip(Labelled()) == "labelled"


class Own(JpegImagePlugin.JpegImageFile):
    """A class of a user's, which is not opened again by way of its constructor."""


def test_the_error_of_an_image_that_cannot_be_read_is_the_first_one() -> None:
    file = io.BytesIO()
    make_image("RGB", (64, 64)).save(file, "JPEG")
    image = Own(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(pickling.CannotEncode, match="does not pickle: image file is truncated") as caught:
        pickling.encode({"x": image})
    assert "truncated" in str(caught.value.__cause__)

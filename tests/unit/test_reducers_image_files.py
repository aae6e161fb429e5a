"""Images of files: every rank sees the same frames, text, tags and pixels, whatever was done with them before."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence, PngImagePlugin

from lazycast import LazyBroadcast, launch
from lazycast.codec import pickling
from lazycast.codec.allowed import AllowCodec
from lazycast.codec.pickling import CannotEncode
from tests.unit.test_codec import round_trip

SIZE = (24, 16)


FILES: list[Any] = []


@pytest.fixture(autouse=True)
def _files_are_closed() -> Iterator[None]:
    yield
    while FILES:
        FILES.pop().close()


def frames(count: int) -> list[Image.Image]:
    made = []
    for index in range(count):
        frame = Image.new("RGB", SIZE, (40 * index, 20, 90))
        frame.paste((200, 10 * index, 3), (index, index, index + 5, index + 7))
        made.append(frame)
    return made


def content(kind: str, count: int) -> bytes:
    """The bytes of a file."""
    file, made = io.BytesIO(), frames(count)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    options: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "MPO") else {}
    if count > 1:
        options |= {"save_all": True, "append_images": made[1:]}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Title", "a text")
        info.add_itxt("Name", "ein Name", "de", "Name")
        options["pnginfo"] = info
    if kind == "WEBP":
        options["lossless"] = True
    made[0].save(file, kind, **options)
    return file.getvalue()


KINDS = {
    **{
        f"{kind} of {count}": (kind, count)
        for kind in ("WEBP", "GIF", "TIFF", "PNG", "MPO", "AVIF")
        for count in (1, 3)
    },
    **{kind: (kind, 1) for kind in ("JPEG", "BMP", "TGA", "PPM", "ICO")},
}


def look(image: Any) -> dict[str, Any]:
    """All that a materializer may ask of an image; what raises counts as what it raises."""

    def of(get: Callable[[], Any]) -> Any:
        try:
            return get()
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"

    info = {key: value if isinstance(value, (bytes, str)) else str(value) for key, value in image.info.items()}
    seen = {
        "kind": type(image).__name__,
        "format": image.format,
        "mode": image.mode,
        "size": image.size,
        "info": info,
        "tell": of(image.tell),
        "animated": of(lambda: getattr(image, "is_animated", "no such thing")),
        "exif": of(lambda: {tag: str(value) for tag, value in image.getexif().items()}),
        "pixels": of(image.tobytes),
        "palette": of(image.getpalette),
        "after": (image.mode, image.size),
        "text": of(lambda: dict(image.text)),
        "quantization": of(lambda: image.quantization),
        "frames": of(lambda: image.n_frames),
    }
    seen["each"] = of(lambda: [frame.convert("RGBA").tobytes() for frame in ImageSequence.Iterator(image)])
    return seen


def _nothing(image: Any) -> None:
    pass


def _load(image: Any) -> None:
    image.load()


def _seek(image: Any) -> None:
    image.seek(getattr(image, "n_frames", 1) - 1)


def _seek_and_load(image: Any) -> None:
    _seek(image)
    image.load()


def _there_and_back(image: Any) -> None:
    _seek(image)
    image.seek(0)


def _change(image: Any) -> None:
    image.load()
    image.putpixel((3, 3), image.getpixel((9, 7)))
    image.putpixel((0, 0), image.getpixel((1, 1)))


def _seek_and_change(image: Any) -> None:
    _seek(image)
    _change(image)


def _change_info(image: Any) -> None:
    image.info["dpi"] = (96, 96)
    image.info["mine"] = b"\0\1"


def _change_exif(image: Any) -> None:
    image.getexif()[0x0131] = "some software"


def _draft(image: Any) -> None:
    image.draft("L", (12, 8))


def _exit(image: Any) -> None:
    image.load()
    image.__exit__(None, None, None)


WAYS = {
    "opened": _nothing,
    "loaded": _load,
    "at the last frame": _seek,
    "at the last frame, loaded": _seek_and_load,
    "there and back": _there_and_back,
    "changed": _change,
    "changed at the last frame": _seek_and_change,
    "info changed": _change_info,
    "tags changed": _change_exif,
    "drafted": _draft,
    "closed": _exit,
}
REFUSED = {
    (kind, way)
    for kind in ("WEBP of 3", "AVIF of 3")
    for way in ("loaded", "at the last frame, loaded", "changed", "changed at the last frame", "closed")
}
CASES = [(kind, way) for kind in KINDS for way in WAYS]


def open_(kind: str, way: str, path: Path | None = None) -> Any:
    raw = content(*KINDS[kind])
    if path is None:
        image = Image.open(io.BytesIO(raw))
    else:
        path.write_bytes(raw)
        image = Image.open(path)
        FILES.append(image.fp)
        path.unlink()  # deleted meanwhile
    WAYS[way](image)
    return image


@pytest.mark.parametrize(
    ("kind", "way", "from_path"),
    [
        # By default each either from a path or from bytes.
        pytest.param(
            *(kind, way, from_path),
            id=f"{'path' if from_path else 'bytes'}-{kind}-{way}",
            marks=[pytest.mark.exhaustive] if (n + from_path) % 2 else [],
        )
        for n, (kind, way) in enumerate(CASES)
        for from_path in (True, False)
    ],
)
def test_an_image_comes_back_as_what_it_was(kind: str, way: str, from_path: bool, tmp_path: Path) -> None:
    path = tmp_path / "image" if from_path else None
    image = open_(kind, way, path)
    if (kind, way) in REFUSED:
        with pytest.raises(CannotEncode, match="an image of 3 frames whose file Pillow has let go of"):
            pickling.encode([image])
        return
    back = round_trip([image])[0]
    assert look(back) == look(open_(kind, way, path)), "it is what it was"
    assert look(image) == look(open_(kind, way, path)), "and the root's is as before"


@pytest.mark.parametrize("kind", KINDS)
def test_what_arrives_can_be_written_to(kind: str) -> None:
    back = round_trip(open_(kind, "opened"))
    back.putpixel((0, 0), back.getpixel((5, 5)))
    assert back.getpixel((0, 0)) == back.getpixel((5, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_leaves_the_roots_image_unread_and_its_file_where_it_stood(kind: str) -> None:
    image = open_(kind, "opened")
    before, at = dict(vars(image)), image.fp.tell()
    pickling.encode(image)
    assert {name for name in vars(image) if vars(image)[name] is not before[name]} == set()
    assert image.fp.tell() == at


@pytest.mark.parametrize("how", ["copy", "convert", "resize", "crop"])
def test_what_is_made_from_an_image_comes_back(how: str) -> None:
    image = open_("PNG of 3", "loaded")
    made = {
        "copy": image.copy,
        "convert": lambda: image.convert("L"),
        "resize": lambda: image.resize((7, 5)),
        "crop": lambda: image.crop((1, 1, 9, 9)),
    }[how]()
    made.getexif()[0x0131] = "some software"
    assert look(round_trip(made)) == look(made)


def test_one_image_of_many_frames_in_two_places_stays_one() -> None:
    image = open_("GIF of 3", "opened")
    a, b = round_trip([image, image])
    assert a is b


def test_a_truncated_file_fails_where_it_is_looked_at() -> None:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(file, "JPEG")
    image = Image.open(io.BytesIO(file.getvalue()[:4000]))
    back = round_trip(image)
    with pytest.raises(OSError, match="truncated"):
        back.load()
    with pytest.raises(OSError, match="truncated"):
        image.load()


def test_a_closed_image_is_refused_in_pillows_words() -> None:
    image = open_("PNG of 1", "loaded")
    image.close()
    with pytest.raises(CannotEncode, match=r"list\[0\] \(a PngImageFile\) does not pickle: Operation on closed image"):
        pickling.encode([image])


def test_with_allow_an_image_of_several_frames_is_refused() -> None:
    for kind in ("WEBP of 3", "PNG of 3"):
        with pytest.raises(CannotEncode, match="an image of 3 frames: with names in trust= only one travels"):
            AllowCodec([]).encode(open_(kind, "opened"))


def test_with_allow_the_text_of_a_png_comes_along_and_the_roots_image_stays_unread() -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("Title", "a text")
    frames(1)[0].save(file, "PNG", pnginfo=info)
    allowing, image = AllowCodec([]), Image.open(file)
    assert isinstance(image, PngImagePlugin.PngImageFile)
    encoded = allowing.encode(image)
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    back: Any = allowing.decode(body, encoded.layout)
    assert (image._im, image.fp) == (None, file)
    assert (back.text, back.tobytes()) == (image.text, image.tobytes())


def _rank(placement: str) -> list[Any]:
    ways = [("WEBP of 3", "opened"), ("GIF of 3", "at the last frame, loaded"), ("TIFF of 3", "changed")]
    ways += [("PNG of 1", "loaded"), ("PNG of 3", "at the last frame"), ("MPO of 3", "opened"), ("JPEG", "drafted")]
    got = []
    with LazyBroadcast(look, placement=placement) as lazy:  # type: ignore[arg-type]
        for kind, way in ways:
            got += [lazy.broadcast(open_(kind, way) if lazy.is_root else None) for _ in range(2)]
    return [seen == look(open_(*ways[index // 2])) for index, seen in enumerate(got)]


@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize("placement", ["every", "shard", "root"])
def test_every_rank_sees_what_the_root_sees(placement: str) -> None:
    assert launch(functools.partial(_rank, placement), ranks=2) == [[True] * 14] * 2

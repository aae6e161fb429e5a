"""`bytes`, `bytearray`, `memoryview`: large ones are never copied into a stream in memory, all keep their type."""

from __future__ import annotations

import array
import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lazycast.codec import pickling
from lazycast.codec.pickling import ALIGNMENT
from tests.unit.test_codec import encode, round_trip


@pytest.mark.parametrize("type_", [bytes, bytearray])
def test_large_bytes_are_kept_as_the_objects_they_are(type_: type) -> None:
    jpeg = type_(b"\xff\xd8" * 100_000)
    encoded = pickling.encode({"images": [jpeg, ("deep", {"x": jpeg})], "more": slice(3)})
    assert [piece is jpeg for piece in encoded.pieces].count(True) == 1, "once, although it is there twice"
    assert sum(len(piece) for piece in encoded.pieces if piece is not jpeg) < 500
    assert encoded.layout.stream_nbytes == len(encoded.stream)


@pytest.mark.parametrize("type_", [bytes, bytearray])
def test_large_bytes_beside_a_lambda_are_kept_too(type_: type) -> None:
    jpeg = type_(b"\xff\xd8" * 100_000)
    encoded = pickling.encode([lambda: 3, jpeg])
    assert any(piece is jpeg for piece in encoded.pieces)


@given(st.lists(st.tuples(st.sampled_from([bytes, bytearray]), st.integers(0, 200_000)), max_size=5))
def test_bytes_of_all_sizes_come_back(sizes: list[tuple[type, int]]) -> None:
    blobs = [type_(np.arange(n, dtype=np.uint32).tobytes()[:n]) for type_, n in sizes]
    payload = [blobs, np.arange(5), "text" * len(blobs), *blobs]
    back = round_trip(payload)
    assert back[0] == blobs
    assert [type(blob) for blob in back[0]] == [type(blob) for blob in blobs]
    assert all(a is b for a, b in zip(back[0], back[3:], strict=False) if len(a) > 1)


def test_received_bytes_are_the_receivers_own() -> None:
    body, layout = encode([b"x" * 100_000, bytearray(100_000)])
    back = pickling.decode(body, layout)
    body[:] = bytes(len(body))
    assert back == [b"x" * 100_000, bytearray(100_000)]


def test_a_large_text_comes_back() -> None:
    assert round_trip(["é" * 100_000]) == ["é" * 100_000]


# memoryview


@given(hnp.arrays(st.sampled_from(["u1", "i1", "i2", "u4", "i8", "f4", "f8", "?"]), hnp.array_shapes(min_side=0)))
def test_a_memoryview_of_any_shape_comes_back(pixels: np.ndarray) -> None:
    for view in (pixels.data, pixels.T.data, pixels[..., ::2].data):
        back = round_trip(view)
        assert type(back) is memoryview
        assert (back.format, back.shape, back.readonly) == (view.format, view.shape, False)
        assert back.tobytes() == view.tobytes()


def test_a_memoryview_is_a_view_of_the_body() -> None:
    body, layout = encode([memoryview(bytearray(1000)), memoryview(b"x" * 1000)])
    writable, readonly = pickling.decode(body, layout)
    assert layout.frames == 2
    for view in (writable, readonly):
        memory = np.frombuffer(view, np.uint8)
        assert np.shares_memory(memory, np.frombuffer(body, np.uint8))
        assert memory.ctypes.data % ALIGNMENT == 0
    assert (writable.readonly, readonly.readonly) == (False, True)
    assert readonly == b"x" * 1000


@pytest.mark.parametrize(
    "view",
    [
        memoryview(array.array("q", range(10))),
        memoryview(array.array("d", [1.5])),
        memoryview((ctypes.c_int * 4)(1, 2, 3, 4)),
        memoryview(bytearray(24)).cast("i", [2, 3]),
        memoryview(b"abcdef")[::-2],
        memoryview(b""),
        memoryview(b"x" * 8).cast("l", []),
    ],
    ids=lambda view: f"{view.format}{view.shape}",
)
def test_memoryviews_from_elsewhere_come_back(view: memoryview) -> None:
    back = round_trip([view])[0]
    assert (back.shape, back.itemsize, back.readonly) == (view.shape, view.itemsize, view.readonly)
    assert back.tobytes() == view.tobytes()
    assert back == view

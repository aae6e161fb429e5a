"""Each buffer that travels beside the stream arrives as a buffer of its own, whatever asks what it is a view of."""

from __future__ import annotations

import ctypes
import functools
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch
from lazycast.codec import data, pickling
from lazycast.codec.allowed import AllowCodec
from lazycast.codec.pickling import Codec


class Bytearray(bytearray):
    """As the Python documentation of out-of-band buffers has it: memory is had back by way of `memoryview.obj`."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Bytearray.reconstruct, (pickle.PickleBuffer(self),), None

    @classmethod
    def reconstruct(cls, obj: Any) -> Any:
        with memoryview(obj) as view:
            whole: Any = view.obj
            return whole if type(whole) is cls else cls(whole)


class Bytes(bytes):
    """The same, read-only."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Bytes.reconstruct, (pickle.PickleBuffer(self),), None

    @classmethod
    def reconstruct(cls, obj: Any) -> Any:
        with memoryview(obj) as view:
            whole: Any = view.obj
            return whole if type(whole) is cls else cls(whole)


class Picture:
    """The documentation's other way: an array that is asked for its base."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Picture.reconstruct, (pickle.PickleBuffer(self.array), self.array.dtype, self.array.shape)

    @classmethod
    def reconstruct(cls, obj: Any, dtype: Any, shape: Any) -> Picture:
        with memoryview(obj) as view:
            return cls(np.asarray(view.obj).view(dtype).reshape(shape))


def body_of(codec_: Codec, obj: object) -> tuple[memoryview, pickling.Layout]:
    encoded = codec_.encode(obj)
    body = pickling.allocate(encoded.nbytes)
    body[:] = b"\xee" * body.nbytes  # remains of an earlier message
    encoded.write_into(body)
    return body, encoded.layout


@pytest.mark.parametrize("size", [1, 3, 64, 1 << 17])
@pytest.mark.parametrize("make", [Bytearray, Bytes])
@pytest.mark.parametrize("readonly", [False, True], ids=["private", "readonly"])
def test_types_that_take_the_memory_below_a_view_get_theirs_alone(
    make: Callable[[Any], Any], size: int, readonly: bool
) -> None:
    obj = make(bytes(i % 251 for i in range(size)))
    body, layout = body_of(pickling, [obj, np.arange(100), obj, make(b"second")])
    back = pickling.decode(body.toreadonly() if readonly else body, layout)
    assert [back[0], back[3]] == [obj, make(b"second")]
    assert type(back[0]) is make
    assert back[2] is back[0]


def test_an_array_had_back_by_way_of_a_view_is_the_senders() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    body, layout = body_of(pickling, {"a": Picture(array), "b": Picture(array.T.copy())})
    back = pickling.decode(body, layout)
    assert back["a"].array.tolist() == array.tolist()
    assert back["b"].array.tolist() == array.T.tolist()


def test_an_empty_buffer_is_one_of_its_own_too() -> None:
    body, layout = body_of(pickling, [Bytearray(), np.arange(3), Bytes()])
    back = pickling.decode(body, layout)
    assert (back[0], back[2]) == (Bytearray(), Bytes())


CODECS: dict[str, Codec] = {
    "pickle": pickling,
    "data": data,
    "allow": AllowCodec([]),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_memoryview_that_arrives_shows_no_more_than_was_sent(name: str) -> None:
    sent = [memoryview(bytearray(b"abc")), memoryview(b"defgh")]
    back = CODECS[name].decode(*body_of(CODECS[name], sent))
    assert [bytes(view) for view in back] == [b"abc", b"defgh"]
    assert [memoryview(view.obj).nbytes for view in back] == [3, 5]
    assert [view.readonly for view in back] == [False, True]


@pytest.mark.parametrize("name", CODECS)
def test_what_lies_below_an_array_is_no_larger_than_the_array(name: str) -> None:
    arrays = [np.arange(5, dtype=np.uint8), np.arange(1000.0), np.arange(6, dtype=">i2").reshape(2, 3)]
    for back, sent in zip(CODECS[name].decode(*body_of(CODECS[name], arrays)), arrays, strict=True):
        base: Any = back.base
        assert memoryview(base).nbytes == sent.nbytes
        assert memoryview(memoryview(base).obj).nbytes == sent.nbytes


@pytest.mark.parametrize("name", CODECS)
def test_every_view_of_a_frame_holds_the_body(name: str) -> None:
    class Memory:
        """Stands for a lease: an object whose end can be seen."""

        def __init__(self, nbytes: int) -> None:
            self.array = (ctypes.c_ubyte * nbytes)()

    body, layout = body_of(CODECS[name], [np.arange(50), memoryview(bytearray(b"abc"))])
    holder = Memory(body.nbytes)
    memory = memoryview(holder.array).cast("B")
    memory[:] = body
    gone = weakref.ref(holder.array)
    del holder, body
    back = CODECS[name].decode(memory, layout)
    del memory
    part = back[0][10:20].reshape(2, 5).T
    view = memoryview(part)
    shown = back[1][1:]
    del back
    gc.collect()
    assert gone() is not None
    assert part.ravel().tolist() == [10, 15, 11, 16, 12, 17, 13, 18, 14, 19]
    del part, shown
    gc.collect()
    assert gone() is not None, "a memoryview of an array holds the body as well"
    del view
    gc.collect()
    assert gone() is None, "and nothing else does"


def _kinds() -> list[object]:
    return [Bytearray(b"abc"), Bytes(b"wxyz"), Picture(np.arange(3))]


def _contents(items: list[Any]) -> list[Any]:
    return [bytes(items[0]), bytes(items[1]), items[2].array.tolist()]


def _rank(values: str) -> list[Any]:
    got = []
    for placement in ("every", "shard", "root"):
        with LazyBroadcast(_contents, values=values, placement=placement) as lazy:  # type: ignore[arg-type]
            got += [lazy.broadcast(_kinds() if lazy.is_root else None) for _ in range(4)]
    return got


@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize("values", ["private", "readonly", "copy"])
def test_all_ranks_get_the_bytes_that_were_sent(values: str) -> None:
    for got in launch(functools.partial(_rank, values), ranks=2):
        assert got == [[b"abc", b"wxyz", [0, 1, 2]]] * 12

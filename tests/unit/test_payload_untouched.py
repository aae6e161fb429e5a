"""Encoding, and a fingerprint, leave the payload as it was, and let go of it: whether they succeed or fail."""

from __future__ import annotations

import array
import gc
import io
import mmap
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lazycast import LazyBroadcast, launch
from lazycast.codec import data, pickling
from lazycast.codec.allowed import AllowCodec
from lazycast.codec.fingerprint import fingerprint
from lazycast.codec.pickling import CannotEncode, Codec

torch = pytest.importorskip("torch")

CODECS: dict[str, Codec] = {"pickle": pickling, "data": data, "allow": AllowCodec([])}


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What is let go of is so at once, not when the collector finds it."""
    gc.disable()
    yield
    gc.enable()


def encode(name: str, obj: object) -> None:
    encoded = CODECS[name].encode(obj)
    encoded.write_into(pickling.allocate(encoded.nbytes))


def tensors() -> dict[str, Any]:
    whole = torch.arange(60.0).reshape(6, 10)
    return {
        "plain": torch.arange(12.0),
        "bytes": torch.arange(12, dtype=torch.uint8),
        "bfloat16": torch.arange(12.0).to(torch.bfloat16),
        "bool": torch.tensor([True, False] * 3),
        "complex": torch.arange(6).to(torch.complex128),
        "transposed": torch.arange(12.0).reshape(3, 4).T,
        "with gaps": whole[:, ::3],
        "requires grad": torch.arange(3.0, requires_grad=True),
        "0-d": torch.tensor(3.0),
    }


@pytest.mark.parametrize("name", sorted(tensors()))
@pytest.mark.parametrize("how", [*CODECS, "fingerprint"])
def test_a_tensor_can_be_resized_afterwards(how: str, name: str) -> None:
    tensor = tensors()[name]
    state = tensor._version, tensor.requires_grad, tensor.is_leaf, tensor.data_ptr(), tensor.is_shared(), tensor.grad
    seen = tensor.detach().clone()
    storage = tensor.untyped_storage()
    if how == "fingerprint":
        fingerprint([tensor, tensor])
    else:
        encode(how, [tensor, {"again": tensor}])
    assert state == (
        tensor._version,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.data_ptr(),
        tensor.is_shared(),
        tensor.grad,
    )
    assert torch.equal(tensor.detach(), seen)
    assert storage.resizable()
    with torch.no_grad():
        tensor.detach().resize_(300, 300)


@pytest.mark.parametrize("how", [*CODECS, "fingerprint"])
def test_tensors_that_share_memory_can_be_resized_afterwards(how: str) -> None:
    whole = torch.arange(1000.0)
    parts = [whole[:500], whole[400:]]
    if how == "fingerprint":
        fingerprint(parts)
    else:
        encode(how, parts)
    whole.resize_(5000)


def test_a_parameter_and_what_a_loss_is_made_of_are_as_before() -> None:
    layer = torch.nn.Linear(3, 2)
    out = layer(torch.ones(1, 3))
    versions = [p._version for p in layer.parameters()]
    encode("pickle", {"layer": layer.state_dict(), "parameter": layer.weight, "out": out})
    assert versions == [p._version for p in layer.parameters()]
    assert out.grad_fn is not None
    out.sum().backward()
    assert layer.weight.grad is not None


def _grow_bytearray(obj: Any) -> None:
    obj += b"more"


def _grow_array(obj: Any) -> None:
    obj.append(7)


def _resize(obj: Any) -> None:
    obj.resize((50_000,), refcheck=False)


RESIZABLE: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "a small bytearray": (lambda: bytearray(10), _grow_bytearray),
    "a large bytearray": (lambda: bytearray(1 << 17), _grow_bytearray),
    "an array.array": (lambda: array.array("d", range(20_000)), _grow_array),
    "a NumPy array": (lambda: np.arange(10_000), _resize),
    "a strided memoryview's": (lambda: bytearray(1 << 17), _grow_bytearray),
}


@pytest.mark.parametrize("name", RESIZABLE)
@pytest.mark.parametrize("fails", [False, True], ids=["sent", "refused"])
@pytest.mark.parametrize("how", CODECS)
def test_what_can_be_resized_still_can_be(how: str, name: str, fails: bool) -> None:
    make, resize = RESIZABLE[name]
    obj = make()
    references = sys.getrefcount(obj)
    sent: Any = memoryview(obj)[::2] if name.startswith("a strided") else obj
    kept: Exception | None = None
    payload = [sent, threading.Lock()] if fails else [sent]
    try:
        encode(how, payload)
    except CannotEncode as exc:
        kept = exc  # as a future keeps it
    refused = (how, name) == ("data", "an array.array")
    assert (kept is not None) == (fails or refused)
    payload.clear()
    if isinstance(sent, memoryview):
        sent.release()
    del sent
    if not refused:  # else it is what was refused, and the error's traceback refers to it
        assert sys.getrefcount(obj) == references
    resize(obj)


@pytest.mark.parametrize("how", CODECS)
def test_a_view_can_be_released_and_a_map_closed(how: str) -> None:
    memory = mmap.mmap(-1, 1 << 17)
    view = memoryview(memory)
    encode(how, [view, np.frombuffer(memory, np.uint8)])
    view.release()
    memory.close()


class Buffers:
    """A type of a user's that sends what it looks at."""

    def __init__(self, content: bytearray) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Buffers, (pickle.PickleBuffer(self.content),)


@pytest.mark.parametrize("fails", [False, True], ids=["sent", "refused"])
@pytest.mark.parametrize("beside", [None, lambda: 0], ids=["plain", "cloudpickle"])
def test_buffers_of_a_users_type_are_let_go_of(beside: object, fails: bool) -> None:
    content = bytearray(1000)
    kept: Exception | None = None
    try:
        encode("pickle", [Buffers(content), beside, threading.Lock() if fails else None])
    except CannotEncode as exc:
        kept = exc
    assert (kept is not None) == fails
    content += b"more"


def test_streams_iterators_and_generators_of_numbers_stand_where_they_stood() -> None:
    stream, iterator, random = io.BytesIO(b"0123456789"), iter([1, 2, 3]), np.random.default_rng(3)
    stream.seek(4)
    next(iterator)
    state = random.bit_generator.state
    encode("pickle", [stream, iterator, random])
    assert stream.tell() == 4
    assert list(iterator) == [2, 3]
    assert random.bit_generator.state == state


def _rank() -> list[Any]:
    with LazyBroadcast(lambda item: float(item["t"].sum()), placement="every") as lazy:
        tensor, content = torch.ones(7), bytearray(1 << 17)
        first = lazy.broadcast({"t": tensor, "b": content} if lazy.is_root else None)
        if lazy.is_root:
            tensor.resize_(300, 300)
            content += b"more"
        return [first]


@pytest.mark.usefixtures("warm_python")
def test_the_roots_payload_can_be_resized_after_a_cast() -> None:
    assert launch(_rank, ranks=2) == [[7.0], [7.0]]

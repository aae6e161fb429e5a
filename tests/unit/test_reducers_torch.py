"""Tensors: equal on arrival, out of band, only the bytes they show, and views of one memory stay that."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lazycast.codec import pickling, reducers
from lazycast.codec.reducers import torch_tensors
from tests.unit.test_codec import encode, round_trip

ALL_DTYPES = {str(dtype)[6:]: dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
QUANTIZED = {"qint8", "qint32", "quint8", "quint4x2", "quint2x4"}
DTYPES = sorted(set(ALL_DTYPES) - QUANTIZED)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")


def make_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of any type from bytes 1, 2, 3, ...: most types have no arithmetic."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    numbers = torch.arange(1, nbytes + 1, dtype=torch.int64).remainder(2 if dtype == torch.bool else 251)
    flat = numbers.to(torch.uint8)
    return torch.empty(0, dtype=dtype).set_(flat.untyped_storage(), 0, shape)


def shown(tensor: torch.Tensor) -> list[bytes]:
    """The bytes of each item that a tensor shows: equality that NaNs and types without arithmetic have too."""
    raw = tensor.detach().cpu()
    raw = raw.resolve_conj().resolve_neg()
    nbytes = raw.itemsize
    storage = raw.untyped_storage()
    memory = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),)).numpy().tobytes()
    start = raw.storage_offset()
    indices: list[int] = [start]
    for n, stride in zip(raw.shape, raw.stride(), strict=True):
        indices = [index + i * stride for index in indices for i in range(n)]
    return [memory[index * nbytes : (index + 1) * nbytes] for index in indices] if raw.numel() else []


def assert_same(back: torch.Tensor, tensor: torch.Tensor) -> None:
    assert type(back) is type(tensor)
    assert (back.dtype, back.shape, back.device) == (tensor.dtype, tensor.shape, tensor.device)
    assert back.requires_grad == tensor.requires_grad
    assert shown(back) == shown(tensor)


def memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def lies_in(tensor: torch.Tensor, body: memoryview) -> bool:
    start = np.frombuffer(body, np.uint8).ctypes.data
    return start <= tensor.data_ptr() < start + body.nbytes


# One tensor


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_on_top_of_the_body(name: str) -> None:
    tensor = make_tensor(ALL_DTYPES[name], 5, 3)
    body, layout = encode([tensor])
    (back,) = pickling.decode(body, layout)
    assert layout.frames == 1
    assert_same(back, tensor)
    assert back.stride() == tensor.stride()
    assert lies_in(back, body)
    assert back.data_ptr() % pickling.ALIGNMENT == 0


@pytest.mark.filterwarnings("ignore")  # torch's own, of quantized tensors and the storages it pickles them by
def test_quantized_tensors_are_left_to_torch() -> None:
    tensor = torch.quantize_per_tensor(torch.arange(6.0), 0.5, 1, torch.quint8)
    back = round_trip(tensor)
    assert (back.dtype, back.q_scale(), back.q_zero_point()) == (torch.quint8, 0.5, 1)
    assert torch.equal(back.dequantize(), tensor.dequantize())


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.mT if t.ndim > 1 else t,
    "every other": lambda t: t[..., ::2] if t.ndim else t,
    "part": lambda t: t[1:] if t.ndim else t,
    "column": lambda t: t[..., 0] if t.ndim and t.shape[-1] else t,
    "expanded": lambda t: t.expand(3, *t.shape),
    "flipped": lambda t: t.flip(0) if t.ndim else t,
    "unfolded": lambda t: t.unfold(0, 2, 1) if t.ndim and t.shape[0] >= 2 else t,
}
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def _apply(tensor: torch.Tensor, changes: list[str]) -> torch.Tensor:
    for change in changes:
        tensor = CHANGES[change](tensor)
    return tensor


CHANGED = st.builds(
    lambda name, shape, changes: _apply(make_tensor(ALL_DTYPES[name], *shape), changes),
    st.sampled_from(["bool", "uint8", "bfloat16", "float32", "int64", "complex128"]),
    SHAPES,
    st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3),
)


@given(CHANGED, st.integers(0, 1))
def test_every_layout_comes_back_and_ships_no_more_than_it_shows(tensor: torch.Tensor, depth: int) -> None:
    encoded = pickling.encode([[tensor]] if depth else tensor)
    assert sum(frame.nbytes for frame in encoded.frames) <= tensor.numel() * tensor.itemsize
    back = round_trip(tensor)
    assert_same(back, tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_0d_and_empty_tensors(shape: tuple[int, ...], requires_grad: bool) -> None:
    tensor = torch.zeros(shape).requires_grad_(requires_grad)
    back = round_trip(tensor)
    assert_same(back, tensor)
    assert back.stride() == tensor.stride()


DENSE = {
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.arange(4.0).expand(1000, 4),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_tensors_keep_their_strides_and_are_not_copied(name: str) -> None:
    tensor = DENSE[name]
    encoded = pickling.encode(tensor)
    (frame,) = encoded.frames
    assert np.frombuffer(frame, np.uint8).ctypes.data == tensor.data_ptr()
    assert frame.nbytes <= tensor.untyped_storage().nbytes()
    back = round_trip(tensor)
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


@pytest.mark.parametrize("view", [lambda t: t[3], lambda t: t[:, 3], lambda t: t[100:101, :], lambda t: t[::2, 7]])
def test_a_view_ships_the_bytes_it_shows_and_not_its_storage(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    storage = torch.rand(512, 384)
    tensor = view(storage)
    encoded = pickling.encode({"row": tensor})
    assert encoded.nbytes < 4096
    assert torch.equal(round_trip({"row": tensor})["row"], tensor)


def test_what_arrives_is_writable_and_private() -> None:
    tensor = torch.arange(5)
    back = round_trip(tensor)
    back.fill_(7)
    assert tensor.tolist() == [0, 1, 2, 3, 4]
    assert back.tolist() == [7] * 5


def test_a_tensor_never_lies_on_read_only_memory() -> None:
    tensors = [torch.arange(5.0), torch.arange(7)[2:], torch.zeros(0), torch.nn.Parameter(torch.ones(3))]
    body, layout = encode(tensors)
    back = pickling.decode(body.toreadonly(), layout)
    for received, tensor in zip(back, tensors, strict=True):
        assert_same(received, tensor)
        assert not received.numel() or not lies_in(received, body)
        with torch.no_grad():
            received.fill_(3)
    assert torch.equal(pickling.decode(body, layout)[0], tensors[0]), "and the message is as it was"


def test_tensors_keep_the_body_alive() -> None:
    body, layout = encode([torch.arange(1000), torch.arange(1000) + 1])
    first, second = pickling.decode(body, layout)
    second = second[5:]
    del body, first
    assert second.tolist() == list(range(6, 1001))


def test_one_tensor_in_two_places_stays_one_object() -> None:
    tensor = torch.arange(1000)
    encoded = pickling.encode([tensor, {"again": tensor}])
    assert encoded.layout.frames == 1
    a, b = round_trip([tensor, {"again": tensor}])
    assert a is b["again"]


@pytest.mark.parametrize("change", [torch.conj, lambda t: t.conj().imag, lambda t: t.conj()[::2], torch._neg_view])
def test_conjugated_and_negated_views_are_resolved(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = change(torch.tensor([1 + 2j, 3 - 4j, 5j]))
    assert tensor.is_conj() or tensor.is_neg()
    back = round_trip(tensor)
    assert torch.equal(back, tensor)
    assert not back.is_conj()
    assert not back.is_neg()


def test_tensors_made_in_inference_mode_come_back() -> None:
    with torch.inference_mode():
        tensor = torch.arange(5.0)
    assert torch.equal(round_trip(tensor), tensor)


def test_beside_a_lambda_tensors_travel_out_of_band_too() -> None:
    storage = torch.rand(512, 384)
    encoded = pickling.encode([storage[3], lambda: 3])
    assert encoded.nbytes < 4096
    assert encoded.layout.frames == 1


# Gradients, parameters, attributes


def test_a_leaf_keeps_requires_grad_and_can_be_trained() -> None:
    back = round_trip(torch.arange(3.0, requires_grad=True))
    assert back.is_leaf
    (back * 2).sum().backward()
    assert back.grad.tolist() == [2, 2, 2]


def test_a_computed_tensor_arrives_as_a_leaf_as_with_torch_itself() -> None:
    tensor = torch.arange(3.0, requires_grad=True) * 2
    for back in (round_trip(tensor), pickle.loads(pickle.dumps(tensor))):
        assert (back.is_leaf, back.requires_grad, back.tolist()) == (True, True, [0, 2, 4])


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_a_parameter_stays_a_parameter_and_out_of_band(requires_grad: bool, strided: bool) -> None:
    data = torch.rand(64, 48)[:, ::2] if strided else torch.rand(64, 48)
    parameter = torch.nn.Parameter(data, requires_grad=requires_grad)
    parameter.label = "kept"
    body, layout = encode([parameter, parameter])
    a, b = pickling.decode(body, layout)
    assert layout.frames == 1
    assert a is b
    assert_same(a, parameter)
    assert a.label == "kept"
    assert lies_in(a, body)


def test_a_module_comes_back_with_tied_weights() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    module[1].weight = module[0].weight
    body, layout = encode(module)
    assert layout.frames == 3
    back = pickling.decode(body, layout)
    assert back[1].weight is back[0].weight
    inputs = torch.rand(2, 64)
    assert torch.equal(back(inputs), module(inputs))


def test_python_attributes_are_kept() -> None:
    tensor = torch.arange(3)
    tensor.label, tensor.itself = "kept", [tensor]
    back = round_trip([tensor, torch.nn.Buffer(torch.ones(2))])
    assert back[0].label == "kept"
    assert back[0].itself[0] is back[0]
    assert isinstance(back[1], torch.nn.Buffer)


# Several views of one storage

VIEWS: dict[str, Callable[[torch.Tensor], list[torch.Tensor]]] = {
    "whole and part": lambda t: [t, t[3]],
    "part and whole": lambda t: [t[3], t],
    "overlapping parts": lambda t: [t[:20], t[10:30]],
    "next to each other": lambda t: list(t.unbind()),
    "near each other": lambda t: [t[:3], t[5:]],
    "other dtypes": lambda t: [t[1:], t.view(torch.uint8)[:, 1:], t.view(torch.int16)],
    "strided": lambda t: [t[::2], t[:, ::2], t[5]],
    "odd start": lambda t: [t.view(torch.uint8).flatten()[3:], t.flatten()[1:], t.view(torch.int16)],
    "odd start alone": lambda t: [t.view(torch.uint8).flatten()[35:], t.flatten()[9:]],
    "detached": lambda t: [t, t.detach(), t.T],
    "parameters": lambda t: [torch.nn.Parameter(t), t],
    "expanded": lambda t: [t[3].expand(5, -1), t[3]],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("cloudpickled", [False, True])
def test_views_of_one_tensor_stay_views_of_one_and_travel_once(name: str, readonly: bool, cloudpickled: bool) -> None:
    tensor = torch.rand(32, 8)
    views = VIEWS[name](tensor)
    body, layout = encode([views, (lambda: 3) if cloudpickled else 3])
    back = pickling.decode(body.toreadonly() if readonly else body, layout)[0]
    assert layout.frames == 1
    assert body.nbytes <= tensor.nbytes + 64 + 256 + 100 * len(views) + 2000 * cloudpickled
    assert len({memory_of(view) for view in back}) == 1
    for received, view in zip(back, views, strict=True):
        assert_same(received, view)
        assert received.stride() == view.stride()
        assert received.data_ptr() - back[0].data_ptr() == view.data_ptr() - views[0].data_ptr()


def test_writing_to_one_view_shows_in_the_other() -> None:
    tensor = torch.zeros(100, 100)
    whole, column = round_trip([tensor, tensor[:, 7]])
    column.fill_(1)
    assert whole.sum() == 100
    assert whole[:, 7].sum() == 100


def test_views_far_apart_do_not_drag_along_what_lies_between() -> None:
    tensor = torch.rand(512, 384)
    encoded = pickling.encode([tensor[0], tensor[500], tensor[501]])
    assert encoded.nbytes < 3 * tensor[0].nbytes + 1000
    assert encoded.layout.frames == 2
    back = round_trip([tensor[0], tensor[500], tensor[501]])
    assert [torch.equal(a, b) for a, b in zip(back, [tensor[0], tensor[500], tensor[501]], strict=True)] == [True] * 3
    assert memory_of(back[1]) == memory_of(back[2]) != memory_of(back[0])


def test_tensors_of_different_memory_are_not_mixed() -> None:
    a, b = torch.zeros(10), torch.ones(10)
    back = round_trip([a, a[3:], b, b[:3]])
    back[0].fill_(5)
    assert [t.tolist()[0] for t in back] == [5, 5, 1, 1]


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 200), st.sampled_from([1, 2, 4])), min_size=1, max_size=6)
)
def test_any_views_come_back_and_share_as_before(cuts: list[tuple[int, int, int]]) -> None:
    base = torch.arange(8000, dtype=torch.int16)
    views = [base[start : start + count * step : step] for start, count, step in cuts]
    expected = copy.deepcopy(views)  # keeps sharing, by copying the whole storage
    back = round_trip(views)
    for i, (view, twin) in enumerate(zip(back, expected, strict=True)):
        assert torch.equal(view, twin)
        view.fill_(-i)
        twin.fill_(-i)
    assert [view.tolist() for view in back] == [twin.tolist() for twin in expected]


class MakesViews:
    """Makes its tensors when it is pickled, so that they are others on a second pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        fresh = self.tensor.clone()
        return list, ([fresh[:500], fresh[250:]],)


def test_tensors_made_while_pickling_are_right() -> None:
    tensor = torch.arange(1000)
    shared, (first, second) = round_trip([[tensor, tensor[1:]], MakesViews(tensor)])
    assert torch.equal(first, tensor[:500])
    assert torch.equal(second, tensor[250:])
    assert memory_of(shared[0]) == memory_of(shared[1])


RANGES = st.lists(
    st.tuples(st.integers(0, 100_000), st.integers(1, 9000)).map(lambda r: (r[0], r[0] + r[1])), max_size=12
)


@given(RANGES)
def test_join_groups_exactly_what_touches(ranges: list[tuple[int, int]]) -> None:
    groups = torch_tensors.join(ranges)
    assert [r for group in groups for r in group] == sorted(ranges)
    page = torch_tensors._NEIGHBOUR_NBYTES
    covered = [np.concatenate([np.arange(start, stop) for start, stop in group]) for group in groups]
    for group, bytes_ in zip(groups, covered, strict=True):
        assert np.diff(np.unique(bytes_)).max(initial=0) <= page + 1, "no gap wider than a page inside"
        assert group
    for before, after in pairwise(covered):
        assert after.min() - before.max() - 1 > page, "and only wider ones between groups"


# What is left to torch


class Tagged(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csc])
def test_sparse_tensors_come_back_with_their_parts_out_of_band(layout: torch.layout) -> None:
    tensor = torch.eye(4).to_sparse(layout=layout)
    body, frames = encode([tensor])
    back = pickling.decode(body, frames)[0]
    assert frames.frames >= 2
    assert back.layout == layout
    assert torch.equal(back.to_dense(), tensor.to_dense())


def test_subclasses_come_back_as_such() -> None:
    tensor = torch.arange(5.0).as_subclass(Tagged)
    tensor.label = "kept"
    back = round_trip(tensor)
    assert (type(back), back.label, back.tolist()) == (Tagged, "kept", [0, 1, 2, 3, 4])


def test_meta_tensors_come_back() -> None:
    back = round_trip(torch.empty(3, 4, device="meta", dtype=torch.bfloat16))
    assert (back.device.type, back.shape, back.dtype) == ("meta", (3, 4), torch.bfloat16)


def test_a_tensor_with_hooks_is_pickled_with_torchs_warning() -> None:
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(print)
    with pytest.warns(UserWarning, match="hook"):
        back = round_trip(tensor)
    assert back.tolist() == [1, 1]


def test_what_torch_itself_refuses_is_named() -> None:
    with pytest.raises(pickling.CannotEncode, match=r"^list\[1\] \(a Tensor\) does not pickle: ZeroTensor"):
        pickling.encode([1, torch._efficientzerotensor((3,))])


# Devices


@pytest.mark.parametrize("device", DEVICES)
def test_device_tensors_come_back_by_way_of_the_host(device: str) -> None:
    torch_tensors.remember_device()
    tensor = torch.rand(32, 8).to(device)
    for views in ([tensor], [tensor, tensor[3], tensor[:0]], [tensor[:, 3]]):
        body, layout = encode(views)
        back = pickling.decode(body, layout)
        for received, view in zip(back, views, strict=True):
            assert_same(received, view)
        assert len({memory_of(view) for view in back if view.numel()}) == 1


class FakeDevice:
    """What `torch.cuda` is asked."""

    def __init__(self, devices: int, current: int | None = None) -> None:
        self.devices, self.current = devices, current

    def is_available(self) -> bool:
        return self.devices > 0

    def device_count(self) -> int:
        return self.devices

    def is_initialized(self) -> bool:
        return self.current is not None

    def current_device(self) -> int:
        assert self.current is not None, "asked before it is initialised: that makes a context"
        return self.current


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(torch_tensors, "_own_device", {})

    def install(*args: Any) -> None:
        monkeypatch.setattr(torch, "cuda", FakeDevice(*args))
        monkeypatch.setitem(torch_tensors.sys.modules, "torch.cuda", torch.cuda)

    return install


def test_the_own_device_is_the_one_that_the_users_thread_had(fake_cuda: Callable[..., None]) -> None:
    fake_cuda(8, 5)
    torch_tensors.remember_device()
    fake_cuda(8, 0)  # as another thread sees it
    assert torch_tensors.own_device("cuda") == "cuda:5"


@pytest.mark.parametrize(("cuda", "noted"), [(None, {}), ("12.8", {"cuda": 5})])
def test_devices_are_looked_for_only_where_torch_was_built_for_some(
    cuda: str | None, noted: dict[str, int], fake_cuda: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(8, 5)
    monkeypatch.setattr(reducers, "_has_devices", None)
    for platform, version in (("cuda", cuda), ("hip", None), ("xpu", None)):
        monkeypatch.setattr(torch.version, platform, version, raising=False)
    whole = sys.modules["torch"]
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # another thread imports it
    reducers.note_devices()
    monkeypatch.setitem(sys.modules, "torch", whole)
    assert reducers._has_devices is None
    for _ in range(2):
        reducers.note_devices()
        assert torch_tensors._own_device == noted


def test_the_only_device_needs_no_choice(fake_cuda: Callable[..., None]) -> None:
    fake_cuda(1)
    torch_tensors.remember_device()
    assert torch_tensors.own_device("cuda") == "cuda:0"


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (0, r"a tensor on a cuda device arrived, and this process sees no cuda device: send tensor\.cpu\(\)"),
        (8, r"which of its 8 devices is its own: call torch\.cuda\.set_device\(\.\.\.\) before LazyBroadcast"),
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_a_tensor_for_a_device_that_is_not_there_says_so(
    devices: int, text: str, flat: bool, fake_cuda: Callable[..., None]
) -> None:
    fake_cuda(devices)
    torch_tensors.remember_device()
    arguments = (None, torch.int8, 0, (0,), (1,), False, "cuda")
    with pytest.raises(RuntimeError, match=text):
        torch_tensors.receive(bytearray(8), "cuda") if flat else torch_tensors.rebuild(*arguments)


def test_a_kind_that_torch_does_not_know_is_named() -> None:
    with pytest.raises(RuntimeError, match="this process sees no npu device"):
        torch_tensors.receive(bytearray(8), "npu")

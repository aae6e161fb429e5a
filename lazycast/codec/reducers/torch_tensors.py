"""Tensors out of band: the bytes they show, once, and views of one memory stay views of one memory.

torch pickles the whole storage behind a tensor, in band and by way of its file format. Here a tensor is taken apart
into a `Stretch` of bytes and a description of how to look at them.

* A tensor alone sends what it shows. Strides are kept where that costs nothing (transposed, channels-last, expanded);
  a tensor with gaps is copied together first.
* Tensors of one payload that look at overlapping or neighbouring bytes of one storage share one stretch, so they share
  memory on the receiver as well. That is known only when all tensors have been seen, so a payload with such tensors is
  pickled a second time; all others take one pass.
* A tensor never lies on memory that cannot be written to: torch knows no read-only tensors, and a write would end the
  process. Read-only frames are copied.
* Tensors on a device come through the host, and go to the receiver's own current device of that kind, never to the one
  that has the sender's number.
* As in torch's own pickling: a tensor that requires gradients arrives as a leaf that does, without `grad` and history;
  Python attributes are kept. Conjugated and negated views are resolved.
* Left to torch's own pickling: sparse, quantized, nested, named and meta tensors, subclasses, tensors with hooks, and
  devices not listed below. `Parameter` needs nothing: it reduces to a plain tensor.
"""

from __future__ import annotations

import pickle
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lazycast.codec.tensor_memory import items_of

if TYPE_CHECKING:
    import torch

    from lazycast.codec.reducers import Reduced, Reduction

_KINDS = ("cuda", "xpu")  # devices whose tensors have storages that can be looked at byte by byte (ROCm is "cuda")
_NEIGHBOUR_NBYTES = 4096  # gaps up to a page are sent along to keep views together; wider ones are not worth it
_ALIGNMENT = 16  # of stretches in their storage: the largest item (complex128), so that offsets count in items
_own_device: dict[str, int] = {}

Range = tuple[int, int]  # start and stop in bytes


def install(reduction: Reduction) -> None:
    reducer = TensorReducer()
    reduction[sys.modules["torch"].Tensor] = reducer.reduce
    reduction.plans.append(reducer.plan)
    reduction.cuts.append(lambda: reducer.cut)


class Stretch:
    """Bytes of a storage. Pickled once per object, so views that name the same stretch get the same memory."""

    def __init__(self, storage: torch.UntypedStorage, start: int, stop: int) -> None:
        self.storage, self.start, self.stop = storage, start, stop

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        device = self.storage.device
        flat = torch.empty(0, dtype=torch.uint8, device=device)
        flat.set_(self.storage, self.start, (self.stop - self.start,), (1,))
        if device.type != "cpu":
            # Encoding runs on a thread of its own, whose stream knows nothing of the work that fills the tensor.
            getattr(torch, device.type).synchronize(device)
            flat = flat.cpu()
        return receive, (pickle.PickleBuffer(items_of(flat).data), device.type)


class TensorReducer:
    """Takes apart the tensors of one payload; knows after the first pass which of them share memory."""

    def __init__(self) -> None:
        self.cut = False  # whether some tensor has a history, which does not travel
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive: another one must not get the same address
        self._ranges: defaultdict[int, list[Range]] = defaultdict(list)
        self._shared: dict[tuple[int, Range], Stretch] = {}

    def reduce(self, tensor: torch.Tensor) -> Reduced:
        self.cut |= not tensor.is_leaf
        if not is_bytes_and_strides(tensor):
            return _as_torch_does(tensor)
        shown = tensor.detach().resolve_conj().resolve_neg()
        stretch, offset = None, 0
        if shown.numel():
            start, stop = range_ = _range(shown)
            stretch = self._find_shared(shown, range_)
            if stretch is None:
                if stop - start > shown.nbytes:  # it has gaps
                    shown = shown.contiguous()
                    start, stop = _range(shown)
                stretch = Stretch(shown.untyped_storage(), start, stop)
            offset = (start - stretch.start) // shown.itemsize
        how = (shown.dtype, offset, tuple(shown.shape), shown.stride(), tensor.requires_grad, shown.device.type)
        attributes = tensor.__dict__
        if attributes:
            return rebuild, (stretch, *how), dict(attributes), None, None, set_attributes
        return rebuild, (stretch, *how)

    def _find_shared(self, tensor: torch.Tensor, range_: Range) -> Stretch | None:
        """Note which bytes a tensor shows; return the stretch that it shares with others, if that is known by now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._storages[key] = storage
        self._ranges[key].append(range_)
        return self._shared.get((key, range_))

    def plan(self) -> bool:
        """After the first pass: find the tensors that share memory. Returns whether there are any."""
        for key, ranges in self._ranges.items():
            for group in join(ranges):
                if len(group) > 1:
                    start, stop = group[0][0] // _ALIGNMENT * _ALIGNMENT, max(stop for _, stop in group)
                    stretch = Stretch(self._storages[key], start, stop)
                    self._shared.update({(key, range_): stretch for range_ in group})
        return bool(self._shared)


def join(ranges: Iterable[Range]) -> list[list[Range]]:
    """Group ranges that overlap or are neighbours, directly or through others; groups and members in order."""
    groups: list[list[Range]] = []
    end = -1
    for start, stop in sorted(ranges):
        if groups and start - end <= _NEIGHBOUR_NBYTES:
            groups[-1].append((start, stop))
            end = max(end, stop)
        else:
            groups.append([(start, stop)])
            end = stop
    return groups


def is_bytes_and_strides(tensor: torch.Tensor) -> bool:
    """Whether a tensor is taken apart here, and not by torch's own pickling."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type in ("cpu", *_KINDS)
        and not tensor.is_quantized
        and not tensor.is_nested
        and not getattr(tensor, "has_names", bool)()  # gone in 2.13
        and not tensor._is_zerotensor()
        and not tensor._backward_hooks
    )


def _as_torch_does(tensor: torch.Tensor) -> Reduced:
    reduced: Reduced = tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    return reduced


def _range(tensor: torch.Tensor) -> Range:
    """The bytes of its storage from the first item that a tensor shows to the last, whatever lies between them."""
    if tensor.is_contiguous():
        items = tensor.numel()
    else:
        items = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.itemsize
    return start, start + items * tensor.itemsize


# On the receiver


def receive(buffer: Any, kind: str) -> torch.Tensor:
    """Put a flat tensor of bytes on top of what arrived, where it may be written to; else on a copy."""
    import torch

    if memoryview(buffer).readonly:
        flat = torch.empty(len(buffer), dtype=torch.uint8, device="cpu")
        np.copyto(items_of(flat), np.frombuffer(buffer, np.uint8))
    else:
        flat = torch.frombuffer(buffer, dtype=torch.uint8)
    return flat if kind == "cpu" else flat.to(own_device(kind))


def rebuild(
    flat: torch.Tensor | None,
    dtype: torch.dtype,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    kind: str,
) -> torch.Tensor:
    """Look at bytes as the sender's tensor did; without any, the tensor is empty."""
    import torch

    if flat is None:
        device = "cpu" if kind == "cpu" else own_device(kind)
        tensor = torch.empty_strided(size, stride, dtype=dtype, device=device)
    else:
        tensor = torch.empty(0, dtype=dtype, device=flat.device)
        tensor.set_(flat.untyped_storage(), offset, size, stride)
    return tensor.requires_grad_() if requires_grad else tensor


def set_attributes(tensor: torch.Tensor, attributes: dict[str, Any]) -> None:
    tensor.__dict__.update(attributes)


def is_built_for_devices() -> bool | None:
    """Whether this torch can have any of our kinds of devices. None: another thread is still importing it."""
    version = getattr(sys.modules["torch"], "version", None)
    if version is None:
        return None
    # Older versions do not say whether it is Intel's.
    return any(getattr(version, platform, "unknown") is not None for platform in ("cuda", "hip", "xpu"))


def remember_device() -> None:
    """Note the current device of the calling thread, for tensors that arrive later, on other threads.

    Every thread starts out with device 0, which on most ranks is another rank's: so the user's own threads are asked,
    and only about devices in use already, which creates no context.
    """
    for kind in _KINDS:
        module = sys.modules.get(f"torch.{kind}")
        if module is not None and getattr(module, "is_initialized", bool)():
            _own_device[kind] = module.current_device()


def own_device(kind: str) -> str:
    """Name this process's own device of a kind. Raises RuntimeError where that cannot be known."""
    import torch

    module = getattr(torch, kind, None)
    devices = module.device_count() if module is not None and module.is_available() else 0
    if not devices:
        raise RuntimeError(
            f"a tensor on a {kind} device arrived, and this process sees no {kind} device: send tensor.cpu(), or "
            "move it in the materializer"
        )
    if kind not in _own_device and devices > 1:
        raise RuntimeError(
            f"a tensor on a {kind} device arrived, and this process has not said which of its {devices} devices is its "
            f"own: call torch.{kind}.set_device(...) before LazyBroadcast(...), or send tensor.cpu()"
        )
    return f"{kind}:{_own_device.get(kind, 0)}"

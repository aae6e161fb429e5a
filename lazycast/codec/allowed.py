"""The codec of `trust=names`: pickle, but what is unpickled can name only what is allowed, letter by letter.

Guarantees:

* A stream gets no class and no function but those of `ALWAYS` and those the user has listed; anything else is a
  `TrustError` that says its name, raised before anything is imported for it. Names are compared whole: that a module is
  allowed allows nothing in it, nor does a class its attributes.
* A stream sets the state of instances of listed classes, and of nothing else: not of the classes and functions that it
  names, nor of arrays, dtypes, tensors and images, whose own `__setstate__` trusts what it is given. A stream that may
  set state, or that names what is listed or a type that trusts its arguments, is read by Python's own unpickler, which
  can be asked about each step: see `lazycast.codec.careful`. What pickle's C reads are streams of names that are
  harmless together: of all that these make, nothing has an attribute that a stream has chosen, but tensors, whose are
  checked.
* What would give the sender everything can be neither listed nor recommended: see `lazycast.codec.doors`.
* Extension codes, which can bypass the names, are refused. There are no persistent ids.
* Code never travels: what pickle cannot name (lambdas, local classes) is not encoded, and cloudpickle's own functions
  cannot be allowed.

What it does not do: a listed class or function is the sender's to call, with any arguments, and the attributes of its
instances to set; and pickle bounds no memory. Against senders who are hostile there is `lazycast.codec.data`.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import pickletools
from collections.abc import Callable, Collection, Mapping
from types import FunctionType
from typing import Any, Final
from zoneinfo import ZoneInfo

from lazycast.codec import pickling
from lazycast.codec.careful import CarefulUnpickler
from lazycast.codec.doors import is_array_class, not_allowed, objection_to
from lazycast.codec.opcodes import may_set_state
from lazycast.codec.pickling import CannotEncode, Encoded, Layout
from lazycast.codec.reducers import Reduce, Reduced, Reduction
from lazycast.errors import TrustError


def _in(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_NUMBERS = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_TORCH_DTYPES = (
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 complex32 complex64 "
    "complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
)

#: What any stream may name: data types that cannot be changed by pickle and make no more of what they are given, and
#: what arrays, tensors and images are rebuilt with. Not `range`, `bytes` and `bytearray`, which make much of one number
#: (their objects need no name); not NumPy's own pickling, which trusts its input (see
#: `lazycast.codec.reducers.described`), nor torch's of storages, which unpickles again; not the classes of images,
#: which open the file that they are given.
ALWAYS: Final = frozenset(
    _in("builtins", "complex set frozenset slice list dict tuple int float str bool Ellipsis NotImplemented")
    | _in("collections", "OrderedDict defaultdict deque")
    | _in("datetime", "date datetime time timedelta timezone")
    | _in("decimal", "Decimal")
    | _in("numpy", _NUMBERS)
    | _in("lazycast.codec.data.arrays", "rebuild_scalar")
    | _in("lazycast.codec.data.dtypes", "read")
    | _in("lazycast.codec.reducers.described", "array_of array_of_objects image_of")
    | _in("lazycast.codec.reducers.builtin_bytes", "data_of")
    | _in("lazycast.codec.reducers.torch_tensors", "receive rebuild set_attributes")
    | _in("lazycast.codec.reducers.pil_images", "set_state")
    | _in("torch", f"Size device {_TORCH_DTYPES}")
    | _in("torch._utils", "_rebuild_parameter")
)
#: What is found under a name, in place of what bears it.
_CHECKED: Final = {
    "lazycast.codec.reducers.builtin_bytes.data_of": ("lazycast.codec.reducers.described", "view_of"),
    "lazycast.codec.reducers.numpy_arrays.set_attributes": (
        "lazycast.codec.reducers.described",
        "set_attributes_of_array",
    ),
    "lazycast.codec.reducers.torch_tensors.receive": ("lazycast.codec.reducers.described", "bytes_of_tensor"),
    "lazycast.codec.reducers.torch_tensors.rebuild": ("lazycast.codec.reducers.described", "tensor_of"),
    "lazycast.codec.reducers.torch_tensors.set_attributes": (
        "lazycast.codec.reducers.described",
        "set_attributes_of_tensor",
    ),
    "lazycast.codec.reducers.pil_images.set_state": ("lazycast.codec.reducers.described", "set_state_of_image"),
    "torch._utils._rebuild_parameter": ("lazycast.codec.reducers.described", "parameter_of"),
}
#: What pickle's C may read: whatever is called, with whatever a stream of these names can make, is harmless.
_HARMLESS: Final = frozenset(
    name
    for name in ALWAYS
    if name.startswith(("lazycast.", "torch.", "collections.", "datetime.", "decimal."))
    or name in _in("builtins", "complex set frozenset slice list dict int float Ellipsis NotImplemented")
)
_BY_VALUE = ("cloudpickle.", "types.CodeType", "types.FunctionType")


def _objection(name: str) -> TrustError:
    if name.startswith(_BY_VALUE):
        return TrustError(
            f"what arrived holds code ({name}), which cannot be allowed by name: send functions that every rank can "
            "import, and allow those, or register them on every rank"
        )
    return TrustError(f"what arrived names {name!r}, which {not_allowed(name)}")


Find = Callable[[str, str], Any]


def _find(find: Find, module: str, qualname: str) -> Any:
    """Find what is always allowed."""
    found = find(*_CHECKED.get(f"{module}.{qualname}", (module, qualname)))
    return found.__call__ if isinstance(found, FunctionType) else found  # what has no attributes to set


class _NeedsCare(Exception):
    """A stream may set state, or names what is listed: it is to be read again, with care."""


class _Unpickler(pickle.Unpickler):
    """For streams that set no state. Not fooled by renamed modules of Python 2: `fix_imports` is off.

    Looks through the stream when it meets the first name: until then nothing has been called, and nothing has a state.
    """

    def __init__(self, stream: bytes, frames: Any, names: frozenset[str]) -> None:
        super().__init__(io.BytesIO(stream), fix_imports=False, buffers=frames)
        self._names = names
        self._unseen: bytes | None = stream

    def find_class(self, module: str, qualname: str) -> Any:
        name = f"{module}.{qualname}"
        if name not in _HARMLESS or name in self._names:
            if name in self._names or name in ALWAYS:
                raise _NeedsCare
            raise _objection(name)
        if self._unseen is not None:
            if may_set_state(self._unseen):
                raise _NeedsCare
            self._unseen = None
        return _find(super().find_class, module, qualname)


def _reduce_zone(zone: ZoneInfo) -> Reduced:
    """By its key, to its class. Its own way is a private method, which pickle gets by `getattr`."""
    if zone.key is None:
        raise pickle.PicklingError("a ZoneInfo that was read from a file has no key by which it could be found")
    return ZoneInfo, (zone.key,)


class _Reduction(Reduction):
    """With NumPy's objects by description."""

    def _fill(self, base: Mapping[type, Reduce]) -> None:
        from lazycast.codec.reducers import described

        super()._fill(base)
        described.install(self)
        self[ZoneInfo] = _reduce_zone


class AllowCodec:
    """A `lazycast.codec.pickling.Codec` that decodes what names nothing but `ALWAYS` and `names`. Thread-safe."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def encode(self, obj: object) -> Encoded:
        """Pickle `obj`, by name only. Raises CannotEncode."""
        try:
            return pickling.encode_by_name(obj, _Reduction)
        except Exception as exc:
            raise CannotEncode(
                f"{type(obj).__name__} does not pickle by name, and with names in trust= no code travels: "
                f"{type(exc).__name__}: {exc}"
            ) from exc

    def is_plain(self, body: memoryview, layout: Layout) -> bool:
        """Whether there are names: those that are allowed may take long."""
        return pickling.is_plain(body, layout)

    def decode(self, body: memoryview, layout: Layout) -> Any:
        """Rebuild an object on top of `body`. Raises TrustError naming what is not allowed, else what pickle raises."""
        stream = pickling.stream_of(body, layout)
        if copyreg._inverted_registry:  # type: ignore[attr-defined]  # else no code means anything
            _refuse_extensions(stream)
        content = bytes(stream)
        try:
            return _Unpickler(content, pickling.frames_of(body, layout), self._names).load()
        except _NeedsCare:
            pass
        return CarefulUnpickler(content, pickling.frames_of(body, layout), self._find, self._names).load()

    def _find(self, find: Find, module: str, qualname: str) -> tuple[Any, str]:
        """Find what a stream names, if it may; say by which rule it may be called."""
        name = f"{module}.{qualname}"
        if name in ALWAYS and name not in self._names:
            found = _find(find, module, qualname)
            return found, module if isinstance(found, type) else "function"
        if name not in self._names:
            raise _objection(name)
        if name in _CHECKED:
            return _find(find, module, qualname), "function"
        found = find(module, qualname)
        if is_array_class(found):
            return found, "named"
        why = objection_to(found)
        if why is not None:
            raise TrustError(f"what arrived names {name!r}, which is not allowed although it is listed: it {why}")
        return found, "listed"


def _refuse_extensions(stream: memoryview) -> None:
    """Raise TrustError for a stream with extension codes: pickle keeps what they meant, and asks nobody again."""
    for opcode, code, _ in pickletools.genops(bytes(stream)):
        if opcode.name.startswith("EXT"):
            raise TrustError(
                f"what arrived holds extension code {code}, and with names in trust= types travel by name only"
            )

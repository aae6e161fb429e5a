"""Attacks that once worked, each with its variations: on what may be unpickled, on data, and on descriptors."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from lazycast.codec import data
from lazycast.codec.allowed import ALWAYS, AllowCodec
from lazycast.codec.doors import problem
from lazycast.codec.pickling import CannotEncode, Layout
from lazycast.errors import TrustError
from lazycast.net.host import memory

HERE = __name__

# Streams as a hostile rank writes them


class Name(NamedTuple):
    """A class or function, by name."""

    module: str
    qualname: str


class Call(NamedTuple):
    """What a stream calls, and what it does with the result."""

    fn: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    items: tuple[Any, ...] = ()
    pairs: tuple[tuple[Any, Any], ...] = ()
    added: tuple[Any, ...] = ()
    new: bool = False


class Forger(pickle._Pickler):
    """Writes what a pickler of honest objects does not."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.save(obj.module)
            self.save(obj.qualname)
            self.write(pickle.STACK_GLOBAL)
        elif isinstance(obj, Call):
            self._save_call(obj)
        else:
            super().save(obj, save_persistent_id)  # type: ignore[misc]

    def _save_call(self, call: Call) -> None:
        self.save(call.fn)
        self.save(call.args)
        self.write(pickle.NEWOBJ if call.new else pickle.REDUCE)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)
        for many, end in (
            (call.items, pickle.APPENDS),
            (tuple(itertools.chain(*call.pairs)), pickle.SETITEMS),
            (call.added, pickle.ADDITEMS),
        ):
            if many:
                self.write(pickle.MARK)
                for item in many:
                    self.save(item)
                self.write(end)


def forged(obj: Any) -> bytes:
    import io

    stream = io.BytesIO()
    Forger(stream, 5).dump(obj)
    return stream.getvalue()


def arrives(obj: Any, *allow: str) -> Any:
    stream = forged(obj)
    return AllowCodec(allow).decode(memoryview(stream), Layout(len(stream), 0))


SECRET = np.frombuffer(b"\x07" * 64, np.uint8).copy()
CALLED: list[str] = []


class Box:
    """A class that users list: whatever a stream calls of it is noted."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __call__(self, *args: Any) -> Any:
        CALLED.append("__call__")

    def append(self, item: Any) -> None:
        CALLED.append("append")

    def extend(self, items: Any) -> None:
        CALLED.append("extend")

    def add(self, item: Any) -> None:
        CALLED.append("add")

    def update(self, items: Any) -> None:
        CALLED.append("update")

    def __setitem__(self, key: Any, value: Any) -> None:
        CALLED.append("__setitem__")


BOX = Name(HERE, "Box")
BOXES = (f"{HERE}.Box",)
ORDERED = Name("collections", "OrderedDict")


def _interface() -> dict[str, Any]:
    return {"version": 3, "typestr": "|u1", "shape": (64,), "data": (SECRET.ctypes.data, False)}


MEMORY = (
    "__array_interface__",
    "__array_struct__",
    "__array__",
    "__buffer__",
    "__index__",
    "__float__",
    "__int__",
    "__dlpack__",
)
NUMBERS = ("uint8", "int64", "float32", "float64", "complex64", "bool_", "str_", "bytes_", "datetime64", "timedelta64")


@pytest.mark.parametrize("attribute", MEMORY)
@pytest.mark.parametrize("number", NUMBERS)
def test_no_number_type_reads_memory_that_a_stream_names(attribute: str, number: str) -> None:
    holder = Call(ORDERED, (), {attribute: _interface()})
    for through in (holder, [holder], (holder,), {"a": holder}):
        with pytest.raises((TrustError, pickle.UnpicklingError)):
            arrives(Call(Name("numpy", number), (through,)))


STATES: dict[str, Any] = {
    **{f"attribute {name}": {name: _interface()} for name in MEMORY[:4]},
    **{f"slot {name}": (None, {name: _interface()}) for name in MEMORY[:4]},
    "class": {"__class__": BOX},
    "dict": {"__dict__": {"__array_interface__": _interface()}},
    "call": {"__call__": BOX},
    "reduce": {"__reduce_ex__": BOX},
    "getattr": {"__getattr__": BOX},
    "name that is no text": {1: 2},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("holder", [BOX, ORDERED], ids=["listed class", "OrderedDict"])
def test_no_state_gives_an_object_what_others_look_up(holder: Name, state: Any) -> None:
    with pytest.raises((TrustError, pickle.UnpicklingError)):
        arrives(Call(holder, (), state), *BOXES)
    with pytest.raises((TrustError, pickle.UnpicklingError)):
        arrives([Call(holder, (), state, new=True)], *BOXES)


LISTED: dict[str, Any] = {
    "call of an instance": Call(Call(BOX, ()), (1,)),
    "call of an instance with state": Call(Call(BOX, (), {"x": 1}), (1,)),
    "call of an instance in a call": Call(BOX, (Call(Call(BOX), ()),)),
    "extend": Call(BOX, (), items=(1, 2)),
    "append to one": Call(BOX, (), items=(1,)),
    "extend of one that is new": Call(BOX, (), items=(1, 2), new=True),
    "extend after a state": Call(BOX, (), {"x": 1}, items=(1, 2)),
    "setitem": Call(BOX, (), pairs=(("a", 1),)),
    "setitem of one that is new": Call(BOX, (), pairs=(("a", 1), ("b", 2)), new=True),
    "add": Call(BOX, (), added=(1, 2)),
    "add to one that is new": Call(BOX, (), added=(1,), new=True),
    "call of a method": Call(Name(HERE, "Box.extend"), (Call(BOX), [1])),
    "call of another method": Call(Name(HERE, "Box.__call__"), (Call(BOX),)),
}


@pytest.mark.parametrize("call", LISTED.values(), ids=LISTED)
def test_a_listed_class_is_constructed_and_nothing_else_of_it_is_called(call: Any) -> None:
    CALLED.clear()
    with pytest.raises((TrustError, pickle.UnpicklingError)):
        arrives(call, *BOXES)
    assert CALLED == []


def test_a_listed_class_arrives_as_it_was() -> None:
    box = arrives(Call(BOX, (1, "two"), {"x": 3}), *BOXES)
    assert (box.args, box.x, CALLED) == ((1, "two"), 3, [])


DOORS = (
    *("builtins.getattr", "builtins.setattr", "builtins.eval", "builtins.exec", "builtins.__import__", "builtins.open"),
    *(
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "importlib.import_module",
        "pickle.loads",
        "operator.attrgetter",
    ),
    *("operator.methodcaller", "functools.partial", "ctypes.string_at", "numpy._core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.memmap", "numpy.load", "torch.load", "PIL.GifImagePlugin.GifImageFile", "PIL.Image.open"),
    *(
        "sys.modules",
        "types.FunctionType",
        "socket.socket",
        "shutil.rmtree",
        "marshal.loads",
        "code.InteractiveInterpreter",
    ),
)


@pytest.mark.parametrize("name", DOORS)
def test_what_gives_the_sender_everything_is_neither_listed_nor_recommended(name: str) -> None:
    assert name not in ALWAYS
    why = problem(name)
    assert why is not None
    module, _, qualname = name.rpartition(".")
    with pytest.raises((TrustError, pickle.UnpicklingError)) as caught:
        arrives(Call(Name(module, qualname), ("x",)))
    assert "add it to trust=" not in str(caught.value)


# Data


def body(value: Any) -> tuple[memoryview, Layout]:
    stream = b"\x00" + msgspec.msgpack.encode(value)
    return memoryview(bytearray(stream)), Layout(len(stream), 0)


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if kind == "list" or (kind == "both" and level % 2) else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict", "both"])
@pytest.mark.parametrize("depth", [102, 200, 500, 900])
def test_data_is_nested_as_deep_as_is_said_and_no_deeper(kind: str, depth: int) -> None:
    honest = nested(99, kind)
    assert data.decode(*_encoded(honest)) == honest
    with pytest.raises(ValueError, match=r"deep|recursion"):
        data.decode(*body(nested(depth, kind)))


def _encoded(value: Any) -> tuple[memoryview, Layout]:
    encoded = data.encode(value)
    room = memoryview(bytearray(encoded.nbytes))
    encoded.write_into(room)
    return room, encoded.layout


EXTENSIONS = {
    "seconds": b"\xd6\xff" + bytes(4),
    "nanoseconds": b"\xd7\xff" + bytes(8),
    "long": b"\xc7\x0c\xff" + bytes(12),
    **{f"type {kind}": b"\xd4" + bytes([kind & 0xFF]) + b"\x00" for kind in (-1, -2, -128, 0, 1, 5, 127)},
    "empty": b"\xc7\x00\x05",
    "wide": b"\xc8\x00\x02\x05ab",
    "widest": b"\xc9\x00\x00\x00\x02\x05ab",
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize("around", [b"", b"\x91", b"\x81\xa1a", b"\x92\x01"], ids=["bare", "list", "dict", "pair"])
def test_no_extension_of_msgpack_becomes_an_object(extension: bytes, around: bytes) -> None:
    stream = b"\x00" + around + extension
    with pytest.raises(ValueError, match=r"."):
        data.decode(memoryview(bytearray(stream)), Layout(len(stream), 0))


DTYPES = (
    *("<M8[0s]", "<m8[0s]", "<M8[0D]", "<M8[00s]", "<M8[-1s]", "<M8[25s/3]", "<M8[s", "<M8[xx]", "|O", "O", "object"),
    *("<i3", "<f3", "|V0", "|S0", "i4,i4", "(2,)i4", "<M8[1e9s]", "", " <i4", "<i4 ", "=i4", "|i4", "<U-1"),
)


@pytest.mark.parametrize("text", DTYPES)
def test_a_dtype_is_of_a_strict_form(text: str) -> None:
    from lazycast.codec.data import dtypes

    with pytest.raises(ValueError, match=r"."):
        dtypes.read(text)


# Descriptors


def _memfd(flags: int = 0, nbytes: int = 1 << 16, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> int:
    fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, nbytes)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _file(folder: str, mode: int = os.O_RDWR) -> int:
    fd, path = tempfile.mkstemp(dir=folder)
    os.ftruncate(fd, 1 << 16)
    os.close(fd)
    return os.open(path, mode)


def _pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def _secret() -> int:
    """`memfd_secret`, where the kernel has it."""
    fd = ctypes.CDLL(None, use_errno=True).syscall(447, 0)
    if fd < 0:
        return _file("/tmp")  # another file that is no shared memory
    os.ftruncate(fd, 1 << 16)
    return int(fd)


DESCRIPTORS: dict[str, Callable[[], int]] = {
    "huge pages": lambda: _memfd(os.MFD_HUGETLB, 2 << 20),
    "huge pages of 2 MiB": lambda: _memfd(os.MFD_HUGETLB | os.MFD_HUGE_2MB, 2 << 20),
    "not sealed": lambda: _memfd(seals=0),
    "too small": lambda: _memfd(nbytes=1 << 12),
    "empty": lambda: _memfd(nbytes=0),
    "a file": lambda: _file("/tmp"),
    "a file on a tmpfs": lambda: _file("/dev/shm"),
    "a file for reading": lambda: _file("/tmp", os.O_RDONLY),
    "a path": lambda: _file("/tmp", os.O_PATH),
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "zeros": lambda: os.open("/dev/zero", os.O_RDWR),
    "nothing": lambda: os.open("/dev/null", os.O_RDWR),
    "a pipe": _pipe,
    "a socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "an event": lambda: os.eventfd(0),
    "a process": lambda: os.pidfd_open(os.getpid()),
    "secret memory": _secret,
}


@pytest.mark.parametrize("make", DESCRIPTORS.values(), ids=DESCRIPTORS)
def test_only_sealed_shared_memory_is_mapped(make: Callable[[], int]) -> None:
    try:
        fd = make()
    except OSError:  # a kernel without huge pages: nobody can send any
        if make not in (DESCRIPTORS["huge pages"], DESCRIPTORS["huge pages of 2 MiB"]):
            raise
        return
    try:
        with pytest.raises((ValueError, OSError)):
            memory.check_foreign(fd, 1 << 16)
    finally:
        os.close(fd)


def test_what_is_honest_is_mapped() -> None:
    fd = memory.create(1 << 16)
    try:
        memory.seal_against_writers(fd)
        memory.check_foreign(fd, 1 << 16)
    finally:
        os.close(fd)


def test_huge_pages_end_no_process() -> None:
    """In a process of its own: the first look at such memory, where there is none, is SIGBUS."""
    code = (
        "import os, fcntl\nfrom lazycast.net.host import memory\n"
        "try:\n"
        "    fd = os.memfd_create('x', os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)\n"
        "    os.ftruncate(fd, 2 << 20)\n"
        "    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)\n"
        "except OSError:\n    raise SystemExit(0)\n"
        "try:\n    memory.check_foreign(fd, 2 << 20)\n"
        "except ValueError:\n    raise SystemExit(0)\n"
        "memory.Region(fd, 2 << 20).whole()[0]\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0


# Tensors, and what they show


TENSORS = "lazycast.codec.reducers.torch_tensors"


def _tensor(size: Any = (4,), stride: Any = (1,), nbytes: int = 64) -> Call:
    torch = pytest.importorskip("torch")
    flat = Call(Name(TENSORS, "receive"), (bytearray(nbytes), "cpu"))
    dtype = Name("torch", str(torch.uint8).partition(".")[2])
    return Call(Name(TENSORS, "rebuild"), (flat, dtype, 0, size, stride, False, "cpu"))


@pytest.mark.parametrize("attribute", [*MEMORY, "__cuda_array_interface__", "_as_parameter_", "__class__", 7])
def test_no_stream_gives_a_tensor_what_others_look_up(attribute: Any) -> None:
    setter = Name(TENSORS, "set_attributes")
    with pytest.raises(TrustError, match="looks up by itself"):
        arrives(Call(setter, (_tensor(), {"note": 1, attribute: _interface()})))
    with pytest.raises(TrustError, match="which is not allowed"):
        arrives(Call(Name("numpy", "uint8"), (_tensor(),)))


def test_a_tensor_keeps_its_honest_attributes() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3)
    tensor.note = {"who": "root"}
    encoded = AllowCodec([]).encode(tensor)
    room = memoryview(bytearray(encoded.nbytes))
    encoded.write_into(room)
    back = AllowCodec([]).decode(room, encoded.layout)
    assert (back.note, back.tolist()) == (tensor.note, [1, 1, 1])


EXPANDED: dict[str, tuple[list[int], list[int]]] = {
    "one row": ([1 << 40], [0]),
    "rows": ([1 << 30, 64], [0, 1]),
    "columns": ([64, 1 << 30], [1, 0]),
    "both": ([1 << 20, 1 << 20], [0, 0]),
    "the last of three": ([2, 2, 1 << 30], [1, 1, 0]),
    "all of three": ([1 << 14] * 3, [0] * 3),
    "just too much": ([(64 << 20) + 1], [0]),
    "windows that overlap": ([1 << 30, 1], [0, 1]),
    "many dimensions": ([2] * 30, [0] * 30),
    "the most there is": ([(1 << 62)], [0]),
    "more than there is": ([1 << 40, 1 << 40], [0, 0]),
}


@pytest.mark.parametrize(("size", "stride"), EXPANDED.values(), ids=EXPANDED)
def test_a_tensor_shows_no_more_than_a_bounded_amount(size: list[int], stride: list[int]) -> None:
    from lazycast.codec.data import tensors

    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"shown too often"):
        tensors.rebuild(torch.zeros(64, dtype=torch.uint8), "uint8", 0, size, stride, False, "cpu")
    with pytest.raises(ValueError, match=r"shown too often"):
        arrives(_tensor(tuple(size), tuple(stride)))


@pytest.mark.parametrize("allowing", [True, False])
def test_the_root_does_not_send_what_nobody_would_take(allowing: bool) -> None:
    torch = pytest.importorskip("torch")
    codec = AllowCodec([]) if allowing else data
    tensor = torch.zeros(1).expand(100, 1 << 20)
    with pytest.raises(CannotEncode, match="expanded from 4: send what it was before expand"):
        codec.encode({"t": tensor})  # type: ignore[attr-defined]
    codec.encode({"t": tensor[:1]})  # type: ignore[attr-defined]


# Classes of arrays


class Grid(np.ndarray[Any, Any]):
    """A class of arrays that users list."""


GRID = Name(HERE, "Grid")
ARRAYS: dict[str, Any] = {
    "called": Call(GRID, ((8,),)),
    "made": Call(GRID, ((8,),), new=True),
    "of pointers": Call(GRID, ((1,), "O", bytearray(8))),
    "made of pointers": Call(GRID, ((1,), "O", bytearray(8)), new=True),
    "of other strides": Call(GRID, ((8,), "|u1", bytearray(8), 0, (1,))),
    "a state": Call(Name(HERE, "looked_at"), (), (1, (2,), "<f8", False, b"y" * 16)),
    "attributes as a state": Call(Name(HERE, "looked_at"), (), {"note": 1}),
    "items": Call(Name(HERE, "looked_at"), (), items=(1, 2)),
    "pairs": Call(Name(HERE, "looked_at"), (), pairs=((0, 1), (1, 2))),
    "added": Call(Name(HERE, "looked_at"), (), added=(1,)),
}


def looked_at() -> Any:
    """Listed: gives an array of the class."""
    return np.zeros(2).view(Grid)


@pytest.mark.parametrize("attack", ARRAYS.values(), ids=ARRAYS)
def test_a_listed_class_of_arrays_is_looked_through_and_not_called(attack: Any) -> None:
    with pytest.raises(TrustError, match="which is not allowed"):
        arrives(attack, f"{HERE}.Grid", f"{HERE}.looked_at")


# Names


class Named(type):
    """Gives classes names with parameters, as pydantic does."""


Parametrised = Named("Parametrised[int]", (), {"__module__": HERE, "__qualname__": "Parametrised[int]"})
globals()["Parametrised[int]"] = Parametrised
ALIAS = getattr


def _refusal(obj: Any, *allow: str) -> str:
    with pytest.raises(TrustError) as caught:
        arrives(obj, *allow)
    return str(caught.value)


def test_a_name_that_is_recommended_can_be_listed() -> None:
    name = f"{HERE}.Parametrised[int]"
    call = Call(Name(HERE, "Parametrised[int]"), new=True)
    assert f"names {name!r}, which is not allowed: add it to trust=" in _refusal(call)
    assert problem(name) is None
    assert type(arrives(call, name)) is Parametrised


@pytest.mark.parametrize("name", ["m.Box[int]", "m.Box[Item, str]", "m.A.Box[int | None]", "m.Box[list[int]]"])
def test_names_with_parameters_are_names(name: str) -> None:
    assert problem(name) is None


@pytest.mark.parametrize(
    "name", ["m.Box[", "m.Box[int].x", "m.[int]", "Box[int]", "m.Box[a.b]", "m.Box[int];x", "m..x"]
)
def test_what_is_no_name_is_none(name: str) -> None:
    assert problem(name) == "is not the exact name of a type or function, 'module.qualname'"


def test_another_name_for_the_same_is_no_way_around() -> None:
    text = _refusal(Call(Name(HERE, "ALIAS"), ("x", "upper")), f"{HERE}.ALIAS")
    assert "is builtins.getattr, which gives the sender everything" in text


@pytest.mark.parametrize("name", ["os", "ctypes.c_long", "memory.ctypes.c_char", "pickle._Pickler", "Forger.mro"])
def test_nor_is_what_a_listed_name_leads_to(name: str) -> None:
    text = _refusal([Name(HERE, name)], f"{HERE}.Grid")
    assert "which is not allowed" in text


def test_time_zones_travel_by_their_key() -> None:
    import datetime
    import zoneinfo

    at = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
    encoded = AllowCodec([]).encode([at])
    room = memoryview(bytearray(encoded.nbytes))
    encoded.write_into(room)
    with pytest.raises(TrustError, match=r"names 'zoneinfo\.ZoneInfo', which is not allowed: add it to trust="):
        AllowCodec([]).decode(room, encoded.layout)
    (back,) = AllowCodec(["zoneinfo.ZoneInfo"]).decode(room, encoded.layout)
    assert (back, back.tzinfo.key) == (at, "UTC")


def _honest() -> dict[str, tuple[Any, tuple[str, ...]]]:
    import collections
    import fractions
    import pathlib
    import uuid

    ordered: Any = collections.OrderedDict(a=1)
    ordered._metadata = {"version": 1}  # as the state of a torch module has
    return {
        "ordered": (ordered, ()),
        "factory": (collections.defaultdict(int, a=1), ()),
        "types": ([np.float32, int, collections.OrderedDict], ()),
        "scalars": ([np.float32(1.5), np.int8(1), np.bool_(True), np.datetime64("2026-01-01")], ()),
        "fraction": (fractions.Fraction(1, 3), ("fractions.Fraction",)),
        "path": (pathlib.PurePosixPath("/a/b"), ("pathlib.PurePosixPath", "pathlib._local.PurePosixPath")),
        "uuid": (uuid.UUID(int=7), ("uuid.UUID",)),
        "counter": (collections.Counter("aab"), ("collections.Counter",)),
        "error": (KeyError("x", 1).args, ()),
    }


@pytest.mark.parametrize("name", list(_honest()))
def test_honest_objects_come_back(name: str) -> None:
    value, allow = _honest()[name]
    encoded = AllowCodec(allow).encode(value)
    room = memoryview(bytearray(encoded.nbytes))
    encoded.write_into(room)
    back = AllowCodec(allow).decode(room, encoded.layout)
    assert (type(back), back) == (type(value), value)
    assert getattr(back, "_metadata", None) == getattr(value, "_metadata", None)


def test_a_dict_is_not_called_with_items() -> None:
    """Its keys would be looked at by nobody."""
    made = Call(Name("builtins", "dict"), ([("__array_interface__", 1)],))
    assert "with what no honest stream does" in _refusal([made, Call(BOX, (1, "two"), {"x": 3})], *BOXES)

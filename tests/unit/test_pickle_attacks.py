"""Pickles put together and taken apart at random, opcode by opcode: only what is listed happens, whatever they say.

The witness is the interpreter: its audit events tell of each name that pickle looks up, of imports, files, processes,
sockets, code that is compiled or run. So it does not matter by which trick something is reached.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import itertools
import os
import pickle
import pickletools
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazycast.codec import data, pickling
from lazycast.codec.allowed import ALWAYS, AllowCodec
from lazycast.codec.pickling import Layout
from lazycast.errors import TrustError

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.WebPImagePlugin")


class Frame:
    """Listed. Its state is the sender's to set."""

    shared = "untouched"

    def __init__(self, pixels: Any = None) -> None:
        self.pixels = pixels


class Slotted:
    """Listed, with slots and a word of its own in what is set."""

    __slots__ = ("x", "y")

    def __setstate__(self, state: Any) -> None:
        self.x = state


class Unlisted:
    def __init__(self, *args: Any) -> None:
        raise AssertionError("an unlisted class was called")


def twice(x: Any, *, by: int = 2) -> Any:
    """Listed."""
    return (x,) * by


HERE = __name__
LISTED = {f"{HERE}.Frame", f"{HERE}.Slotted", f"{HERE}.twice"}
CODEC = AllowCodec(LISTED)
#: Under these names the checked ones are found.
CHECKED = {"tensor_of", "set_state_of_image", "set_attributes_of_tensor", "view_of", "bytes_of_tensor", "parameter_of"}
HARMFUL = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "urllib.", "ftplib.", "sqlite3.", "webbrowser.")
HARMFUL += (
    "exec",
    "compile",
    "open",
    "import",
    "code.",
    "function.",
    "marshal.",
    "object.__setattr__",
    "sys.",
    "mmap.",
)
_seen: list[tuple[str, tuple[Any, ...]]] = []
_listening = False


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _listening and (event == "pickle.find_class" or event.startswith(HARMFUL)):
        _seen.append((event, args))


sys.addaudithook(_hear)  # for the life of this process: silent while nobody listens


@contextlib.contextmanager
def listening() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    global _listening
    _seen.clear()
    _listening = True
    try:
        yield _seen
    finally:
        _listening = False


def objectionable(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an event is none that a stream may cause."""
    if event == "pickle.find_class":
        module, name = args
        return f"{module}.{name}" not in ALWAYS | LISTED and name not in CHECKED
    if event == "import":  # of what is loaded already; `str(b"", "name")` looks for a codec of the standard library
        return args[0] not in sys.modules and not args[0].startswith("encodings.")
    if event in ("open", "os.listdir", "exec", "compile", "marshal.loads"):  # the import of such a codec
        return "encodings" not in f"{args[0]!r}"
    return event != "sys._getframe"


def take(stream: bytes, frames: tuple[bytes, ...] = ()) -> Any:
    """Decode a stream as a receiver does that lists the names above; check what has happened meanwhile."""
    encoded = pickling.Encoded()
    encoded.pieces.append(stream)
    encoded.frames += map(memoryview, frames)
    encoded.finish()
    body = pickling.allocate(encoded.nbytes)
    encoded.write_into(body)
    with listening() as events:
        try:
            return CODEC.decode(body, encoded.layout)
        except RecursionError:
            return None
        except Exception as exc:
            return exc
        finally:
            bad = [event for event in events if objectionable(*event)]
            assert not bad, (bad, stream)
            assert (Frame.shared, twice.__kwdefaults__) == ("untouched", {"by": 2}), stream


class _Reduced:
    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _stacked(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


SEEDS: list[Any] = [
    {"a": [1, 2.5, "text", b"bytes", (None, True), {1}, frozenset({2}), 1j, 1 << 100]},
    collections.OrderedDict(a=collections.deque([1])),
    Frame([1, 2]),
    _Reduced(os.system, ("true",)),
    _Reduced(eval, ("1",)),
    _Reduced(Unlisted, (1,)),
    _Reduced(collections.OrderedDict, (), {"a": 1}, None, iter([("k", 1)])),
]
PICKLES = [pickle.dumps(seed, protocol) for seed in SEEDS for protocol in range(6)]
PICKLES += [b"".join(CODEC.encode(o).pieces) for o in (np.arange(3.0), Frame(np.ones(2)), torch.ones(2), np.float32(1))]


def tokens(stream: bytes) -> list[bytes]:
    """Cut a stream into its opcodes, without frames, which would not fit what is made of them."""
    cuts = [at for _, _, at in pickletools.genops(stream) if at is not None] + [len(stream)]
    parts = [stream[a:b] for a, b in itertools.pairwise(cuts)]
    return [part for part in parts if not part.startswith((b"\x95", b"\x80", b"."))]


HOSTILE = [
    *(_stacked(*pair) for pair in (("os", "system"), ("os.path", "join"), ("builtins", "eval"), ("numpy", "load"))),
    *(
        _stacked(*pair)
        for pair in ((HERE, "os.system"), (HERE, "Frame.__init__.__globals__"), (HERE, "Frame.__class__"))
    ),
    *(_stacked(*pair) for pair in (("numpy._core.multiarray", "scalar"), ("numpy._core.multiarray", "_reconstruct"))),
    *(
        _stacked(*pair)
        for pair in (("lazycast.codec.reducers.described", "importlib"), ("torch", "load"), (HERE, "Unlisted"))
    ),
    *(_stacked(*name.rpartition(".")[::2]) for name in sorted(ALWAYS | LISTED)),
    b"cos\nsystem\n",
    b"(ios\nsystem\n",
    f"c{HERE}\nFrame\n".encode(),
    f"(i{HERE}\nUnlisted\n".encode(),
    f"(i{HERE}\nFrame\n".encode(),
    *(bytes([op]) for op in b"R\x81\x92bo(t)}]0201aesud\x85\x86\x87\x93\x94\x97\x98QN\x88"),
    *(b"h" + bytes([n]) for n in range(6)),
    *(b"q" + bytes([n]) for n in range(3)),
    b"Pos.system\n",
    b"\x82\x01",
    b"\x83\x01\x02",
    b"\x84\x01\x00\x00\x00",
    b"X\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 8,
    b"\x96" + b"\xff" * 7 + b"\x7f",
    b"r\xff\xff\xff\x00N0",
    b"\x8b\xff\xff\xff\xff",
    pickle.dumps((None, {"shared": "changed", "__class__": 1, "__code__": 2}), 5)[2:-1].replace(b"\x95", b""),
    pickle.dumps({"shared": "changed"}, 2)[2:-1],
    pickle.dumps((1, (1 << 40,), "<f8", False, b"12345678"), 2)[2:-1],
]
POOL = sorted({*HOSTILE, *(token for stream in PICKLES for token in tokens(stream))})
TOKENS = st.sampled_from(POOL)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A pickle whose opcodes were swapped, left out, put in; or one of opcodes drawn from all."""
    parts = list(tokens(draw(st.sampled_from(PICKLES)))) if draw(st.booleans()) else draw(st.lists(TOKENS, max_size=12))
    for how in draw(st.lists(st.sampled_from(["put in", "leave out", "swap", "again"]), max_size=6)):
        at = draw(st.integers(0, len(parts)))
        if how == "put in" or not parts:
            parts.insert(at, draw(TOKENS))
        elif how == "leave out":
            del parts[at % len(parts)]
        elif how == "swap":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at % len(parts)], parts[other] = parts[other], parts[at % len(parts)]
        else:
            parts.insert(at, parts[at % len(parts)])
    return b"\x80" + bytes([draw(st.integers(0, 5))]) + b"".join(parts) + b"."


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(streams())
def test_only_what_is_listed_is_looked_up_called_or_set(stream: bytes) -> None:
    take(stream, (b"x" * 8,))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(streams())
def test_a_pickle_in_place_of_data_is_a_value_error_that_looks_nothing_up(stream: bytes) -> None:
    for content in (stream, b"\0" + stream, b"\1" + stream, b"\2" + stream):
        with listening() as events, contextlib.suppress(ValueError):
            data.decode(memoryview(bytearray(content)), Layout(len(content), 0))
        assert [event for event in events if event[0] != "sys._getframe"] == [], content


def test_the_witness_sees_what_an_unguarded_unpickler_does() -> None:
    """Else the tests above would be worth nothing."""
    for stream in PICKLES[18:24]:
        with listening() as events:
            assert pickle.loads(stream) == 0
        assert {"pickle.find_class", "os.system"} <= {event for event, _ in events}
        assert any(objectionable(*event) for event in events)


TRICKS: dict[str, bytes] = {
    "a dotted name through a listed module": _stacked(HERE, "os.path.join") + _text("a") + b"\x85R",
    "a dotted name through a listed class": _stacked(HERE, "Frame.__init__.__globals__"),
    "a listed name with a tail": _stacked(f"{HERE}.Frame", "__class__"),
    "the dot in the module": _stacked(f"{HERE.rpartition('.')[0]}", f"{HERE.rpartition('.')[2]}.Unlisted"),
    "NumPy's scalar of objects, which unpickles": _stacked("numpy._core.multiarray", "scalar")
    + _stacked("numpy", "dtype")
    + _text("O")
    + b"\x85R"
    + b"C\x01."
    + b"\x86R",
    "NumPy's reconstruct": _stacked("numpy._core.multiarray", "_reconstruct") + b")R",
    "NumPy's reconstruct, by its old name": b"cnumpy.core.multiarray\n_reconstruct\n)R",
    "numpy.load": _stacked("numpy", "load") + _text("/etc/passwd") + b"\x85R",
    "reduce_ex of what is listed": _stacked(HERE, "Frame.__reduce_ex__") + b"K\x05\x85R",
    "copyreg": b"ccopyreg\n_reconstructor\n" + f"(c{HERE}\nUnlisted\ncbuiltins\nobject\nNtR".encode(),
    "a class that is not listed, by INST": f"(i{HERE}\nUnlisted\n".encode(),
    "a class that is not listed, by OBJ": f"(c{HERE}\nUnlisted\no".encode(),
    "a class that is not listed, by NEWOBJ_EX": f"c{HERE}\nUnlisted\n".encode() + b")}\x92",
    "slots of a listed class": _stacked(HERE, "Frame") + b"N}" + _text("shared") + _text("x") + b"s\x86b",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_known_tricks_are_trust_errors(trick: str, protocol: int) -> None:
    found = take(b"\x80" + bytes([protocol]) + TRICKS[trick] + b".")
    assert isinstance(found, TrustError), found


def test_instances_of_listed_classes_take_their_state() -> None:
    made = take(b"\x80\x05" + _stacked(HERE, "Frame") + b")\x81}" + _text("pixels") + b"K\x07sb.")
    assert (type(made), made.pixels) == (Frame, 7)
    slotted = take(b"\x80\x05" + _stacked(HERE, "Slotted") + b")\x81K\x07b.")
    assert (type(slotted), slotted.x) == (Slotted, 7)


@pytest.mark.parametrize("stream", [b"\x80\x05\x97.", b"\x80\x05\x97\x97.", b"\x80\x05(\x97\x98l."])
def test_a_buffer_that_is_not_there_is_an_error(stream: bytes) -> None:
    assert isinstance(take(stream), pickle.UnpicklingError)


@pytest.mark.parametrize("opcode", [b"X", b"B", b"T", b"\x8b"])
@pytest.mark.parametrize("behind", [b"", b"b"])
def test_a_length_that_is_not_there_fills_no_memory(opcode: bytes, behind: bytes) -> None:
    """Pickle in C reserves what is claimed, but touches none of it."""
    stream = b"\x80\x05" + opcode + struct.pack("<I", 0x7FFFFFFF) + b"x" * 50 + behind + b"."
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(take(stream), (pickle.UnpicklingError, EOFError, ValueError, MemoryError))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before_kb + 100_000


def test_an_extension_code_that_pickle_remembers_is_refused() -> None:
    copyreg.add_extension("os", "system", 0xF124)
    try:
        assert pickle.loads(b"\x80\x02\x83\x24\xf1.") is os.system
        for code in (b"\x83\x24\xf1", b"\x84\x24\xf1\x00\x00"):
            assert isinstance(take(b"\x80\x02" + code + b"."), TrustError)
    finally:
        copyreg.remove_extension("os", "system", 0xF124)
        copyreg._extension_cache.pop(0xF124, None)  # type: ignore[attr-defined]
